"""Named sources of captioned images with random access.

    shapes[/SIZE]        rendered scenes with true captions (train, test, novel); needs no download
    digits               scikit-learn's scanned digits (train, test); needs no download
    emoji/SIZE           emoji of five artists (train, artist, pairs, compositions); see `train_jax.datasets.emoji`
    tfds:NAME[/CONFIG]   any TFDS data set that has images; labels become captions by templates
    folder:PATH          images with captions.jsonl | .csv | .tsv, metadata.jsonl, or a .txt beside each image
    webdataset:PATH      tars of images and captions; {000..099} in the path counts, {a,b} lists, * matches
    SOURCE where A=x     the records whose field A is x; further conditions follow `and`
    3 SOURCE | 1 SOURCE  a mixture of sources with weights

A record is a dict: `image` (the bytes of an image file), `captions` (one or more), `id`, and optionally `label` (int, -1
for none), `scene` (description of a rendered scene, as JSON), and other fields of an embedded set.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from train_jax import paths
from train_jax.data import builders, files, folders, images, mixture, splits
from train_jax.data import captions as caption_lib
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.subset import Subset
from train_jax.data.tars import Tars

log = logging.getLogger(__name__)

DEFAULT_TEMPLATES = ("a photo of a {}.",)
_MAX_CHUNK = 1024  # records that a thread checks at a time
_FINGERPRINTED = 32  # records that a fingerprint reads
_MIN_CHUNKS = 256  # number of chunks of a smaller source, so that threads end at about the same time
_FORMS = ("shapes", "shapes/SIZE", "digits", "emoji/SIZE", "folder:PATH", "webdataset:PATH", "tfds:NAME[/CONFIG]")


@dataclasses.dataclass(frozen=True)
class Source(Sequence):
    """Sequence of records.

    Attributes:
      name: name and split of the source.
      records: sequence of records; reading a record may raise BrokenSample.
      label_names: names of the classes; None if records have no labels.
      is_true: `(caption, record) -> bool`, whether a caption is true of a record; None if only the captions of the record
        itself are known to be true.
      read: `(uint8 [size, size, 3]) -> content`, a recogniser whose results can be compared; None if there is none.
      judge: `(uint8 [size, size, 3], caption) -> {part: bool}`, which parts of a caption an image shows, such as colours;
        the part "correct" is all that the caption says. None if unknown.
      reader_accuracy: how often the reader is right on pictures of a kind that it does not know, for each part that it
        tells; empty: no mistakes are known. Evaluators report it beside what they measure by `read` and `judge`.
      shard_starts: index of the first record of each tar, and the number of records, int64 [tars + 1]; None if there are
        no tars.
      version: function that returns a text that changes whenever a record does, without reading images: captions, and sizes
        and times of files; None: the name tells.
    """

    name: str
    records: Sequence  # of mappings; an annotated element type would make runtime type checkers read a record
    label_names: tuple[str, ...] | None = None
    is_true: Callable[[str, Mapping], bool] | None = None
    read: Callable[[np.ndarray], object] | None = None
    judge: Callable[[np.ndarray, str], Mapping[str, bool]] | None = None
    reader_accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shard_starts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    version: Callable[[], str] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Mapping:
        return self.records[index]

    def metadata(self, index: int) -> Mapping:
        """Returns a record without its image; avoids reading the image if it is stored separately."""
        record = getattr(self.records, "metadata", self.records.__getitem__)(index)
        return {key: value for key, value in record.items() if key != "image"}

    def check_reader(self, size: int) -> None:
        """Raises DataError if `read` cannot read images of `size` x `size` pixels, before any are made."""
        if self.read is not None:
            try:
                self.read(np.full((size, size, 3), 255, np.uint8))
            except ValueError as error:
                raise DataError(f"{self.name}: {error}") from error

    def reader_metrics(self) -> dict[str, float]:
        """Returns the accuracies of the reader as metrics, for evaluators that use it."""
        return {f"reader_accuracy/{part}": share for part, share in self.reader_accuracy.items()}


def from_config(data, name: str = "", split: str = "") -> Source:
    """Opens the source of the options `data`, or another name and split with the same data directory and templates."""
    options = {"data_dir": data.data_dir or None, "templates": tuple(data.templates) or None}
    return open_source(name or data.source, split or data.split, **options)


def open_source(
    name: str, split: str, *, data_dir: str | None = None, templates: Sequence[str] | None = None
) -> Source:
    """Opens a source by name and split.

    Args:
      name: one of the forms at the top of this file.
      split: split such as "train". TFDS and embedded sets accept TFDS's slices ("train[:90%]"). Folders and tars have only
        the split "all" (alias "train") and its slices ("all[:90%]").
      data_dir: directory of TFDS data sets; None: the default of TFDS.
      templates: caption templates for labels, with `{}` for the label's name.

    Raises DataError for an unknown name, an unknown split, or a source without records.
    """
    if mixture.SEPARATOR in name:
        return _open_mixture(name, split, data_dir=data_dir, templates=templates)
    name, where = mixture.split_conditions(name)
    if where:
        return select(open_source(name, split, data_dir=data_dir, templates=templates), where)
    kind, _, rest = name.partition(":")
    templates = tuple(templates or DEFAULT_TEMPLATES)
    for template in templates:
        if "{}" not in template:
            raise DataError(f"template {template!r} has no {{}}: write {{}} for the label, as in 'a photo of a {{}}.'")
    data_dir = data_dir and os.fspath(paths.path(data_dir))
    if rest and kind in SOURCES:
        source = SOURCES[kind](rest, split, data_dir, templates)
    elif name.split("/")[0] in builders.EMBEDDED:
        source = _open_embedded(name, split, data_dir)
    else:
        raise DataError(
            f"there is no source {name!r}: name one as {', '.join(_FORMS)}"
            + "".join(f", {kind}:…" for kind in SOURCES if not any(form.startswith(f"{kind}:") for form in _FORMS))
        )
    if not len(source):
        raise DataError(f"{source.name}: no records")
    return source


def select_readable(source: Source, max_broken: float) -> Source:
    """Selects the records whose images can be decoded, by decoding every image once.

    Evaluations need this, since they must know their records in advance. Raises DataError if the share of unreadable images
    exceeds `max_broken`.
    """

    readable = np.ones(len(source), bool)

    def find_errors(indices: range) -> list[str]:
        errors = []
        for index in indices:
            try:
                images.decode(source[index]["image"])
            except BrokenSample as error:
                readable[index] = False
                errors.append(str(error) or "unreadable")
        return errors

    # A future of each record would take 1.6 kB.
    size = min(_MAX_CHUNK, -(-len(source) // _MIN_CHUNKS))
    chunks = [range(start, min(start + size, len(source))) for start in range(0, len(source), size)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        broken = list(itertools.chain.from_iterable(pool.map(find_errors, chunks)))
    indices = splits.Selection(readable)
    if len(broken) > max_broken * len(source) or not len(indices):
        limit = (
            f"more than config.data.max_broken_eval = {max_broken:.1%}" if len(indices) else "none is left to evaluate"
        )
        raise DataError(
            f"{source.name}: {len(broken)} of {len(source)} images cannot be read, {limit}; the first: "
            f"{'; '.join(broken[:3])}"
        )
    if broken:
        log.warning("%s: evaluated without %d image(s) that cannot be read: %s", source.name, len(broken), broken[0])
    name = f"{source.name}, {len(indices)} readable" if broken else source.name
    return _take(source, indices, name)


def select(source: Source, where: Sequence[str]) -> Source:
    """Selects the records that meet all of the conditions.

    Args:
      where: conditions `FIELD=VALUE`: the field, as text, equals the value, or a list contains it; `tone=` selects records
        with an empty tone. Records that cannot be read meet none.

    Raises DataError for a condition without `=`, a field that a record lacks, and conditions that no record meets.
    """
    conditions = []
    for text in where:
        field, equals, value = text.partition("=")
        if not field.strip() or not equals:
            raise DataError(f"where = {text!r}: a condition is FIELD=VALUE, such as artist=noto")
        conditions.append((field.strip(), value.strip()))
    meets, broken = np.zeros(len(source), bool), []
    for index in range(len(source)):
        try:
            record = source.metadata(index)
        except BrokenSample as error:
            broken.append(str(error))
            continue
        fields = [get_field(source, record, field, "where") for field, _ in conditions]
        meets[index] = all(_equals(field, value) for field, (_, value) in zip(fields, conditions, strict=True))
    if broken:
        log.warning("%s: %d record(s) that cannot be read meet no condition: %s", source.name, len(broken), broken[0])
    if not meets.any():
        raise DataError(f"{source.name}: no record with {' and '.join(where)}")
    return _take(source, splits.Selection(meets), f"{source.name} with {' and '.join(where)}")


def get_field(source: Source, record: Mapping, field: str, option: str):
    """Returns a field of a record. Raises DataError, which names the option that asks for it, if there is none."""
    if field not in record:
        raise DataError(f"{source.name}: there is no field {field!r} for {option}; there are {', '.join(record)}")
    return record[field]


def _equals(field, value: str) -> bool:
    """Returns whether a field of a record, as text, is a value, or a list that contains it."""
    return value in map(str, field) if isinstance(field, list | tuple) else str(field) == value


def _take(source: Source, indices: Sequence[int], name: str) -> Source:
    """Returns a source of some records of another, whose positions are `indices`."""
    return dataclasses.replace(source, name=name, records=Subset(source, indices), shard_starts=None)


def compute_fingerprint(source: Source) -> str:
    """Computes a hexadecimal SHA-256 of name, length and version of a source and of a sample of its records.

    Results and features of a source are kept under it: a changed folder is another source.
    """
    digest = hashlib.sha256(f"{source.name} {len(source)} {source.version() if source.version else ''}".encode())
    for index in np.unique(np.linspace(0, len(source) - 1, _FINGERPRINTED).astype(int)):
        try:
            record = dict(source[int(index)])
            image = record.pop("image")
        except BrokenSample as error:
            record, image = {"error": str(error)}, b""
        digest.update(json.dumps(record, sort_keys=True, default=str).encode() + hashlib.sha256(image).digest())
    return digest.hexdigest()


def _open_mixture(name: str, split: str, **options) -> Source:
    """Opens a mixture of sources. Labels and truth functions are kept only if all parts share them."""
    weights, names = zip(*mixture.parse(name), strict=True)
    parts = [open_source(part, split, **options) for part in names]
    truths = [(p.label_names, p.is_true, p.read, p.judge, p.reader_accuracy) for p in parts]
    truth = truths[0] if truths.count(truths[0]) == len(parts) else ()
    version = functools.partial(_join_versions, parts)
    return Source(f"{name}:{split}", mixture.Mixed(parts, weights), *truth, version=version)


def _join_versions(parts: Sequence[Source]) -> str:
    return " | ".join(part.version() if part.version else part.name for part in parts)


# ---------------------------------------------------------------------------------------------------------------------
# Embedded sets and TFDS


def _open_embedded(name: str, split: str, data_dir: str | None) -> Source:
    """Opens an embedded data set, such as `shapes[/SIZE]` or `digits`."""
    module, builder = builders.open_embedded(name, data_dir)
    rows = _open_data_source(builder, name, split, "image")
    version = functools.partial(str, builder.info.full_name)
    return Source(f"{name}:{split}", _Mapped(rows, _decode_texts), **module.truth(builder), version=version)


def _decode_texts(row: Mapping) -> dict:
    """Makes the record of a row of an embedded data set."""
    return {key: _decode_text(value) if key != "image" else value for key, value in row.items()}


def _decode_text(value):
    """Converts a value of TFDS to Python: bytes to a string, an array to a list, a NumPy integer to an integer."""
    if isinstance(value, bytes):
        return value.decode()
    return [_decode_text(item) for item in value] if isinstance(value, np.ndarray | list) else int(value)


def _open_tfds(name: str, split: str, data_dir: str | None, templates: Sequence[str]) -> Source:
    """Opens a TFDS data set; prepares its files on first use."""
    builder = builders.open_tfds(name, data_dir)
    pictures, captions, labels = builders.columns(builder)
    names = tuple(x.replace("_", " ") for x in builder.info.features[labels[0]].names) if labels else None
    rows = _open_data_source(builder, f"tfds:{name}", split, pictures[0])

    def record(row) -> dict:
        label = int(row[labels[0]]) if labels else -1
        if captions:
            texts = _extract_captions(row[captions[0]], f"tfds:{name}:{split}")
        elif label < 0:  # TFDS's marker of unpublished labels
            raise BrokenSample(f"tfds:{name}:{split}: an example without a label, so no caption can be made")
        else:
            texts = [template.replace("{}", names[label]) for template in templates]
        return {"image": row[pictures[0]], "captions": texts, "label": label}

    version = functools.partial(str, builder.info.full_name)
    return Source(f"tfds:{name}:{split}", _Mapped(rows, record), names, version=version)


def _extract_captions(value, source_name: str) -> list[str]:
    """Extracts the captions of a TFDS example. Raises BrokenSample if there are none."""
    try:
        texts = caption_lib.extract_captions(value)
    except ValueError as error:
        raise BrokenSample(f"{source_name}: {error}") from error
    if not texts:
        raise BrokenSample(f"{source_name}: an example without a caption")
    return texts


def _open_data_source(builder, name: str, split: str, image: str):
    """Opens a split of a TFDS builder with undecoded images. Raises DataError for an unknown split."""
    import tensorflow_datasets as tfds

    try:
        # Images stay encoded: examples decode them and count failures.
        return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise splits.unknown_split_error(name, split, ", ".join(builder.info.splits) or "none") from error
    except NotImplementedError as error:
        raise DataError(f"{name}: {error}; prepare it again with file_format='array_record'") from error


class _Mapped(Sequence):
    """Lazy sequence that applies a function to an item on access. The default `id` of a record is its index."""

    def __init__(self, rows, function: Callable, metadata: Callable | None = None):
        self._rows, self._function, self._metadata = rows, function, metadata or function

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return self._make(index, self._function)

    def metadata(self, index: int) -> dict:
        """Returns the item at `index` without its image, if possible without reading the image."""
        return self._make(index, self._metadata)

    def _make(self, index: int, function: Callable) -> dict:
        """Applies `function` to the item at `index` and adds the default id."""
        position = range(len(self._rows))[index]  # IndexError at the end, which TFDS does not raise
        return {"id": str(position)} | function(self._rows[position])


# ---------------------------------------------------------------------------------------------------------------------
# Folders and tars


def _open_folder(name: str, split: str, data_dir: str | None, templates: Sequence[str]) -> Source:
    """Opens a folder of captioned images."""
    folder = paths.path(name)
    captions_of = folders.read(folder)

    def metadata(name: str) -> dict:
        return {"captions": captions_of[name], "id": name}

    def record(name: str) -> dict:
        return {"image": files.read_bytes(folder / name)} | metadata(name)

    def version() -> str:
        digest = hashlib.sha256()
        for name, texts in captions_of.items():
            try:
                stamp = [*map(int, paths.stamp(folder / name))]
            except OSError:
                stamp = []  # a missing file is a broken sample
            digest.update(json.dumps([name, texts, stamp]).encode())
        return digest.hexdigest()

    names = list(captions_of)
    indices = splits.select(len(names), split, f"folder:{folder}")
    return Source(
        f"folder:{folder}:{split}",
        _Mapped(indices, lambda index: record(names[index]), lambda index: metadata(names[index])),
        version=version,
    )


def _open_webdataset(pattern: str, split: str, data_dir: str | None, templates: Sequence[str]) -> Source:
    """Opens tars of captioned images."""
    tars = Tars(pattern)
    indices = splits.select(len(tars), split, f"webdataset:{pattern}")
    starts = splits.ranks(indices, tars.starts)
    return Source(f"webdataset:{pattern}:{split}", Subset(tars, indices), shard_starts=starts, version=tars.version)


# Prefix of a name before the colon -> function `(rest of the name, split, data_dir, templates) -> Source`.
SOURCES: dict[str, Callable] = {"folder": _open_folder, "webdataset": _open_webdataset, "tfds": _open_tfds}
