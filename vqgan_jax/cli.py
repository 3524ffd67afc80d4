"""Command line `vqgan-jax`: train, reconstruct, encode, decode, sample, paint.

Errors of the user are reported in one line, with exit code 2.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from train_jax import arguments as arguments_lib
from train_jax import command
from train_jax.errors import UserError
from train_jax.weights import known_models
from vqgan_jax.guided import cli as guided
from vqgan_jax.known_models import MODELS

_EXAMPLES = {
    "": """\
examples:
  vqgan-jax train --config=configs/vqgan/shapes.py --workdir=runs/vqgan-shapes
  vqgan-jax reconstruct photo.jpg shape.png --model runs/vqgan-shapes --out sheet.png
  vqgan-jax encode photos --model runs/vqgan-shapes --out codes.npz
  vqgan-jax decode codes.npz --model runs/vqgan-shapes --out images
  vqgan-jax sample --model runs/prior-digits --n 16 --class 3 --out grid.png
  vqgan-jax paint "a red star" --vqgan runs/vqgan-shapes --clip runs/clip-shapes --out star.png

vqgan-jax COMMAND --help describes each command.""",
    "paint": guided.EXAMPLES,
    "drawers": """\
example:
  vqgan-jax paint "a fox" --clip DIR --drawer strokes --drawer-options count=32,ink=black --sparsity 0.02 --out fox.png

A drawer is what a painting optimises. The options listed under its name are given to paint by --drawer-options.""",
    "presets": """\
example:
  vqgan-jax paint "a lighthouse" --clip DIR --preset stained-glass --drawer-options count=64 --out window.png

A preset is a set of options for a look. Options that are given beside it override its own.""",
    "direction": """\
example:
  vqgan-jax direction --clip DIR --from "a drawing of a house" "a sketch" --to "a photo of a house" "a photo" --out photo.npz
  vqgan-jax paint "a castle | direction=photo.npz:0.5" --vqgan DIR --clip DIR --out castle.png

A direction leads from the mean embedding of some sentences to that of others. The file is refused for another CLIP.""",
    "train": """\
The same as train-jax; vqgan-jax train --help lists its options.""",
    "models": """\
example:
  vqgan-jax reconstruct photo.jpg --model vqgan:imagenet-f16-16384 --out sheet.png

A short name is written wherever a model is named. Its files are downloaded once, to the cache of the Hugging Face Hub.""",
    "sample": """\
examples:
  vqgan-jax sample --model runs/prior-digits --n 16 --class 3 --out grid.png
  vqgan-jax sample --model runs/prior-digits --n 4 --top-p 0.9 --guidance 2 --class 7 --seed 1 --out grid.png
  vqgan-jax sample --model runs/prior --size 64x128 --stride 2 --out wide.png
  vqgan-jax sample --model sflckr.ckpt --map labels.npy --n 4 --top-k 100 --out views.png

The model is a run of the second stage (task vqgan_jax.prior.task). Image i of a seed is always the same. With --folder,
images are written as they are sampled, and the same command goes on after an interruption; --out may be left out.""",
    "reconstruct": """\
examples:
  vqgan-jax reconstruct *.png --model runs/vqgan-shapes --out sheet.png

The grid shows each image above its reconstruction; the PSNR of each image is printed. With --folder, each reconstruction is
written to FOLDER/NAME.png, and the same command goes on after an interruption; --out may be left out.""",
    "encode": """\
examples:
  vqgan-jax encode photos --model runs/vqgan-shapes --out codes.npz

Writes codes [n, h, w], paths relative to the folder, and the fingerprint of the model. Unreadable files are reported and
skipped.""",
    "decode": """\
examples:
  vqgan-jax decode codes.npz --model runs/vqgan-shapes --out images

Writes one PNG per image: a.png for a.jpg; if two images would have the same name, a.jpg.png for every a.jpg. Codes of
another model are refused. The same command goes on after an interruption.""",
}
_MODEL = "a run directory, diffusers' VQModel, taming's .ckpt with its .yaml beside it, or a name of vqgan-jax models"
_BATCH = 32
_COLUMNS = 8  # of a sheet of reconstructions
SAMPLE_KEY, RECONSTRUCT_KEY, DECODE_KEY = "vqgan-jax sample", "vqgan-jax reconstruct", "vqgan-jax decode"  # in PNGs


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for an error of the user, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return command.train(argv[1:])
    return command.run_command("vqgan-jax", make_parser().parse_args(arguments_lib.expand_home(argv)))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of `vqgan-jax`, except of `train`."""
    parser, command_parser = command.parser("vqgan-jax", "Encode images to codes, decode and sample codes.", _EXAMPLES)
    command_parser("train", "Train a model from a config; the same as train-jax.")

    def add_command(name: str, text: str, run, model: str = _MODEL) -> argparse.ArgumentParser:
        sub = command_parser(name, text, run)
        sub.add_argument("--model", required=True, metavar="MODEL", help=model)
        arguments_lib.add_dtype(sub)
        return sub

    reconstruct = add_command("reconstruct", "Reconstruct images and write a grid for comparison.", _reconstruct)
    reconstruct.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    reconstruct.add_argument("--out", metavar="FILE", help="output .png with images and reconstructions")
    reconstruct.add_argument("--folder", metavar="FOLDER", help="output folder for each reconstruction, for any number")

    encode = add_command("encode", "Encode the images of a folder to codes.", _encode)
    encode.add_argument("folder", metavar="FOLDER", help="folder of images, searched recursively")
    encode.add_argument("--out", required=True, metavar="FILE", help="output .npz")

    decode = add_command("decode", "Decode codes to images.", _decode)
    decode.add_argument("codes", metavar="CODES", help="an .npz written by vqgan-jax encode")
    decode.add_argument("--out", required=True, metavar="FOLDER", help="output folder; created if missing")

    sample = add_command("sample", "Sample images autoregressively.", _sample, "run of the second stage, or LlamaGen")
    sample.add_argument(
        "--vqgan", metavar="VQGAN", help="VQGAN of a model without one, such as LlamaGen (default: vqgan/ in MODEL)"
    )
    sample.add_argument("--out", metavar="FILE", help="output .png with a grid of samples")
    sample.add_argument("--folder", metavar="FOLDER", help="output folder for each image, for any number of images")
    sample.add_argument("--n", type=int, default=16, help="number of images (default 16)")
    condition = sample.add_mutually_exclusive_group()
    condition.add_argument("--class", type=int, dest="label", metavar="LABEL", help="class label (default: none)")
    condition.add_argument("--map", metavar="FILE", help=".npy: segmentation, depth, image or coordinates (taming's models)")
    sample.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    sample.add_argument("--temperature", type=float, default=1.0, help="sampling temperature; 0: greedy decoding")
    sample.add_argument("--top-k", type=int, help="top-k filter: sample from the K most likely codes")
    sample.add_argument("--top-p", type=float, help="nucleus filter: total probability of the codes to sample from")
    sample.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance scale (default 1: none)")
    sample.add_argument(
        "--size",
        type=arguments_lib.size,
        metavar="HxW",
        help="image size in pixels; a sliding window is used above the training size",
    )
    sample.add_argument("--stride", type=int, help="stride of the sliding window in codes (default: half a window)")
    sample.add_argument("--batch-size", type=int, default=64, help="maximum number of images per batch (default 64)")
    sample.add_argument("--int8-cache", action="store_true", help="round the transformer's cache to 8 bits")
    sample.add_argument("--columns", type=int, default=8, help="number of columns of the grid (default 8)")

    guided.add(command_parser)
    known_models.add_command(command_parser, vqgan=MODELS)
    return parser


def _sample(arguments: argparse.Namespace) -> int:
    import numpy as np

    from train_jax.data.images import decode
    from train_jax.pictures import PictureFolder, enlarged_grid, save_png, split_into_rows
    from vqgan_jax.prior.prior import load

    _check_outputs(arguments, "the grid")
    if arguments.columns < 1:
        raise UserError(f"--columns {arguments.columns}: at least 1")
    prior = load(arguments.model, dtype=arguments.dtype, vqgan=arguments.vqgan)
    names = ("seed", "temperature", "top_k", "top_p", "guidance", "size", "stride", "int8_cache")
    settings = {name: getattr(arguments, name) for name in names}
    options = settings | {"batch_size": arguments.batch_size}
    condition = arguments.label if arguments.map is None else arguments.map
    metadata = {"model": prior.fingerprint, "dtype": prior.dtype, **settings, "class": arguments.label}
    kind = prior.condition.kind
    if (arguments.map is None) == (kind == "map"):
        raise UserError(f"--model {arguments.model} is conditioned on a {kind}: name it by --{kind}")
    try:
        if arguments.map is not None:
            metadata |= {"map": arguments.map, "map_crc": prior.condition.seed(arguments.map)}
        if arguments.folder:
            pictures = PictureFolder(arguments.folder, SAMPLE_KEY, metadata)
            files = [f"{index:06d}.png" for index in range(arguments.n)]
            missing = [index for index, file in enumerate(files) if not pictures.holds(file, sample=index)]
            # Repeated labels, one image of each, are the images of one label.
            for index, drawing in prior.stream([condition] * arguments.n, only=missing, **options):
                pictures.save(drawing.images[0, 0], files[index], sample=index)
        else:
            images = prior.generate([condition], arguments.n, **options)[0]
    except ValueError as error:
        raise UserError(str(error)) from error
    if arguments.out:
        if arguments.folder:
            images = [np.asarray(decode(pictures.path(file))) for file in files]
        grid = enlarged_grid(split_into_rows(images, arguments.columns))
        save_png(grid, arguments.out, SAMPLE_KEY, metadata | {"n": arguments.n})
    print(f"wrote {' and '.join(filter(None, (arguments.out, arguments.folder)))}", file=sys.stderr)
    return 0


def _check_outputs(arguments: argparse.Namespace, what: str) -> None:
    """Raises UserError unless `--out` or `--folder` is set and can be written."""
    if not arguments.out and not arguments.folder:
        raise UserError(f"name --out FILE for {what}, or --folder FOLDER for the images, or both")
    if arguments.out:
        arguments_lib.png(arguments.out, what)
    arguments_lib.check_outputs(out=arguments.out, folder=arguments.folder)


def _read_images(vq, paths: list[Path]) -> tuple[list[Path], list]:
    """Reads and preprocesses images; reports unreadable files on standard error and skips them."""
    from train_jax.data.images import BrokenSample

    readable, images = [], []
    for path in paths:
        try:
            images.append(vq.preprocess([path])[0])
            readable.append(path)
        except (BrokenSample, OSError) as error:
            message = str(error)
            print(f"skipped {message if message.startswith(str(path)) else f'{path}: {message}'}", file=sys.stderr)
    return readable, images


def _reconstruct(arguments: argparse.Namespace) -> int:
    from vqgan_jax.vqgan import load

    _check_outputs(arguments, "the sheet")
    return reconstruct(lambda: load(arguments.model, dtype=arguments.dtype), arguments)


def reconstruct(load: Callable, arguments: argparse.Namespace) -> int:
    """Runs `reconstruct` with the model that `load()` returns, which is called when the outputs are checked.

    Returns the exit code. Raises UserError if no image can be read.
    """
    import numpy as np

    from train_jax.pictures import PictureFolder, enlarged_grid
    from vqgan_jax.metrics import psnr

    paths = [Path(image) for image in arguments.images]
    if arguments.folder:
        files = _output_paths(Path(arguments.folder), [path.name for path in paths], "IMAGE")
        names = {path: file.name for path, file in zip(paths, files, strict=True)}
    vq, num_readable, rows, pictures = load(), 0, [], None
    if arguments.folder:
        metadata = {"model": vq.fingerprint, "dtype": vq.compute.dtype}
        pictures = PictureFolder(arguments.folder, RECONSTRUCT_KEY, metadata)
        inputs = {path: {"image": path.name, "image_sha256": _hash(path)} for path in paths}
        missing = [path for path in paths if not pictures.holds(names[path], **inputs[path])]
        if not arguments.out:  # the sheet needs all
            num_readable, paths = len(paths) - len(missing), missing
    for start in range(0, len(paths), _BATCH):
        readable, images = _read_images(vq, paths[start : start + _BATCH])
        if not images:
            continue
        reconstructions = vq.reconstruct(np.stack(images), _BATCH)
        for path, decibels in zip(readable, psnr(reconstructions, np.stack(images) / 255), strict=True):
            print(f"{decibels:6.2f} dB  {path}")
        reconstructions = np.round(255 * reconstructions).astype(np.uint8)
        if pictures is not None:
            for path, image in zip(readable, reconstructions, strict=True):
                pictures.save(image, names[path], **inputs[path])
        if arguments.out:
            rows += zip(images, reconstructions, strict=True)
        num_readable += len(readable)
    if not num_readable:
        raise UserError("no image can be read")
    if arguments.out:
        parts = (rows[start : start + _COLUMNS] for start in range(0, len(rows), _COLUMNS))
        enlarged_grid([list(row) for part in parts for row in zip(*part, strict=True)]).save(arguments.out)
    print(f"wrote {' and '.join(filter(None, (arguments.out, arguments.folder)))}", file=sys.stderr)
    return 0 if num_readable == len(arguments.images) else 2


def _hash(path: Path) -> str:
    """Hashes a file by SHA-256; "" for one that cannot be read, which is reported when it is used."""
    try:
        return hashlib.sha256(path.expanduser().read_bytes()).hexdigest()
    except OSError:
        return ""


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
        raise UserError(f"{folder}: no images ({' '.join(IMAGE_SUFFIXES)}) in it")
    vq = load(arguments.model, dtype=arguments.dtype)
    paths, codes = [], []
    with tqdm(total=len(files), unit="image", desc="encode") as bar:
        for start in range(0, len(files), _BATCH):
            chunk = files[start : start + _BATCH]
            readable, images = _read_images(vq, chunk)
            if readable:
                codes.append(vq.encode(np.stack(images), _BATCH))
                paths += [str(path.relative_to(folder)) for path in readable]
            bar.update(len(chunk))
    if not paths:
        raise UserError(f"{folder}: no image can be read")
    # NumPy would append .npz to a path, but not to an open file.
    with open(arguments.out, "wb") as file:
        np.savez_compressed(file, codes=np.concatenate(codes), paths=np.asarray(paths), fingerprint=vq.fingerprint)
    print(f"wrote {arguments.out}: {len(paths):,} image(s), {codes[0].shape[1]} x {codes[0].shape[2]} codes each")
    return 0 if len(paths) == len(files) else 2


def _decode(arguments: argparse.Namespace) -> int:
    import numpy as np

    from train_jax.data.files import read_arrays
    from train_jax.pictures import PictureFolder
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
            f"{paths.dtype} {list(paths.shape)}; expected integers [n, h, w] and n strings"
        )
    targets = _output_paths(out, [str(path) for path in paths], arguments.codes)
    vq = load(arguments.model, dtype=arguments.dtype)
    fingerprint = str(fingerprint)
    if fingerprint != vq.fingerprint:
        raise UserError(
            f"{arguments.codes} was made by a model of fingerprint {fingerprint[:16]}; {vq.name} has {vq.fingerprint[:16]}"
        )
    if codes.size and not 0 <= codes.min() <= codes.max() < vq.num_codes:
        raise UserError(f"{arguments.codes}: codes {codes.min()} to {codes.max()}; {vq.name} has 0 to {vq.num_codes - 1}")
    pictures = PictureFolder(out, DECODE_KEY, {"model": vq.fingerprint, "dtype": vq.compute.dtype})
    names = [str(target.relative_to(out)) for target in targets]
    digests = [hashlib.sha256(np.ascontiguousarray(row, np.int32)).hexdigest() for row in codes]
    missing = [i for i in range(len(codes)) if not pictures.holds(names[i], codes=digests[i])]
    for start in range(0, len(missing), _BATCH):
        indices = missing[start : start + _BATCH]
        for index, image in zip(indices, vq.decode_uint8(codes[indices], _BATCH), strict=True):
            pictures.save(image, names[index], codes=digests[index])
    print(f"wrote {len(codes):,} image(s) to {out}")
    return 0


def _output_paths(out: Path, paths: list[str], file: str) -> list[Path]:
    """Returns the output path of each image, with the suffix `.png`; if paths would collide, `.png` is appended instead.

    Raises UserError if a path in `file` leads out of the folder or is duplicated.
    """
    for path in paths:
        if "\0" in path or out.resolve() not in (out / path).resolve().parents:
            raise UserError(f"{file}: the path {path!r} leads out of {out}")
    targets = [(out / path).with_suffix(".png") for path in paths]
    if len(set(targets)) < len(targets):
        targets = [out / f"{path}.png" for path in paths]
    if len(set(targets)) < len(targets):
        duplicate = next(path for i, path in enumerate(paths) if targets[i] in targets[:i])
        raise UserError(f"{file}: the path {duplicate!r} occurs twice")
    return targets


if __name__ == "__main__":
    sys.exit(main())
