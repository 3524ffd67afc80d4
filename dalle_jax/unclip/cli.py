"""The commands of `dalle-jax` for unCLIP: imagine, vary, between, edit."""

import argparse
from collections.abc import Callable
from typing import Any

from dalle_jax import output
from train_jax import arguments as arguments_lib
from train_jax.errors import UserError

EXAMPLES = {
    "imagine": """\
examples:
  dalle-jax imagine "a red circle" --model runs/unclip-decoder-shapes --n 9 --guidance 3 --out grid.png
  dalle-jax imagine @prompts.txt --model DIR --n 16 --best 4 --rerank runs/clip-shapes --folder pictures
  dalle-jax imagine "a corgi" --model hf:kakaobrain/karlo-v1-alpha --guidance 8 --prior-guidance 4 --out corgi.png

The model is the run directory of a decoder, or a directory of karlo. Image i of a prompt and a seed is always the same. The
PNG text chunk "dalle" contains the prompts, the seed, the settings and the fingerprint of the model. With --folder, images
are written as they are sampled, and the same command goes on after an interruption; --out may be left out.""",
    "vary": """\
examples:
  dalle-jax vary photo.png --model runs/unclip-decoder-shapes --n 8 --out variations.png
  dalle-jax vary photo.png --model hf:kakaobrain/karlo-v1-alpha --clip hf:openai/clip-vit-large-patch14 --out variations.png

Variations share the CLIP embedding of the image. --eta 0 reconstructs it; the larger, the more new noise.""",
    "between": """\
examples:
  dalle-jax between a.png b.png --model runs/unclip-decoder-shapes --n 8 --out between.png

The images have embeddings between those of the two images, and the same noise.""",
    "edit": """\
examples:
  dalle-jax edit shape.png "a red circle" "a blue circle" --model runs/unclip-decoder-shapes --out edited.png

The embedding of the image is turned towards the difference of the texts, by each --strength.""",
}


def add_commands(command_parser: Callable) -> None:
    """Adds the commands. `command_parser(name, text, run)` makes the parser of a command."""

    def add(name: str, text: str, run: Callable) -> argparse.ArgumentParser:
        parser = command_parser(name, text, run)
        parser.add_argument(
            "--model", required=True, metavar="MODEL", help="run directory of a decoder, or directory of karlo"
        )
        parser.add_argument("--upsampler", metavar="RUN", help="run directory of an upsampler")
        parser.add_argument("--steps", type=int, default=25, help="number of sampling steps (default 25)")
        arguments_lib.add_dtype(parser)
        parser.add_argument("--offload", action="store_true", help="keep weights in host memory while their network rests")
        return parser

    imagine = add("imagine", "Generate images from prompts with unCLIP.", _imagine)
    imagine.add_argument("prompts", nargs="+", metavar="PROMPT", help="prompts, or @FILE with one per line")
    output.add_output_options(imagine, 9)
    imagine.add_argument("--prior", metavar="RUN", help="another prior for the same CLIP")
    imagine.add_argument("--prior-steps", type=int, default=25, help="number of sampling steps of the prior (default 25)")
    imagine.add_argument("--prior-guidance", type=float, default=1.0, help="guidance of the prior (default 1: none)")
    imagine.add_argument("--eta", type=float, help="noise of DDIM, 0 to 1 (default: ancestral sampling)")
    imagine.add_argument("--best", type=int, help="number of best images to keep per prompt, by --rerank")
    imagine.add_argument("--rerank", metavar="CLIP", help="path of the CLIP that ranks the images")

    vary = add("vary", "Sample variations of an image with unCLIP.", _vary)
    vary.add_argument("image", metavar="IMAGE", help="image file")
    vary.add_argument("--eta", type=float, default=1.0, help="scale of new noise, 0 to 1 (default 1)")
    output.add_output_options(vary, 8, "variations")

    between = add("between", "Interpolate between two images with unCLIP.", _between)
    between.add_argument("images", nargs=2, metavar="IMAGE", help="image files")
    output.add_output_options(between, 8, "images")

    edit = add("edit", "Change an image by a text difference with unCLIP.", _edit)
    edit.add_argument("image", metavar="IMAGE", help="image file")
    edit.add_argument("before", metavar="BEFORE", help="description of the image")
    edit.add_argument("after", metavar="AFTER", help="description of the image as it shall be")
    edit.add_argument(
        "--strength", default="0.25,0.3,0.4,0.5", help="fractions of the way, 0 to 1 (default 0.25,0.3,0.4,0.5)"
    )
    output.add_output_options(edit, 0, "")
    for parser in (vary, between, edit):
        parser.add_argument("--clip", metavar="CLIP", help="CLIP with karlo's text tower; not for run directories")


def _imagine(arguments: argparse.Namespace) -> int:
    prompts = arguments_lib.lines(arguments.prompts, "a prompt")
    output.check_outputs(arguments)
    output.check_ranking(arguments)
    return imagine(_load(arguments, prior=arguments.prior), arguments, prompts)


def imagine(unclip, arguments: argparse.Namespace, prompts: list[str], preview: Callable | None = None) -> int:
    """Runs `imagine` with a loaded model; `arguments.rerank` may be a loaded CLIP. Returns the exit code.

    Args:
      preview: as in `dalle_jax.unclip.unclip.Unclip.draw`.

    Raises UserError for options that the model refuses.
    """
    from vqgan_jax.stage2.rerank import open_reranker

    names = ("seed", "guidance", "prior_guidance", "steps", "prior_steps", "eta")
    settings = {name: getattr(arguments, name) for name in names}
    reranker = open_reranker(arguments.rerank, arguments.dtype) if arguments.rerank else None
    metadata = _metadata(arguments, unclip) | settings | {"n": arguments.n, "best": arguments.best}
    metadata["rerank"] = getattr(reranker, "fingerprint", None)
    options = settings | {"rerank": reranker, "best": arguments.best, "batch_size": arguments.batch_size}
    options["preview"] = preview
    return output.write_drawings(unclip, prompts, options, arguments, metadata)


def _vary(arguments: argparse.Namespace) -> int:
    metadata = output.describe_image("image", arguments.image) | {"n": arguments.n}
    settings = {"eta": arguments.eta, "seed": arguments.seed}
    return _write(arguments, "vary", (arguments.image, arguments.n), settings, metadata)


def _between(arguments: argparse.Namespace) -> int:
    first, last = arguments.images
    metadata = output.describe_image("first", first) | output.describe_image("last", last) | {"n": arguments.n}
    return _write(arguments, "between", (first, last, arguments.n), {"seed": arguments.seed}, metadata)


def _edit(arguments: argparse.Namespace) -> int:
    try:
        strengths = [float(value) for value in arguments.strength.split(",")]
    except ValueError as error:
        raise UserError(f"--strength {arguments.strength}: write fractions separated by commas, such as 0.25,0.5") from error
    texts = arguments.before, arguments.after
    metadata = {"before": texts[0], "after": texts[1], "strength": strengths}
    metadata |= output.describe_image("image", arguments.image)
    return _write(arguments, "edit", (arguments.image, *texts, strengths), {}, metadata)


def _write(arguments: argparse.Namespace, method: str, inputs: tuple, settings: dict, metadata: dict) -> int:
    """Calls a method of the model and writes its images."""
    output.check_outputs(arguments)
    unclip = _load(arguments, clip=arguments.clip)
    settings |= {"guidance": arguments.guidance, "steps": arguments.steps}
    try:
        images = getattr(unclip, method)(*inputs, **settings, batch_size=arguments.batch_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    return output.write_images(images, arguments, _metadata(arguments, unclip) | metadata | settings)


def _load(arguments: argparse.Namespace, **parts: Any):
    from dalle_jax.unclip import loading

    options = {name: getattr(arguments, name) for name in ("upsampler", "dtype", "offload")}
    return loading.load_unclip(arguments.model, **options, **parts)


def _metadata(arguments: argparse.Namespace, unclip) -> dict[str, Any]:
    return {"command": arguments.command, "model": unclip.fingerprint, "dtype": unclip.dtype}
