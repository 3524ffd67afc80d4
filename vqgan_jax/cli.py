"""The command line `vqgan-jax`: train, reconstruct, encode, decode, sample, paint. Mistakes are one line, exit code 2."""

import argparse
import sys
from pathlib import Path

from train_jax import arguments as arguments_lib
from train_jax import command
from train_jax.errors import UserError
from vqgan_jax.guided import cli as guided

_EXAMPLES = {
    "": """\
examples:
  vqgan-jax train --config=configs/vqgan/shapes.py --workdir=runs/vqgan-shapes
  vqgan-jax reconstruct photo.jpg shape.png --model runs/vqgan-shapes --out sheet.png
  vqgan-jax encode photos --model runs/vqgan-shapes --out codes.npz
  vqgan-jax decode codes.npz --model runs/vqgan-shapes --out pictures
  vqgan-jax sample --model runs/prior-digits --n 16 --class 3 --out grid.png
  vqgan-jax paint "a red star" --vqgan runs/vqgan-shapes --clip runs/clip-shapes --out star.png

vqgan-jax COMMAND --help describes each command.""",
    "paint": guided.EXAMPLES,
    "train": """\
The same as train-jax; vqgan-jax train --help lists its options.""",
    "sample": """\
examples:
  vqgan-jax sample --model runs/prior-digits --n 16 --class 3 --out grid.png
  vqgan-jax sample --model runs/prior-digits --n 4 --top-p 0.9 --guidance 2 --class 7 --seed 1 --out grid.png
  vqgan-jax sample --model runs/prior --size 64x128 --stride 2 --out wide.png

The model is a run of the second stage (task vqgan_jax.prior.task). Picture i of a seed is always the same.""",
    "reconstruct": """\
examples:
  vqgan-jax reconstruct *.png --model runs/vqgan-shapes --out sheet.png

The sheet shows each picture above its reconstruction; the PSNR of each is printed.""",
    "encode": """\
examples:
  vqgan-jax encode photos --model runs/vqgan-shapes --out codes.npz

Writes codes [n, h, w], paths relative to the folder, and the fingerprint of the model. Files that cannot be read are named
and left out.""",
    "decode": """\
examples:
  vqgan-jax decode codes.npz --model runs/vqgan-shapes --out pictures

Writes a PNG for each row of codes: a.png for a.jpg; where two pictures would have one name, a.jpg.png for every a.jpg. Codes
of another model are refused.""",
}
_MODEL = "a run directory, a directory of diffusers' VQModel, or taming's .ckpt with its .yaml beside it"
_BATCH = 32


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return command.train(argv[1:])
    return command.run_command("vqgan-jax", _parser().parse_args(arguments_lib.expand_home(argv)))


def _parser() -> argparse.ArgumentParser:
    parser, command_parser = command.parser("vqgan-jax", "Images to tokens and back.", _EXAMPLES)
    command_parser("train", "Train what a config says, as train-jax does.")

    def add(name: str, text: str, run, model: str = _MODEL) -> argparse.ArgumentParser:
        sub = command_parser(name, text, run)
        sub.add_argument("--model", required=True, metavar="MODEL", help=model)
        return sub

    reconstruct = add("reconstruct", "Show pictures beside their reconstructions.", _reconstruct)
    reconstruct.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    reconstruct.add_argument("--out", required=True, metavar="FILE", help="the sheet to write, a .png")

    encode = add("encode", "Turn the pictures of a folder into codes.", _encode)
    encode.add_argument("folder", metavar="FOLDER", help="pictures, in nested folders too")
    encode.add_argument("--out", required=True, metavar="FILE", help="the .npz to write")

    decode = add("decode", "Turn codes into pictures.", _decode)
    decode.add_argument("codes", metavar="CODES", help="an .npz that encode wrote")
    decode.add_argument("--out", required=True, metavar="FOLDER", help="folder for the pictures; made if missing")

    sample = add("sample", "Draw new pictures, code by code.", _sample, "a run directory of the second stage")
    sample.add_argument("--out", required=True, metavar="FILE", help="the grid to write, a .png")
    sample.add_argument("--n", type=int, default=16, help="how many (default 16)")
    sample.add_argument("--class", type=int, dest="label", metavar="LABEL", help="their class (default: none)")
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    sample.add_argument("--temperature", type=float, default=1.0, help="divides the logits; 0: most likely codes")
    sample.add_argument("--top-k", type=int, help="sample from the K most likely codes")
    sample.add_argument("--top-p", type=float, help="sample from the most likely codes of this total probability")
    sample.add_argument("--guidance", type=float, default=1.0, help="scale of classifier-free guidance (default 1: none)")
    sample.add_argument(
        "--size", type=arguments_lib.size, metavar="HxW", help="in pixels; above the training size, by a sliding window"
    )
    sample.add_argument("--stride", type=int, help="codes between two windows (default: half a window)")
    sample.add_argument("--columns", type=int, default=8, help="of the grid (default 8)")

    guided.add(command_parser)
    return parser


def _sample(arguments: argparse.Namespace) -> int:
    from train_jax.pictures import enlarged_grid, in_rows
    from vqgan_jax.prior.prior import load

    out = arguments_lib.png(arguments.out, "the grid")
    arguments_lib.check_outputs(out=arguments.out)
    if arguments.columns < 1:
        raise UserError(f"--columns {arguments.columns}: at least 1")
    prior = load(arguments.model)
    names = ("seed", "temperature", "top_k", "top_p", "guidance", "size", "stride")
    try:
        pictures = prior.generate([arguments.label], arguments.n, **{name: getattr(arguments, name) for name in names})[0]
    except ValueError as error:
        raise UserError(str(error)) from error
    enlarged_grid(in_rows(pictures, arguments.columns)).save(out)
    print(f"wrote {out}", file=sys.stderr)
    return 0


def _read(vq, paths: list[Path]) -> tuple[list[Path], list]:
    """Reads images for the model; names those that cannot be read on standard error."""
    from train_jax.data.images import BrokenSample

    good, pictures = [], []
    for path in paths:
        try:
            pictures.append(vq.preprocess([path])[0])
            good.append(path)
        except (BrokenSample, OSError) as error:
            print(f"left out {path}: {error}", file=sys.stderr)
    return good, pictures


def _reconstruct(arguments: argparse.Namespace) -> int:
    import numpy as np

    from train_jax.pictures import enlarged_grid
    from vqgan_jax.metrics import psnr
    from vqgan_jax.vqgan import load

    out = arguments_lib.png(arguments.out, "the sheet")
    arguments_lib.check_outputs(out=arguments.out)
    vq = load(arguments.model)
    paths, pictures = _read(vq, [Path(image) for image in arguments.images])
    if not pictures:
        raise UserError("no picture can be read")
    reconstructions = vq.reconstruct(np.stack(pictures))
    for path, decibels in zip(paths, psnr(reconstructions, np.stack(pictures) / 255), strict=True):
        print(f"{decibels:6.2f} dB  {path}")
    columns = 8
    rows = []
    reconstructions = np.round(255 * reconstructions).astype(np.uint8)
    for start in range(0, len(pictures), columns):
        rows += [pictures[start : start + columns], list(reconstructions[start : start + columns])]
    enlarged_grid(rows).save(out)
    print(f"wrote {out}", file=sys.stderr)
    return 0 if len(paths) == len(arguments.images) else 2


def _encode(arguments: argparse.Namespace) -> int:
    import numpy as np
    from tqdm import tqdm

    from train_jax.data.images import IMAGE_SUFFIXES
    from train_jax.paths import walk
    from vqgan_jax.vqgan import load

    arguments_lib.check_outputs(out=arguments.out)
    folder = Path(arguments.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = [file for file in walk(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UserError(f"{folder}: no pictures ({' '.join(IMAGE_SUFFIXES)}) in it")
    vq = load(arguments.model)
    paths, codes = [], []
    with tqdm(total=len(files), unit="image", desc="encode") as bar:
        for start in range(0, len(files), _BATCH):
            chunk = files[start : start + _BATCH]
            good, pictures = _read(vq, chunk)
            if good:
                codes.append(vq.encode(np.stack(pictures), _BATCH))
                paths += [str(path.relative_to(folder)) for path in good]
            bar.update(len(chunk))
    if not paths:
        raise UserError(f"{folder}: no picture can be read")
    # Through an open file, so that NumPy adds no suffix of its own.
    with open(arguments.out, "wb") as file:
        np.savez_compressed(file, codes=np.concatenate(codes), paths=np.asarray(paths), fingerprint=vq.fingerprint)
    print(f"wrote {arguments.out}: {len(paths):,} picture(s), {codes[0].shape[1]} x {codes[0].shape[2]} codes each")
    return 0 if len(paths) == len(files) else 2


def _decode(arguments: argparse.Namespace) -> int:
    import numpy as np
    from PIL import Image

    from train_jax.data.files import read_arrays
    from vqgan_jax.vqgan import load

    out = Path(arguments.out)
    arguments_lib.check_folder(out, "--out")
    try:
        codes, paths, fingerprint = read_arrays(arguments.codes, ("codes", "paths", "fingerprint")).values()
    except ValueError as error:
        raise UserError(f"{arguments.codes} holds no codes of vqgan-jax encode ({error})") from error
    if codes.ndim != 3 or codes.dtype.kind not in "iu" or paths.shape != codes.shape[:1] or paths.dtype.kind != "U":
        raise UserError(
            f"{arguments.codes} holds no codes of vqgan-jax encode: codes {codes.dtype} {list(codes.shape)}, paths "
            f"{paths.dtype} {list(paths.shape)}; it writes whole numbers [n, h, w] and a text for each of the n"
        )
    targets = _targets(out, [str(path) for path in paths], arguments.codes)
    vq = load(arguments.model)
    fingerprint = str(fingerprint)
    if fingerprint != vq.fingerprint:
        raise UserError(
            f"{arguments.codes} was made by a model of fingerprint {fingerprint[:16]}; {vq.name} has {vq.fingerprint[:16]}"
        )
    if codes.size and not 0 <= codes.min() <= codes.max() < vq.num_codes:
        raise UserError(f"{arguments.codes}: codes {codes.min()} to {codes.max()}; {vq.name} has 0 to {vq.num_codes - 1}")
    for start in range(0, len(codes), _BATCH):
        pictures = np.round(255 * vq.decode(codes[start : start + _BATCH])).astype(np.uint8)
        for target, picture in zip(targets[start : start + _BATCH], pictures, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(target)
    print(f"wrote {len(codes):,} picture(s) to {out}")
    return 0


def _targets(out: Path, paths: list[str], file: str) -> list[Path]:
    """Returns the PNG of each image: its path with another suffix, or with `.png` appended if names would collide.

    Raises UserError for a path in `file` that leads out of the folder or occurs twice.
    """
    for path in paths:
        if "\0" in path or out.resolve() not in (out / path).resolve().parents:
            raise UserError(f"{file}: the path {path!r} leads out of {out}")
    targets = [(out / path).with_suffix(".png") for path in paths]
    if len(set(targets)) < len(targets):
        targets = [out / f"{path}.png" for path in paths]
    if len(set(targets)) < len(targets):
        twice = next(path for i, path in enumerate(paths) if path in paths[:i])
        raise UserError(f"{file}: the path {twice!r} occurs twice")
    return targets


if __name__ == "__main__":
    sys.exit(main())
