"""Named collections of captioned images with random access, whatever they are stored in.

    shapes[/SIZE]        rendered scenes with true captions (train, test, novel); needs no download
    digits               scikit-learn's scanned digits (train, test); needs no download
    tfds:NAME[/CONFIG]   any TFDS data set that has images; labels become captions by templates
    folder:PATH          images with captions.jsonl | .csv | .tsv, or a .txt beside each image
    webdataset:PATH      tars of images and captions; {000..099} in the path counts, {a,b} lists, * matches
    3 SOURCE | 1 SOURCE  several of them, drawn by weight

A record is a dict: `image` (the bytes of an image file), `captions` (one or more), `id`, and where they are known
`label` (int, -1 for none) and `scene` (the truth about a rendered scene, as JSON).
"""

import csv
import dataclasses
import importlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from train_jax.data import mixture
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.tars import Tars

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
DEFAULT_TEMPLATES = ("a photo of a {}.",)
_EMBEDDED = ("shapes", "digits")
_CAPTION_FILES = ("captions.jsonl", "captions.csv", "captions.tsv")


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection of records.

    Attributes:
      name: as it was asked for, with the split.
      records: anything with `len` and `[i]` that gives records; reading one may raise BrokenSample.
      label_names: name of each class, or None where records have no labels.
      is_true: `(caption, record) -> bool`, the ground truth about any caption, or None where only a record's own
        captions are known to be true.
      read: `(uint8 [size, size, 3]) -> what the picture shows`, to be compared, or None where no program can tell.
      shows: `(uint8 [size, size, 3], caption) -> whether the caption is true of what the picture shows`, or None.
    """

    name: str
    records: Sequence  # of mappings; naming them here would let type checkers read one
    label_names: tuple[str, ...] | None = None
    is_true: Callable[[str, Mapping], bool] | None = None
    read: Callable[[np.ndarray], object] | None = None
    shows: Callable[[np.ndarray, str], bool] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Mapping:
        return self.records[index]

    def described(self, index: int) -> Mapping:
        """A record without its picture, whose bytes are not read where they lie apart from the rest."""
        record = getattr(self.records, "described", self.records.__getitem__)(index)
        return {key: value for key, value in record.items() if key != "image"}


def open_source(
    name: str, split: str, *, data_dir: str | None = None, templates: Sequence[str] | None = None
) -> Source:
    """The source that `name` and `split` stand for.

    Args:
      name: one of the forms at the top of this file.
      split: such as "train"; TFDS's slices ("train[:90%]") work for TFDS sets and the embedded ones. A folder has no
        splits of its own, nor have tars: it is "all", or a slice of it ("all[:90%]"); "train" means all of it.
      data_dir: where TFDS keeps data sets; None: its own default.
      templates: captions made of a label, `{}` standing for its name.

    Raises DataError for an unknown name, an unknown split, or a source without records.
    """
    if mixture.SEPARATOR in name:
        return _mixed(name, split, data_dir=data_dir, templates=templates)
    kind, _, rest = name.partition(":")
    templates = tuple(templates or DEFAULT_TEMPLATES)
    if kind == "folder" and rest:
        source = _folder(Path(rest), split)
    elif kind == "webdataset" and rest:
        source = _webdataset(rest, split)
    elif kind == "tfds" and rest:
        source = _tfds(rest, split, data_dir, templates)
    elif name.split("/")[0] in _EMBEDDED:
        source = _embedded(name, split, data_dir)
    else:
        raise DataError(
            f"there is no source {name!r}: name one as shapes, shapes/SIZE, digits, folder:PATH, webdataset:PATH or "
            "tfds:NAME[/CONFIG]"
        )
    if not len(source):
        raise DataError(f"{source.name}: no records")
    return source


def _mixed(name: str, split: str, **options) -> Source:
    weights, names = zip(*mixture.parse(name), strict=True)
    parts = [open_source(part, split, **options) for part in names]
    truths = [(p.label_names, p.is_true, p.read, p.shows) for p in parts]
    truth = truths[0] if truths.count(truths[0]) == len(parts) else ()
    return Source(f"{name}:{split}", mixture.Mixed(parts, weights), *truth)


# ---------------------------------------------------------------------------------------------------------------------
# Embedded sets and TFDS


def _embedded(name: str, split: str, data_dir: str | None) -> Source:
    family, _, variant = name.partition("/")
    module = importlib.import_module(f"train_jax.data.{family}")
    try:
        builder = module.builder(variant, data_dir=data_dir) if variant else module.builder(data_dir=data_dir)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    rows = _data_source(builder, name, split, "image")

    def record(row) -> dict:
        found = {
            "image": row["image"],
            "captions": [caption.decode() for caption in row["captions"]],
            "id": row["id"].decode(),
            "label": int(row["label"]),
        }
        return found | ({"scene": row["scene"].decode()} if "scene" in row else {})

    return Source(
        f"{name}:{split}",
        _Mapped(rows, record),
        module.LABEL_NAMES,
        getattr(module, "is_true", None),
        getattr(module, "read", None),
        getattr(module, "shows", None),
    )


def _tfds(name: str, split: str, data_dir: str | None, templates: Sequence[str]) -> Source:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        # The message goes on with a list of all data sets.
        raise DataError(f"tfds:{name}: TFDS knows no such data set ({str(error).strip().splitlines()[0]})") from error
    except ValueError as error:
        raise DataError(f"tfds:{name}: {error}") from error
    features = builder.info.features
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    captions = [key for key in features if key in ("captions", "caption", "text")]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if not images or not (captions or labels):
        raise DataError(f"tfds:{name}: needs an image and captions or a label; its features are {', '.join(features)}")
    names = tuple(name.replace("_", " ") for name in features[labels[0]].names) if labels else None
    if not builder.is_prepared():
        # Reads with no TensorFlow need ArrayRecord files.
        builder.download_and_prepare(file_format="array_record")
    rows = _data_source(builder, f"tfds:{name}", split, images[0])

    def record(row) -> dict:
        label = int(row[labels[0]]) if labels else -1
        if captions:
            texts = _texts(row[captions[0]])
        elif label < 0:  # how TFDS marks examples whose class is kept secret
            raise BrokenSample(f"tfds:{name}:{split}: an example without a label, of which to make a caption")
        else:
            texts = [template.format(names[label]) for template in templates]
        return {"image": row[images[0]], "captions": texts, "label": label}

    return Source(f"tfds:{name}:{split}", _Mapped(rows, record), names)


def _data_source(builder, name: str, split: str, image: str):
    import tensorflow_datasets as tfds

    try:
        # Files stay files: decoding is done, and its failures are counted, where examples are made.
        return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise DataError(f"{name} has no split {split!r}: {', '.join(builder.info.splits) or 'none'}") from error


def _texts(value) -> list[str]:
    """Captions in TFDS's shapes: one string, a list of strings, or a list of dicts with a text inside."""
    if isinstance(value, Mapping):
        value = value.get("text", value.get("raw", []))
    items = [value] if isinstance(value, (str, bytes)) else list(np.ravel(np.asarray(value, dtype=object)))
    items = [item["text"] if isinstance(item, Mapping) else item for item in items]
    return [item.decode() if isinstance(item, bytes) else str(item) for item in items]


class _Mapped(Sequence):
    """A sequence whose items are made by a function when they are asked for; ids count where there are none."""

    def __init__(self, rows, function: Callable, described: Callable | None = None):
        self._rows, self._function, self._described = rows, function, described or function

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return self._made(index, self._function)

    def described(self, index: int) -> dict:
        """Item number `index` without its picture, where that can be made without reading it."""
        return self._made(index, self._described)

    def _made(self, index: int, function: Callable) -> dict:
        place = range(len(self._rows))[index]  # IndexError at the end, which TFDS does not raise
        return {"id": str(place)} | function(self._rows[place])


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def _folder(path: Path, split: str) -> Source:
    if not path.is_dir():
        raise DataError(f"folder:{path}: there is no such folder")
    tables = [path / file for file in _CAPTION_FILES if (path / file).is_file()]
    if len(tables) > 1:
        raise DataError(f"folder:{path}: keep one of {', '.join(table.name for table in tables)}")
    try:
        captions = _read_table(tables[0]) if tables else _read_neighbours(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{tables[0]}: {error}") from error
    missing = [name for name in captions if not (path / name).is_file()]
    for name in missing[:5]:
        log.warning("folder:%s: %s has a caption and no image", path, name)
    if missing:
        log.warning("folder:%s: %d caption(s) without an image are left out", path, len(missing))
    images = {str(p.relative_to(path)) for p in _images_below(path)}
    silent = sorted(images - {str(Path(name)) for name in captions})
    if silent:
        log.warning(
            "folder:%s: %d image(s) without a caption are left out: %s%s",
            path, len(silent), ", ".join(silent[:5]), ", …" if len(silent) > 5 else "",
        )  # fmt: skip
    names = sorted(set(captions) - set(missing))
    if not names:
        raise DataError(
            f"folder:{path}: no image with a caption ({len(images)} image(s) found). Captions stand in one of "
            f"{', '.join(_CAPTION_FILES)} (columns file, caption), or in a .txt beside each image"
        )

    def described(name: str) -> dict:
        return {"captions": captions[name], "id": name}

    def record(name: str) -> dict:
        try:
            return {"image": (path / name).read_bytes()} | described(name)
        except OSError as error:
            raise BrokenSample(f"{name}: {error}") from error

    return Source(f"folder:{path}:{split}", _Mapped(_slice(names, split, f"folder:{path}"), record, described))


def _images_below(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def _read_table(table: Path) -> dict[str, list[str]]:
    """File name -> captions; several rows for one image are several captions."""
    found: dict[str, list[str]] = {}
    with table.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a mark
        if table.suffix == ".jsonl":
            rows = ((n, _json_row(line, table, n)) for n, line in enumerate(file, 1) if line.strip())
        else:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",")
            rows = ((reader.line_num, row) for row in reader)
        for number, row in rows:
            name = row.get("file") or row.get("file_name") or row.get("image") or row.get("filepath")
            texts = row.get("captions") or row.get("caption") or row.get("title") or row.get("text")
            texts = texts if isinstance(texts, list) else [texts]
            texts = [text for text in texts if isinstance(text, str) and text.strip()]
            if not name or not isinstance(name, str):
                raise DataError(f"{table}, line {number}: no file name; name the columns 'file' and 'caption'")
            if None in row:  # where csv puts what is left over
                raise DataError(
                    f"{table}, line {number}: more fields than columns; put a caption with commas in quotes"
                )
            if not texts:
                log.warning("%s, line %d: %s has no caption and is left out", table, number, name)
                continue
            found.setdefault(name, []).extend(texts)
    return found


def _json_row(line: str, table: Path, number: int) -> Mapping:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{table}, line {number}: not JSON ({error})") from error
    if not isinstance(row, Mapping):
        raise DataError(f"{table}, line {number}: must be an object with 'file' and 'caption'")
    return row


def _read_neighbours(path: Path) -> dict[str, list[str]]:
    """Captions in text files beside the images, one a line."""
    found = {}
    for image in _images_below(path):
        text = image.with_suffix(".txt")
        lines = text.read_text("utf-8-sig", errors="replace").splitlines() if text.is_file() else []
        lines = [line.strip() for line in lines if line.strip()]
        if lines:
            found[str(image.relative_to(path))] = lines
    return found


def _webdataset(pattern: str, split: str) -> Source:
    tars = Tars(pattern)
    places = _slice(range(len(tars)), split, f"webdataset:{pattern}")
    return Source(f"webdataset:{pattern}:{split}", _Mapped(places, tars.__getitem__, tars.described))


def _slice(names: Sequence, split: str, where: str) -> list:
    """`all`, `train`, or a slice of them such as `all[:90%]`, `train[100:]`."""
    base, bracket, rest = split.partition("[")
    bounds = rest.rstrip("]").split(":") if bracket else ["", ""]
    if base not in ("all", "train") or len(bounds) != 2 or (bracket and not rest.endswith("]")):
        raise DataError(f"{where} has no split {split!r}: write 'all', or a slice of it such as 'all[:90%]'")

    def place(bound: str, default: int) -> int:
        if not bound:
            return default
        try:
            return round(len(names) * float(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
        except ValueError:
            raise DataError(f"{where}: {bound!r} in split {split!r} is no number and no percentage") from None

    # Files are sorted by name, and names often tell the class: cut a shuffled list, the same on every host.
    order = np.random.default_rng(0).permutation(len(names))[place(bounds[0], 0) : place(bounds[1], len(names))]
    return [names[i] for i in sorted(order)]
