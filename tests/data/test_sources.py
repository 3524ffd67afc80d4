"""Named sources give the records that were put in: folders with every kind of caption file, TFDS sets, embedded sets.

Folders and a small TFDS data set are written here, so that every record is known; the embedded sets are prepared with
fewer examples than they have. Nothing here has TensorFlow, and nothing loads it.
"""

import collections
import concurrent.futures
import csv
import errno
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from train_jax import sharding
from train_jax.data import files, images, mixture, sources
from train_jax.data.images import BrokenSample
from train_jax.data.sources import DataError, open_source
from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes import shapes_dataset_builder
from train_jax.evaluation.evaluators import Context


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def shade_of(record) -> int:
    return images.decode(record["image"]).getpixel((0, 0))[0]


def fill(folder: Path, *names: str) -> None:
    """Pictures whose shade is their number."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def captions_of(source) -> dict[str, list[str]]:
    return {record["id"]: record["captions"] for record in source}


# ---------------------------------------------------------------------------------------------------------------------
# Folders

ROWS = [
    ("a.png", "a red circle"),
    ("b.png", 'blue, "quoted", and long'),
    ("sub/c.png", "ein Käfer"),
    ("a.png", "something round"),
]
CAPTIONS = {
    "a.png": ["a red circle", "something round"],
    "b.png": ['blue, "quoted", and long'],
    "sub/c.png": ["ein Käfer"],
}


def write_table(folder: Path, kind: str, columns=("file", "caption"), encoding: str = "utf-8") -> None:
    with (folder / f"captions.{kind}").open("w", encoding=encoding, newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in ROWS)
        else:
            csv.writer(file, delimiter="\t" if kind == "tsv" else ",").writerows([columns, *ROWS])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # the second is what spreadsheets write
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_caption_tables(tmp_path, kind, encoding):
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    write_table(tmp_path, kind, encoding=encoding)
    source = open_source(f"folder:{tmp_path}", "all")
    assert captions_of(source) == CAPTIONS
    assert [(record["id"], shade_of(record)) for record in source] == [("a.png", 0), ("b.png", 1), ("sub/c.png", 2)]
    assert source.label_names is None and source.is_true is None


@pytest.mark.parametrize(
    "columns", [("file_name", "text"), ("image", "caption"), ("filepath", "title"), ("file", "captions")]
)
def test_other_names_of_columns(tmp_path, columns):
    # Of the hub's image folders, LLaVA's and OpenCLIP's files.
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    write_table(tmp_path, "csv", columns)
    assert captions_of(open_source(f"folder:{tmp_path}", "all")) == CAPTIONS


def test_a_quote_that_is_never_closed_ends_with_its_line(tmp_path):
    fill(tmp_path, "a.png", "b.png", "c.png", "d.png")
    rows = ["file\tcaption", "a.png\tsaid \"so\"", 'b.png\t"The Scream', 'c.png\t"quoted, ""twice"""', "d.png\td"]
    (tmp_path / "captions.tsv").write_text("\n".join(rows))
    assert captions_of(open_source(f"folder:{tmp_path}", "all")) == {
        "a.png": ['said "so"'],
        "b.png": ['"The Scream'],
        "c.png": ['quoted, "twice"'],
        "d.png": ["d"],
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_is_the_one_in_its_first_line(tmp_path, delimiter):
    fill(tmp_path, "a.png", "b.png")
    rows = [["id", "file", "caption"], ["1", "a.png", "a, b; c | d"], ["2", "b.png", "two\nlines"]]
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    assert captions_of(open_source(f"folder:{tmp_path}", "all")) == {"a.png": ["a, b; c | d"], "b.png": ["two\nlines"]}


def test_the_hubs_tables(tmp_path):
    fill(tmp_path, "train/a.jfif", "b.avif")
    rows = [{"file_name": "train/a.jfif", "text": "a\u2028b"}, {"file_name": "./b.avif", "text": "b", "extra": None}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("utf-16"))
    assert captions_of(open_source(f"folder:{tmp_path}", "all")) == {"train/a.jfif": ["a\u2028b"], "./b.avif": ["b"]}


def test_linked_folders_and_files_are_read(tmp_path):
    fill(tmp_path / "elsewhere", "a.png", "b.png")
    for name in "ab":
        (tmp_path / "elsewhere" / f"{name}.txt").write_text(name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "folder" / "c.txt").write_text("c")
    actual = captions_of(open_source(f"folder:{tmp_path}/folder", "all"))
    assert actual == {"c.png": ["c"], "linked/a.png": ["a"], "linked/b.png": ["b"]}


def test_names_that_no_file_can_have_are_captions_without_an_image(tmp_path, caplog):
    fill(tmp_path, "a.png")
    rows = [{"file": name, "caption": "x"} for name in ("a.png", "n" * 5000, "\0", "\ud800", "a.png/b")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions_of(open_source(f"folder:{tmp_path}", "all")) == {"a.png": ["x"]}
    assert "4 caption(s) without an image are left out" in caplog.text


def test_a_disk_that_fails_is_no_broken_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_RETRY_DELAYS", ())
    fill(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a")
    source = open_source(f"folder:{tmp_path}", "all")

    def read(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(DataError, match="a.png cannot be read, after 1 tries: .*Too many open files"):
        source[0]


def test_text_in_another_encoding_is_named(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: byte 1 is not UTF-8"):
        open_source(f"folder:{tmp_path}", "all")


def test_several_captions_in_one_line(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    rows = [{"file": "a.png", "captions": ["one", "two"]}, {"file": "a.png", "caption": "three"}]
    text = "".join(json.dumps(row) + "\n\n" for row in [*rows, {"file": "b.png", "captions": ["", "four"]}])
    (tmp_path / "captions.jsonl").write_text(text)
    assert captions_of(open_source(f"folder:{tmp_path}", "all")) == {
        "a.png": ["one", "two", "three"],
        "b.png": ["four"],
    }


def test_text_files_beside_the_images(tmp_path, caplog):
    fill(tmp_path, "a.png", "deep/er/b.JPG", "silent.webp", "empty.png")
    (tmp_path / "a.txt").write_text("first line\n\n  second line  \n", "utf-8-sig")
    (tmp_path / "deep/er/b.txt").write_text("übrig", "utf-8")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "notes.txt").write_text("no image has this name")
    with caplog.at_level(logging.WARNING):
        source = open_source(f"folder:{tmp_path}", "all")
    assert captions_of(source) == {"a.png": ["first line", "second line"], "deep/er/b.JPG": ["übrig"]}
    assert "2 image(s) without a caption are left out: 'empty.png', 'silent.webp'" in caplog.text


def test_missing_image_and_missing_caption_are_told(tmp_path, caplog):
    fill(tmp_path, "a.png", "alone.png")
    lines = [{"file": "a.png", "caption": "a"}, {"file": "gone.png", "caption": "b"}, {"file": "a.png", "caption": " "}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.WARNING):
        source = open_source(f"folder:{tmp_path}", "all")
    assert captions_of(source) == {"a.png": ["a"]}
    assert "'gone.png' has a caption and no image" in caplog.text
    assert "1 caption(s) without an image are left out" in caplog.text
    assert "line 3: 'a.png' has no caption and is left out" in caplog.text
    assert "1 image(s) without a caption are left out: 'alone.png'" in caplog.text


def test_image_deleted_after_opening_is_a_broken_sample(tmp_path):
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    write_table(tmp_path, "csv")
    source = open_source(f"folder:{tmp_path}", "all")
    (tmp_path / "b.png").unlink()
    assert source[0]["id"] == "a.png"
    with pytest.raises(BrokenSample, match=r"b\.png"):
        source[1]


def test_evaluations_may_be_about_records_with_given_fields(tmp_path):
    fill(tmp_path, *(f"{n}.png" for n in range(4)))
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number % 2}")
    options = ConfigDict({"data": {"source": f"folder:{tmp_path}", "max_broken_eval": 0.1, "data_dir": "", "templates": ()}})
    context = Context(sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})), options)
    source = context.source("", "all", ("captions=1",))
    assert [record["id"] for record in source.records] == ["1.png", "3.png"]
    assert source.metadata(1)["id"] == "3.png" and source.name.endswith("all with captions=1")
    chosen = ConfigDict({"source": "", "split": "all", "where": ("captions=1", "id=3.png")})
    assert [record["id"] for record in context.source_of(chosen).records] == ["3.png"]
    named = open_source(f"folder:{tmp_path} where captions=1 and id=3.png | 2 folder:{tmp_path}", "all")
    assert [record["id"] for record in named.records] == ["3.png"] * 2 + ["0.png", "1.png", "2.png", "3.png"]
    names = [("nut and bolt", "a"), ("nut", "a")]
    rows = [{"image": b"", "captions": ["x"], "concept": name, "keywords": [name, "part"], "by": by} for name, by in names]
    plain = sources.Source("some", rows)
    for where, count in (("concept=nut and bolt and by=a", 1), ("keywords=part", 2), ("keywords = nut", 1)):
        assert len(sources.select(plain, mixture.split_conditions(f"some where {where}")[1])) == count
    assert mixture.split_conditions("folder:here where it was") == ("folder:here where it was", [])
    assert mixture.split_conditions("emoji/64  where  tone=  and image-id = 3") == ("emoji/64", ["tone=", "image-id = 3"])
    assert mixture.split_conditions("emoji/64 where tone") == ("emoji/64", ["tone"])  # which `select` refuses by name
    for where, words in (("tone", "'tone': a condition is FIELD=VALUE"), ("tone=", "no field 'tone' for where; there are"),
                         ("id=9.png", "no record with id=9.png")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            context.source("", "all", (where,))


def test_evaluations_may_leave_out_a_share_of_unreadable_pictures(tmp_path, caplog):
    fill(tmp_path, *(f"{n}.png" for n in range(10)))
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(str(number))
    (tmp_path / "3.png").write_bytes(b"no picture")
    options = ConfigDict({"data": {"source": f"folder:{tmp_path}", "max_broken_eval": 0.1, "data_dir": "", "templates": ()}})
    mesh = sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    context = Context(mesh, options)
    source = context.source("", "all")
    assert context.source("", "all") is source, "each image is decoded once"
    assert [record["captions"] for record in source] == [[str(n)] for n in range(10) if n != 3]
    assert source[3]["id"] == "4.png" and "evaluated without 1 image(s) that cannot be read" in caplog.text
    (tmp_path / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 10 images cannot be read, more than config.data.max_broken_eval = 10.0%"):
        Context(mesh, options).source("", "all")
    options.data.max_broken_eval = 1.0
    for index in range(10):
        (tmp_path / f"{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match="10 of 10 images cannot be read, none is left to evaluate"):
        Context(mesh, options).source("", "all")
    options.data.max_broken_eval = 0.0
    assert len(Context(mesh, options).source("", "all")) == 10


def test_readable_records_are_found_in_chunks(monkeypatch):
    submitted = []

    def submit(pool, *arguments, function=concurrent.futures.ThreadPoolExecutor.submit):
        submitted.append(arguments)
        return function(pool, *arguments)

    def decode(number):
        if number % 1000 == 999:
            raise BrokenSample(f"number {number}")

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", submit)
    monkeypatch.setattr(images, "decode", decode)
    for count in (1, 255, 3_000, 300_000):
        submitted.clear()
        source = sources.Source("numbers", [{"image": number} for number in range(count)])
        kept = sources.select_readable(source, 0.01)
        expected = [number for number in range(count) if number % 1000 != 999]
        assert len(kept) == len(expected) and [kept[i]["image"] for i in range(0, len(kept), 97)] == expected[::97]
        assert len(submitted) <= 300
    with pytest.raises(DataError, match="300 of 300000 .*; the first: number 999; number 1999; number 2999$"):
        sources.select_readable(source, 0.0001)


def test_records_are_a_sequence(tmp_path):
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    write_table(tmp_path, "csv")
    source = open_source(f"folder:{tmp_path}", "all")
    assert len(source) == 3 == len(list(source))
    assert source[1]["id"] == source[-2]["id"] == "b.png"
    with pytest.raises(IndexError):
        source[3]


def test_a_fingerprint_changes_with_any_record(tmp_path):
    folder, names = tmp_path / "folder", [f"{number:03}.png" for number in range(100)]
    fill(folder, *names)
    table = [{"file": name, "caption": f"picture {name}"} for name in names]
    fingerprints = []

    def note() -> None:
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, table)))
        with tarfile.open(tmp_path / "few.tar", "w") as tar:
            for name in names[:3]:
                (folder / f"{name[:-4]}.txt").write_text(table[int(name[:3])]["caption"])
                tar.add(folder / name, name)
                tar.add(folder / f"{name[:-4]}.txt", f"{name[:-4]}.txt")
        of_source = [f"folder:{folder}", f"webdataset:{tmp_path / 'few.tar'}", f"folder:{folder} | 2 folder:{folder}"]
        fingerprints.append([sources.compute_fingerprint(open_source(name, "train")) for name in of_source])

    note()
    table[1]["caption"] = "another"  # not of the sampled records, which are the 0th, the 3rd, …
    note()
    Image.new("RGB", (7, 5)).save(folder / "001.png")
    note()
    assert all(len(set(column)) == 3 for column in zip(*fingerprints, strict=True))
    assert sources.compute_fingerprint(open_source(f"folder:{folder}", "train")) == fingerprints[-1][0]


def test_folders_without_use(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        open_source(f"folder:{tmp_path}/nowhere", "all")
    with pytest.raises(DataError, match=r"no image with a caption \(0 image\(s\) found\)"):
        open_source(f"folder:{tmp_path}", "all")
    fill(tmp_path, "a.png", "b.png")
    with pytest.raises(DataError, match=r"no image with a caption \(2 image\(s\) found\).*captions\.jsonl"):
        open_source(f"folder:{tmp_path}", "all")
    (tmp_path / "captions.csv").write_text("file,caption\ngone.png,text\n")
    with pytest.raises(DataError, match="no image with a caption"):
        open_source(f"folder:{tmp_path}", "all")
    (tmp_path / "captions.jsonl").write_text("")
    with pytest.raises(DataError, match=r"keep one of captions\.jsonl, captions\.csv"):
        open_source(f"folder:{tmp_path}", "all")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("captions.jsonl", b'{"file": "a.png", "caption": "x"}\n{oops\n', r"captions\.jsonl, line 2: not JSON"),
        ("captions.jsonl", b'["a.png", "x"]\n', "line 1: must be an object with 'file' and 'caption'"),
        ("captions.jsonl", b'{"caption": "x"}\n', "line 1: no file name"),
        ("captions.jsonl", b'{"file": 7, "caption": "x"}\n', "line 1: no file name"),
        ("captions.csv", b"name,caption\na.png,x\n", "line 2: no file name; name the columns 'file' and 'caption'"),
        ("captions.csv", b'file,caption\na.png,x\n\nb.png,"open\nc.png,x\n', "line 4: unexpected end of data; is a quote"),
        ("captions.csv", b'file,caption\na.png,"x" y\n', "line 2: .*; is a quote left open"),
        ("captions.jsonl", b"[" * 100_000, "line 1: not JSON .nested too deeply"),
        ("captions.tsv", b"file\tcaption\na.png\tx\ty\n", "line 2: more fields than columns"),
        ("captions.csv", b"file,caption\na.png,red, blue\n", "line 2: more fields than columns"),
        ("captions.csv", b"file,caption\na.png,caf\xe9\n", r"captions\.csv: byte 22 is not UTF-8"),
        ("captions.csv", b"file,caption\na.png," + b"x" * 200_000, r"captions\.csv, line 2: field larger than field limit"),
    ],
)
def test_damaged_tables_are_named_with_their_line(tmp_path, file, content, complaint):
    fill(tmp_path, "a.png")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        open_source(f"folder:{tmp_path}", "all")


def test_captions_that_are_no_text_are_left_out(tmp_path, caplog):
    fill(tmp_path, "a.png", "b.png")
    rows = [{"file": "a.png", "caption": 5}, {"file": "b.png", "captions": [None, "b"]}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions_of(open_source(f"folder:{tmp_path}", "all")) == {"b.png": ["b"]}
    assert "line 1: 'a.png' has no caption" in caplog.text


@pytest.fixture
def ten(tmp_path) -> str:
    names = [f"{n}.png" for n in range(10)]
    fill(tmp_path, *names)
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{name},x\n" for name in names))
    return f"folder:{tmp_path}"


def ids(name: str, split: str, **options) -> list[str]:
    return [record["id"] for record in open_source(name, split, **options)]


def test_folder_slices_divide_the_folder(ten):
    everything = [f"{n}.png" for n in range(10)]
    assert ids(ten, "all") == ids(ten, "train") == ids(ten, "all[:]") == ids(ten, "train[:100%]") == everything
    for cut in ("70%", "7", "-3", "-30%"):
        first, second = ids(ten, f"all[:{cut}]"), ids(ten, f"all[{cut}:]")
        assert (len(first), len(second)) == (7, 3)
        assert sorted(first + second) == everything
        assert first == ids(ten, f"train[:{cut}]")  # the same at every call
    middle = ids(ten, "all[20%:50%]")
    assert len(middle) == 3 and set(middle).isdisjoint(ids(ten, "all[:20%]") + ids(ten, "all[50%:]"))


def test_folder_slices_are_drawn_over_all_names(tmp_path):
    # Names tell the class here, as they often do: a slice by name would miss one class.
    names = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(50)]
    fill(tmp_path, *names)
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{name},x\n" for name in names))
    kinds = collections.Counter(name.split("/")[0] for name in ids(f"folder:{tmp_path}", "all[:50%]"))
    assert min(kinds["cat"], kinds["dog"]) > 15


@pytest.mark.parametrize("split", ["test", "validation[:10%]", "all[", "all[:10%", "all[5]", "all[1:2:3]", ""])
def test_bad_splits_of_folders(ten, split):
    with pytest.raises(DataError, match="has no split .*: all .or train.*'all.90%:.'.*--config.evals.NAME.split"):
        open_source(ten, split)


def test_bounds_that_are_no_numbers(ten):
    with pytest.raises(DataError, match="'half' in split .* is neither an integer nor a percentage"):
        open_source(ten, "all[:half]")
    with pytest.raises(DataError, match="'inf%' in split .* is neither an integer nor a percentage"):
        open_source(ten, "all[:inf%]")
    with pytest.raises(DataError, match="no records"):
        open_source(ten, "all[5:5]")


# ---------------------------------------------------------------------------------------------------------------------
# TFDS


class SourcesLabelled(tfds.core.GeneratorBasedBuilder):
    """Six pictures with classes; the sixth keeps its class secret."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(encoding_format="png"),
            "kind": tfds.features.ClassLabel(names=["red_fox", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(5)), "secret": self._generate_examples([5])}

    def _generate_examples(self, numbers):
        for n in numbers:
            yield n, {"picture": io.BytesIO(png(n)), "kind": -1 if n == 5 else n % 2}


class SourcesCaptioned(tfds.core.GeneratorBasedBuilder):
    """Pictures with captions in the shapes that TFDS has them in."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("one", "list", "coco", "none")]

    def _info(self):
        text = tfds.features.Text()
        kinds = {
            "one": {"caption": text},
            "list": {"text": tfds.features.Sequence(text)},
            "coco": {"captions": tfds.features.Sequence({"id": np.int64, "text": text})},
            "none": {"size": np.int64},
        }
        features = {"image": tfds.features.Image(encoding_format="png")} | kinds[self.builder_config.name]
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(3):
            columns = {
                "one": {"caption": f"größe {n}"},
                "list": {"text": [f"größe {n}", "x"]},
                "coco": {"captions": [{"id": 1, "text": f"größe {n}"}, {"id": 2, "text": "x"}]},
                "none": {"size": n},
            }
            yield n, {"image": io.BytesIO(png(n))} | columns[self.builder_config.name]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


def test_tfds_labels_become_captions(data_dir):
    source = open_source("tfds:sources_labelled", "train", data_dir=data_dir)
    assert len(source) == 5 and source.label_names == ("red fox", "dog") and source.is_true is None
    seen = {shade_of(record): (record["label"], record["captions"]) for record in source}
    fox, dog = (0, ["a photo of a red fox."]), (1, ["a photo of a dog."])
    assert seen == {0: fox, 1: dog, 2: fox, 3: dog, 4: fox}
    assert [record["id"] for record in source] == ["0", "1", "2", "3", "4"]


def test_tfds_templates_of_ones_own(data_dir):
    source = open_source("tfds:sources_labelled", "train[:1]", data_dir=data_dir, templates=["{}!", "see the {}"])
    name = source.label_names[source[0]["label"]]
    assert source[0]["captions"] == [f"{name}!", f"see the {name}"]


def test_tfds_secret_labels_make_no_caption(data_dir):
    source = open_source("tfds:sources_labelled", "secret", data_dir=data_dir)
    with pytest.raises(BrokenSample, match="without a label"):
        source[0]


def test_a_record_that_cannot_be_read_meets_no_condition(data_dir, caplog):
    with pytest.raises(DataError, match="no record with label=-1"), caplog.at_level("WARNING", "train_jax"):
        open_source("tfds:sources_labelled where label=-1", "secret", data_dir=data_dir)
    assert "record(s) that cannot be read meet no condition: tfds:sources_labelled:secret" in caplog.text


def test_tfds_slices_divide_the_set(data_dir):
    first, second = (
        [shade_of(record) for record in open_source("tfds:sources_labelled:1.0.0", split, data_dir=data_dir)]
        for split in ("train[:60%]", "train[60%:]")
    )
    assert (len(first), len(second)) == (3, 2) and sorted(first + second) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("config", "more"), [("one", []), ("list", ["x"]), ("coco", ["x"])])
def test_tfds_captions(data_dir, config, more):
    source = open_source(f"tfds:sources_captioned/{config}", "train", data_dir=data_dir)
    assert source.label_names is None
    for record in source:
        assert record["captions"] == [f"größe {shade_of(record)}", *more] and record["label"] == -1


@pytest.mark.parametrize(
    ("name", "split", "complaint"),
    [
        ("tfds:sources_labelled", "validation", "has no split 'validation': .*secret"),
        ("tfds:sources_labelled", "train[:x]", "has no split"),
        ("tfds:sources_labelled", "train[:0]", "sources_labelled"),
        (
            "tfds:sources_captioned/none",
            "train",
            "needs an image and captions or a label; its features are image, size",
        ),
        ("tfds:sources_captioned/other", "train", "BuilderConfig other not found"),
        ("tfds:no_such_set", "train", "TFDS knows no such data set .Dataset no_such_set not found"),
        ("tfds:no such set", "train", "Parsing builder name string no such set failed"),
    ],
)
def test_tfds_errors(data_dir, name, split, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        open_source(name, split, data_dir=data_dir)
    assert len(str(caught.value)) < 1000  # TFDS lists everything that it has


# ---------------------------------------------------------------------------------------------------------------------
# Embedded sets


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> str:
    """A data_dir with fewer scenes than there are: drawing all of them takes half a minute."""
    folder = str(tmp_path_factory.mktemp("embedded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes_dataset_builder, "EXAMPLES", {"train": 60, "test": 30, "novel": 20})
        open_source("shapes/32", "train", data_dir=folder)
        open_source("shapes", "train", data_dir=folder)
    open_source("digits", "train", data_dir=folder)
    return folder


def pairs_of(record) -> set[tuple[str, str]]:
    return {(o["colour"], o["shape"]) for o in json.loads(record["scene"])["objects"]}


def test_shapes_splits(few):
    novel = set(scenes.NOVEL)
    assert len(novel) == 10
    sizes = {}
    seen = []
    for split in ("train", "test", "novel"):
        source = open_source("shapes/32", split, data_dir=few)
        sizes[split] = len(source)
        for record in source:
            # Every scene of `novel` has a pair that no scene of `train` and `test` has.
            assert bool(pairs_of(record) & novel) == (split == "novel")
            seen.append(record["id"])
    assert sizes == {"train": 60, "test": 30, "novel": 20}
    assert len(set(seen)) == 110


def test_shapes_records_are_what_the_builder_makes(few):
    source = open_source("shapes", "test", data_dir=few)
    assert len(source.label_names) == 80 and source.label_names[0] == "red circle"
    for record in source:
        assert set(record) == {"image", "captions", "negatives", "id", "label", "scene"}
        split, number = record["id"].split("-")
        scene, picture, texts, negatives = shapes_dataset_builder.make(split, int(number), 64)
        np.testing.assert_array_equal(images.decode(record["image"]), picture)
        assert record["captions"] == texts and record["negatives"] == negatives
        assert json.loads(record["scene"]) == json.loads(scene.to_json())
        objects = json.loads(record["scene"])["objects"]
        if len(objects) == 1:
            assert source.label_names[record["label"]] == f"{objects[0]['colour']} {objects[0]['shape']}"
        else:
            assert record["label"] == -1


def test_shapes_know_what_is_true(few):
    source = open_source("shapes/32", "train[:20]", data_dir=few)
    for record in source:
        assert all(source.is_true(caption, record) for caption in record["captions"])
        shapes = {shape for _, shape in pairs_of(record)}
        assert not any(source.is_true(f"a {shape}", record) for shape in set(scenes.SHAPES) - shapes)
    with pytest.raises(ValueError, match="'a photo of a dog' is not a caption of a scene"):
        source.is_true("a photo of a dog", source[0])


def test_digits_splits(few):
    train, test = (open_source("digits", split, data_dir=few) for split in ("train", "test"))
    assert len(train) + len(test) == 1797 and train.is_true is None
    assert {record["id"] for record in train}.isdisjoint(record["id"] for record in test)
    assert train.label_names[test[0]["label"]] in test[0]["captions"]


def test_slices_of_embedded_sets(few):
    whole = ids("shapes/32", "train", data_dir=few)
    assert ids("shapes/32", "train[:25%]", data_dir=few) == whole[:15]
    assert ids("shapes/32", "train[15:]", data_dir=few) == whole[15:]


def test_a_larger_set_contains_the_smaller_one(few, monkeypatch):
    monkeypatch.setattr(shapes_dataset_builder, "EXAMPLES", {"train": 60, "test": 30, "novel": 20})
    fewer, more = (open_source(name, "train", data_dir=few) for name in ("shapes/32", "shapes/32/train=70"))
    assert len(more) == 70
    by_id = {record["id"]: record for record in more}
    for record in fewer:
        assert record == by_id[record["id"]]
    assert ids("shapes/32/train=70", "test", data_dir=few) == ids("shapes/32", "test", data_dir=few)


@pytest.mark.parametrize(
    ("name", "split", "complaint"),
    [
        ("shapes/32", "validation", "shapes/32 has no split 'validation': train, test, novel"),
        ("shapes/48", "train", "shapes/48: there is no size '48': choose one of 32, 64, 128"),
        ("shapes/32/train=0", "train", "shapes/32/train=0: 'train=0' is no option: add train=N, a number of scenes"),
        ("shapes/32/test=5", "train", "'test=5' is no option"),
        ("shapes/32/", "train", "'' is no option"),
        ("digits/big", "train", "digits/big: there is no 'big': this set has no variants"),
        ("squares", "train", "there is no source 'squares': name one as shapes"),
        ("folder:", "all", "there is no source 'folder:'"),
        ("shapes:32", "train", "there is no source 'shapes:32'"),
        ("", "train", "there is no source ''"),
    ],
)
def test_unknown_names(few, name, split, complaint):
    with pytest.raises(DataError, match=complaint):
        open_source(name, split, data_dir=few)


def test_no_tensorflow_is_loaded(few, tmp_path):
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    write_table(tmp_path, "csv")
    script = (
        "import sys\n"
        "from train_jax.data.sources import open_source\n"
        f"for name in ('shapes/32', 'digits', 'folder:{tmp_path}'):\n"
        f"    assert open_source(name, 'train', data_dir={few!r})[0]['captions']\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules, sorted(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sources.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tensorflow" not in sys.modules


def test_processes_prepare_a_set_once(tmp_path, capfd):
    # As the processes of one host do when they start together: this one and another.
    script = (
        "import tensorflow_datasets\n"
        "from train_jax.data.sources import open_source\n"
        "print('ready', flush=True)\n"
        "input()\n"
        f"print(len(open_source('digits', 'train', data_dir={str(tmp_path)!r})))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sources.__file__).parents[2])}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True) as other:
        assert other.stdout.readline() == "ready\n", other.communicate()[1]
        other.stdin.write("\n")
        other.stdin.flush()
        assert len(open_source("digits", "train", data_dir=str(tmp_path))) == 1438
        output, errors = other.communicate()
    assert other.returncode == 0, errors
    assert output.split()[-1] == "1438"
    assert (output + capfd.readouterr().out).count("Downloading and preparing") == 1


def test_records_are_described_without_reading_their_pictures(tmp_path, monkeypatch):
    """As records, but for the image: of a folder, a tar, and a mixture of both."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(b"not looked at")
    (tmp_path / "folder" / "a.txt").write_text("a cat\n")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("b.jpg", b"nor this"), ("b.json", b'{"caption": "a dog", "label": 3}')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = open_source(f"folder:{tmp_path / 'folder'} | webdataset:{tmp_path / 'x.tar'}", "all")
    full = list(source)
    assert [record["image"] for record in full] == [b"not looked at", b"nor this"]
    (tmp_path / "folder" / "a.png").unlink()
    sizes, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: sizes.append(size) or pread(file, size, offset))
    for index, record in enumerate(full):
        assert source.metadata(index) == {key: value for key, value in record.items() if key != "image"}
    assert sizes == [32], "the caption alone"
