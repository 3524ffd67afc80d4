"""The command `dalle-jax`: trains models, generates, completes and scores images; and the commands of unCLIP.

User errors print one line and return exit code 2.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from dalle_jax import output
from dalle_jax.known_models import DALLE, UNCLIP
from dalle_jax.unclip import cli as unclip_cli
from train_jax import arguments as arguments_lib
from train_jax import command
from train_jax.errors import UserError
from train_jax.weights import known_models

_EXAMPLES = {
    "": """\
examples:
  dalle-jax train --config=configs/dalle/shapes.py --workdir=runs/dalle-shapes
  dalle-jax generate "a small red circle above a large blue star" --model runs/dalle-shapes --n 9 --out grid.png
  dalle-jax complete half.png "a red circle" --model runs/dalle-shapes --keep top --out completed.png
  dalle-jax score shape.png --prompts "a red circle,a blue star" --model runs/dalle-shapes
  dalle-jax imagine "a red circle" --model runs/unclip-decoder-shapes --n 9 --guidance 3 --out grid.png
  dalle-jax vary shape.png --model runs/unclip-decoder-shapes --n 8 --out variations.png

generate, complete and score are of DALL-E; imagine, vary, between and edit of unCLIP (DALL-E 2).
dalle-jax COMMAND --help describes each command.""",
    "train": """\
Same as train-jax; dalle-jax train --help lists the options.""",
    "generate": """\
examples:
  dalle-jax generate "a red circle" --model runs/dalle-shapes --n 9 --out grid.png
  dalle-jax generate "a red circle" "a blue star" --model DIR --n 32 --best 4 --rerank runs/clip-shapes --out best.png
  dalle-jax generate @prompts.txt --model DIR --top-p 0.95 --guidance 2 --seed 1 --out grid.png --folder pictures

The grid has one row per prompt. Image i of a prompt and a seed is always the same. The PNG text chunk "dalle" contains the
prompts, the seed, the settings and the fingerprint of the model. With --folder, images are written as they are sampled, and
the same command goes on after an interruption; --out may be left out.""",
    "complete": """\
examples:
  dalle-jax complete half.png "a red circle" --model runs/dalle-shapes --keep top --n 8 --out completed.png
  dalle-jax complete photo.png "a cat" --model DIR --keep mask.png --out completed.png

--keep is the top, bottom, left or right half, or a PNG that is white where codes are kept. Each code is conditioned on
the previous codes in raster order.""",
    "score": """\
examples:
  dalle-jax score a.png b.png --prompts "a red circle,a blue star" --model runs/dalle-shapes

Prints the log-probability of each image given each prompt, in nats per code. The largest is marked with *.""",
    "models": """\
example:
  dalle-jax generate "a red circle" --model dalle:mini --vqgan vqgan:imagenet-f16-16384 --out grid.png

A short name is written wherever a model is named. Its files are downloaded once, to the cache of the Hugging Face Hub.""",
    **unclip_cli.EXAMPLES,
}
HALVES = ("top", "bottom", "left", "right")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for a user error, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return command.train(argv[1:])
    return command.run_command("dalle-jax", make_parser().parse_args(arguments_lib.expand_home(argv)))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of `dalle-jax`, except of `train`."""
    description = "Generate, complete, score and vary images with DALL-E and unCLIP."
    parser, command_parser = command.parser("dalle-jax", description, _EXAMPLES)
    command_parser("train", "Train a model from a config, as train-jax does.")

    def add(name: str, text: str, run) -> argparse.ArgumentParser:
        subparser = command_parser(name, text, run)
        subparser.add_argument(
            "--model", required=True, metavar="MODEL", help="run directory, or directory of minDALL-E, dalle-mini, ruDALL-E"
        )
        subparser.add_argument(
            "--vqgan", metavar="VQGAN", help="VQGAN of a model without one, such as dalle-mini (default: vqgan/ in MODEL)"
        )
        arguments_lib.add_dtype(subparser)
        return subparser

    def add_sampling_options(subparser: argparse.ArgumentParser, n: int) -> None:
        output.add_output_options(subparser, n)
        subparser.add_argument("--best", type=int, help="number of best images to keep per prompt, by --rerank")
        subparser.add_argument(
            "--rerank", metavar="CLIP", help='path of the CLIP that ranks the images, or "likelihood"'
        )
        subparser.add_argument(
            "--temperature", type=float, default=1.0, help="sampling temperature; 0: greedy decoding"
        )
        subparser.add_argument("--top-k", type=int, help="number of most likely codes to sample from")
        subparser.add_argument("--top-p", type=float, help="total probability of the most likely codes to sample from")
        subparser.add_argument(
            "--int8-cache", action="store_true", help="round the transformer's cache to 8 bits, for larger batches"
        )

    generate = add("generate", "Generate images from prompts.", _generate)
    generate.add_argument("prompts", nargs="+", metavar="PROMPT", help="prompts, or @FILE with one per line")
    generate.add_argument("--preview", metavar="FILE", help="PNG file for a preview of the images during sampling")
    add_sampling_options(generate, 9)

    complete = add("complete", "Keep a part of an image and generate the rest.", _complete)
    complete.add_argument("image", metavar="IMAGE", help="image file")
    complete.add_argument(
        "prompt", nargs="?", default="", metavar="PROMPT", help="description of the image (default: no prompt)"
    )
    complete.add_argument(
        "--keep", required=True, metavar="PART", help=f"part to keep: {', '.join(HALVES)}, or a PNG mask (white: keep)"
    )
    add_sampling_options(complete, 8)

    score = add("score", "Score images by their probability given prompts.", _score)
    score.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    score.add_argument("--prompts", required=True, help="prompts separated by commas, or @FILE with one per line")
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")
    unclip_cli.add_commands(command_parser)
    known_models.add_command(command_parser, dalle=DALLE, unclip=UNCLIP)
    return parser


def _generate(arguments: argparse.Namespace) -> int:
    return _draw(arguments, arguments_lib.lines(arguments.prompts, "a prompt"))


def _complete(arguments: argparse.Namespace) -> int:
    return _draw(arguments, [arguments.prompt], image=arguments.image)


def _draw(arguments: argparse.Namespace, prompts: list[str], image: str | None = None) -> int:
    from dalle_jax.dalle import load

    output.check_outputs(arguments)
    output.check_ranking(arguments)
    dalle = load(arguments.model, dtype=arguments.dtype, vqgan=arguments.vqgan)
    preview = getattr(arguments, "preview", None)
    return draw(dalle, arguments, prompts, image, _make_previewer(Path(preview)) if preview else None)


def draw(
    dalle, arguments: argparse.Namespace, prompts: list[str], image: str | None = None, preview: Callable | None = None
) -> int:
    """Runs `generate`, or with an image `complete`, with a loaded model. Returns the exit code.

    Args:
      arguments: those of the command; `rerank` may be a loaded CLIP.
      preview: as in `dalle_jax.Dalle.draw`.

    Raises UserError for options that the model refuses.
    """
    from vqgan_jax.stage2.rerank import open_reranker

    names = ("seed", "temperature", "top_k", "top_p", "guidance", "int8_cache")
    settings = {key: getattr(arguments, key) for key in names}
    completion = {} if image is None else {"init_image": image, "keep": _read_keep_mask(arguments.keep, image, dalle)}
    reranker = arguments.rerank
    if reranker not in (None, "likelihood"):
        reranker = open_reranker(reranker, arguments.dtype)
    metadata = {"model": dalle.fingerprint, "dtype": dalle.dtype, **settings, "n": arguments.n, "best": arguments.best}
    metadata["rerank"] = getattr(reranker, "fingerprint", reranker)
    if image is not None:
        metadata |= output.describe_image("init_image", image) | {"keep": arguments.keep}
    options = settings | completion | {"rerank": reranker, "best": arguments.best, "batch_size": arguments.batch_size}
    options["preview"] = preview
    return output.write_drawings(dalle, prompts, options, arguments, metadata)


def _make_previewer(file: Path):
    from train_jax.pictures import enlarged_grid, split_into_rows

    def show(first: int, rows: int, images) -> None:
        enlarged_grid(split_into_rows(images, 8)).save(file)

    return show


def _read_keep_mask(part: str, image: str, dalle):
    """Computes the mask of the codes to keep: bool [rows, columns]."""
    import numpy as np
    from PIL import Image

    from train_jax.data.errors import BrokenSample
    from train_jax.data.images import Preprocess, decode

    grid = dalle.grid
    rows, columns = np.indices(grid)
    halves = {
        "top": rows < grid[0] // 2,
        "bottom": rows >= grid[0] // 2,
        "left": columns < grid[1] // 2,
        "right": columns >= grid[1] // 2,
    }
    if part in halves:
        return halves[part]
    if Path(part).suffix.lower() != ".png":
        raise UserError(
            f"--keep {part}: name one of {', '.join(HALVES)}, or a .png that is white where codes are kept"
        )
    try:
        picture = decode(part, convert=lambda image: image.convert("RGBA"))
    except BrokenSample as error:
        raise UserError(f"--keep {part}: {error}") from error
    # Transparent pixels count as black: their codes are not kept.
    mask = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
    size = decode(image).size
    if mask.size == size:  # crop the mask like the image, of which the model sees the central square
        mask = Image.fromarray(Preprocess(dalle.size)(mask))
    elif mask.width != mask.height:
        raise UserError(
            f"--keep {part}: {mask.width} x {mask.height} pixels; it must be as large as the image, {size[0]} x "
            f"{size[1]}, or a square, of the part that the model sees"
        )
    keep = np.asarray(mask.convert("L").resize(grid[::-1], Image.Resampling.BOX)) > 127
    if keep.all() or not keep.any():
        problem = "keeps every code: there is nothing to generate" if keep.all() else "keeps no code: use generate"
        raise UserError(f"--keep {part} {problem}")
    return keep


def _score(arguments: argparse.Namespace) -> int:
    from dalle_jax.dalle import load

    prompts = arguments_lib.listed(arguments.prompts, "a prompt", "--prompts")
    dalle = load(arguments.model, dtype=arguments.dtype, vqgan=arguments.vqgan)
    scores = dalle.score(prompts, [Path(image) for image in arguments.images]) / dalle.module.length
    if arguments.json:
        rows = (dict(zip(prompts, map(float, row), strict=True)) for row in scores)
        print(json.dumps(dict(zip(arguments.images, rows, strict=True)), indent=2, ensure_ascii=False))
        return 0
    for image, row in zip(arguments.images, scores, strict=True):
        print(image)
        for prompt, value in zip(prompts, row, strict=True):
            print(f"  {value:8.4f}  {prompt}{'  *' if value == row.max() else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
