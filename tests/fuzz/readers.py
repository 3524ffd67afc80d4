"""Every reader of what users write, fed with damaged files: only the errors that the project names may come out.

    make fuzz [ARGS="--cases 10000 --seed 0 --reader csv"]

A case is one file of a reader's seeds, changed at random by its own generator `default_rng([seed, case])`, so that a failure
is repeated by its number. The first of each kind is printed, and then the exit code is 1.
"""

import argparse
import collections
import contextlib
import gzip
import io
import json
import logging
import pathlib
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save

from train_jax import config, metrics, paths, run_directory
from train_jax.data import files, folders, images, mixture, sources
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.sentencepiece import SentencePiece
from train_jax.data.tars import Tars, expand
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError, LoadError, UserError
from train_jax.weights.tensors import open_tensors
from vqgan_jax.guided import prompts

_ODD = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", b'"', b'""', b"'", b"\\", b"\\ud800", b"\n", b"\r\n",
    b"\r", b"\t", b",", b";", b"|", b":", b"^", b"{", b"}", b"[", b"]", b"null", b"NaN", b"-1", b"1e999", b"9" * 400, b"0",
    b"true", b"~", b"..", b"/", b"gs://", b"%", b"*", "\u2028😀".encode(), b"\x7f\xff\xff\xff", b"[" * 3000, b"a" * 300,
]  # fmt: skip
_VALUES = [None, True, -1, 0, 10**30, 1.5, np.nan, "", "a", "\ud800", "\0", [], [None], {}, {"a": 1}, [[1]], "x" * 5000]


def mutate(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One to four changes: bytes flipped, pieces cut out, doubled, exchanged, or odd ones put in; sometimes none."""
    for _ in range(rng.integers(0, 5)):
        a, b = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        b = min(b, a + int(rng.choice([1, 4, 16, 1000])))
        kind = rng.integers(6)
        if kind == 0 and data:
            data = bytes(x ^ int(rng.integers(256)) if a <= i < b else x for i, x in enumerate(data))
        elif kind == 1:
            data = data[:a] + data[b:]
        elif kind == 2:
            data = data[:b] + data[a:]
        elif kind == 3:
            data = data[:a]
        elif kind == 4:
            data = data[:a] + _ODD[rng.integers(len(_ODD))] + data[a:]
        else:
            other = others[rng.integers(len(others))]
            data = data[:a] + other[int(rng.integers(len(other) + 1)) :]
    return data


def mutate_json(value, rng: np.random.Generator, share: float = 0.2):
    """Values exchanged for odd ones, keys left out or renamed."""
    if rng.random() < share / 4:
        return _VALUES[rng.integers(len(_VALUES))]
    if isinstance(value, dict):
        changed = {key + "x" * (rng.random() < share / 8): mutate_json(x, rng, share) for key, x in value.items()}
        return {key: x for key, x in changed.items() if rng.random() > share / 8}
    if isinstance(value, list):
        return [mutate_json(x, rng, share) for x in value]
    return _VALUES[rng.integers(len(_VALUES))] if rng.random() < share else value


# ---------------------------------------------------------------------------------------------------------------------
# Readers: seeds, and what reads a file that was made of one


def picture(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((24, 16), 90).convert(mode).save(file, kind, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "what it shows"
    kinds = ("PNG", "JPEG", "TIFF", "WEBP")
    return [
        *(picture(kind, exif=exif) for kind in kinds),
        *(picture(kind) for kind in ("GIF", "BMP", "AVIF", "ICO", "PPM")),
        picture("PNG", "LA"), picture("PNG", "P"), picture("PNG", "I;16"), picture("TIFF", "F"), picture("JPEG", "CMYK"),
        picture("TIFF", compression="tiff_lzw"),
        picture("GIF", "P", save_all=True, append_images=[Image.new("P", (24, 16))]),
    ]  # fmt: skip


def read_picture(file: pathlib.Path) -> None:
    images.decode(file, max_pixels=10**6)
    images.Preprocess(8, "squash")(file.read_bytes())
    try:
        with Image.open(file) as opened:
            small = opened.width * opened.height < 10**6
            if small:
                images.Preprocess(8)(opened)
    except (BrokenSample, DataError):
        raise
    except Exception:  # what Pillow itself does not open is no business of ours
        return


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


_SAMPLE = {"a.png": picture("PNG"), "a.json": b'{"caption": "a", "label": 3}', "b.jpg": picture("JPEG"), "b.txt": b"b"}


def read_tar(file: pathlib.Path) -> None:
    pathlib.Path(f"{file}.index.npy").unlink(missing_ok=True)
    tars = Tars(str(file))
    for number in range(len(tars)):
        try:
            images.decode(tars[number]["image"], max_pixels=10**6)
        except BrokenSample:
            continue


def read_member(file: pathlib.Path) -> None:
    """One sample whose caption, object and label are all these bytes."""
    data = file.read_bytes()
    for members in ({"a.json": data}, {"a.txt": data}, {"a.txt": b"a", "a.cls": data}):
        file.write_bytes(tar({"a.png": picture("PNG")} | members))
        read_tar(file)


def read_row_table(file: pathlib.Path) -> None:
    folders.read_table(file)


def weights(kind: str) -> bytes:
    arrays = {"a.weight": np.ones((2, 3), np.float32), "b": np.arange(4), "half": np.ones(2, np.float16)}
    if kind == "safetensors":
        return save(arrays)
    file = io.BytesIO()
    if kind == "npz":
        np.savez(file, **arrays)
    else:  # as torch.save writes it
        pickled = (
            b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03ctorch\n"
            b"FloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00K\x02K\x03\x86q\x08K\x03K\x01\x86q"
            b"\t\x89ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs."
        )
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/byteorder", "little")
            archive.writestr("a/data/0", np.ones(6, np.float32).tobytes())
    return file.getvalue()


def read_weights(file: pathlib.Path) -> None:
    for tensor in open_tensors(file).values():
        tensor.load()


def read_arrays(file: pathlib.Path) -> None:
    """What codes, states of paintings and aesthetic heads are read by; their readers put its ValueError into their words."""
    with contextlib.suppress(ValueError):
        files.read_arrays(file, ("a.weight", "b", "half"))


_CONFIG = {
    "task": "clip_jax.task", "steps": 10, "data": {"source": "shapes", "batch_size": 8, "templates": ["a {}."]},
    "optim": {"lr": 0.1, "schedule": "cosine", "args": {"b2": 0.9}, "freeze": ["x"], "players": {"clip": {"lr": 0.1}}},
    "evals": {"a": {"type": "zero_shot", "every": 5}}, "model": {"embed_dim": 8, "vision": {"layers": 2}},
    "ema": {"decay": 0.9},
}  # fmt: skip


def read_config(file: pathlib.Path) -> None:
    with file.open("rb") as opened:
        try:
            value = json.load(opened)
        except (ValueError, RecursionError):
            return  # configs are Python
    if isinstance(value, dict):
        try:
            made = ConfigDict(value)
        except Exception:  # what no Python file can make either
            return
        config.resolve(made)


def read_run(file: pathlib.Path) -> None:
    folder = file.parent / "run"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "artifacts.json", "preprocess.json", "metrics.jsonl"):
        (folder / name).write_bytes(file.read_bytes())
    for read in (
        lambda: run_directory.open_config(folder, "clip_jax.task", "a CLIP", ("preprocess.json",)),
        lambda: images.Preprocess.from_json((folder / "preprocess.json").read_text("utf-8")),
        lambda: metrics.read(folder),
    ):
        try:
            read()
        except (LoadError, DataError, UnicodeDecodeError):
            continue


def read_name(file: pathlib.Path) -> None:
    """Names of sources, splits, patterns, mixtures and paths, and prompts."""
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    folder = file.parent / "pictures"
    if not folder.exists():
        folder.mkdir()
        (folder / "a.png").write_bytes(picture("PNG"))
        (folder / "a.txt").write_text("a")
    for read in (
        lambda: sources.open_source(f"folder:{folder}", text),
        lambda: sources.open_source(text.replace("shapes", "").replace("digits", "").replace("tfds", ""), "all"),
        lambda: mixture.Mixed([[1, 2], [3]], [weight for weight, _ in (mixture.parse(text) * 2)[:2]]),
        lambda: expand(text) if text.count("..") < 2 else None,
        lambda: paths.path(text),
        lambda: prompts.parse(text),
        lambda: folders.read_table(file.parent / "captions.tsv"),
    ):
        try:
            read()
        except (ConfigError, DataError, UserError):
            continue


_TABLE = [
    b'file,caption\na.png,red\nb.png,"blue, ""deep"""\n', b"file;caption\r\na.png;red\r\n",
    b"file_name\ttext\na.png\t\"red\n",
    'file,caption\nä.png,größe\n'.encode("utf-16"),
]  # fmt: skip
_LINES = [
    b'{"file": "a.png", "caption": "red"}\n{"file_name": "b.png", "captions": ["x", null]}\n',
    json.dumps({"image": "a.png", "captions": [{"text": "a"}]}).encode(),
]
_MEMBERS = [b'{"captions": ["a", {"text": "b"}], "label": 3}', b"a red star\n", b"17\n"]
_NAMES = [
    b"all[:90%]", b"train[10:]", b"3 shapes/64 | 1 folder:a", b"webdataset:a/{000..009}.tar", b"folder:/tmp/*", b"gs://b/run",
    b"~/run", b"a red star:1.5:-0.2 | noise=3:-1 ^ image=a\\=b.png", b"a.tar{a,b}",
]  # fmt: skip
_RUN = [
    json.dumps({"task": "clip_jax.task", "model": {}}).encode(), b'{"preprocess.json": "0123"}',
    images.Preprocess(8).to_json().encode(), b'{"step": 1, "loss": "nan"}\n{"step": 2, "loss": 0.5}\n',
]  # fmt: skip


def tokenizer_json() -> bytes:
    return Tokenizer.train(["a red star", "a blue circle"], 530, 16).to_json().encode()


def spiece() -> bytes:
    """A SentencePiece model of few pieces, in Protocol Buffers."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2, len(value)]) + value

    pieces = [(b"<unk>", 2), (b"</s>", 3), ("▁a".encode(), 1), (b"b", 1)]
    scored = ((piece, np.float32(-n).tobytes(), kind) for n, (piece, kind) in enumerate(pieces))
    return b"".join(field(1, field(1, piece) + b"\x15" + score + field(3, kind)) for piece, score, kind in scored)


def read_tokenizer(file: pathlib.Path) -> None:
    for load in (Tokenizer.load, SentencePiece.load, Tokenizer.from_merges):
        try:
            load(file, 16).encode(["a red ☃", "\ud800"])
        except ValueError as error:  # which the loaders of models put into their own words
            if "tokenizer" not in str(error) and "vocabulary" not in str(error) and str(file) not in str(error):
                raise


def read_spiece(file: pathlib.Path) -> None:
    folder = file.parent / "siglip"
    folder.mkdir(exist_ok=True)
    (folder / "spiece.model").write_bytes(file.read_bytes())
    try:
        SentencePiece.load(folder, 8).encode(["a b"])
    except ValueError as error:
        if str(folder) not in str(error):
            raise


# name -> (suffix of its files, seeds, reader, whether they are also changed as JSON)
READERS: dict[str, tuple[str, Callable[[], list[bytes]], Callable, bool]] = {
    "pictures": (".png", pictures, read_picture, False),
    "csv": (".csv", lambda: _TABLE, read_row_table, False),
    "tsv": (".tsv", lambda: _TABLE, read_row_table, False),
    "jsonl": (".jsonl", lambda: _LINES, read_row_table, True),
    "text": (".txt", lambda: _TABLE + _NAMES, files.read_lines, False),
    "tars": (".tar", lambda: [tar(_SAMPLE)], read_tar, False),
    "members": (".tar", lambda: _MEMBERS, read_member, True),
    "safetensors": (".safetensors", lambda: [weights("safetensors")], read_weights, False),
    "npz": (".npz", lambda: [weights("npz")], read_weights, False),
    "arrays": (".npz", lambda: [weights("npz")], read_arrays, False),
    "pt": (".pt", lambda: [weights("pt")], read_weights, False),
    "configs": (".json", lambda: [json.dumps(_CONFIG).encode()], read_config, True),
    "runs": (".json", lambda: _RUN, read_run, True),
    "names": (".txt", lambda: _NAMES, read_name, False),
    "tokenizers": (".json", lambda: [tokenizer_json(), gzip.compress(b"#version\na b\nab c</w>\n")], read_tokenizer, False),
    "spiece": (".model", lambda: [spiece()], read_spiece, False),
}
NAMED = (BrokenSample, DataError, ConfigError, LoadError, UserError)


def fuzz(cases: int, seed: int = 0, only: str | None = None) -> dict[str, list[str]]:
    """Runs the cases, in turn for each reader; returns, by reader, one traceback for each place that raised otherwise."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    seeds = {name: make() for name, (_, make, _, _) in READERS.items() if only in (None, name)}
    failures: dict[str, dict[str, str]] = collections.defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        for case in range(cases):
            rng = np.random.default_rng([seed, case])
            name = list(seeds)[case % len(seeds)]
            suffix, _, read, is_json = READERS[name]
            data = seeds[name][rng.integers(len(seeds[name]))]
            if is_json and rng.random() < 0.7:
                with contextlib.suppress(ValueError):  # of several lines
                    data = json.dumps(mutate_json(json.loads(data), rng)).encode()
            data = mutate(data, seeds[name], rng) if not is_json or rng.random() < 0.5 else data
            file = pathlib.Path(folder) / f"captions{suffix}"
            file.write_bytes(data)
            try:
                read(file)
            except NAMED:
                continue
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                said = f"case {case} of seed {seed}: {data[:200]!r}\n{''.join(traceback.format_exception(error)[-6:])}"
                failures[name].setdefault(f"{type(error).__name__} {place.filename}:{place.lineno}", said)
    logging.disable(logging.NOTSET)
    return {name: list(errors.values()) for name, errors in failures.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=list(READERS))
    arguments = parser.parse_args()
    failures = fuzz(arguments.cases, arguments.seed, arguments.reader)
    for name, errors in failures.items():
        print(f"== {name}: {len(errors)} kind(s) of unnamed errors", *errors, sep="\n")
    print(f"{arguments.cases:,} cases, {sum(map(len, failures.values()))} kinds of unnamed errors")
    sys.exit(bool(failures))
