"""Tars as sources: every sample found again by number, damage and malice passed over and named."""

import concurrent.futures
import dataclasses
import errno
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from train_jax import paths
from train_jax.data import files, tar_index
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.sources import open_source
from train_jax.data.tars import Tars, expand


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def two(tmp_path):
    """Two tars of three samples each, with captions of every kind."""
    for number in range(2):
        a, b, c = (3 * number + i for i in range(3))
        write(
            tmp_path / f"part-{number:03}.tar",
            {
                f"{a}.png": png(a),
                f"{a}.txt": f"number {a}\n".encode(),
                f"deep/{b}.PNG": png(b),
                f"deep/{b}.json": json.dumps({"caption": f"number {b}", "label": b}).encode(),
                f"{c}.txt": f"number {c}\nthe number {c}".encode(),  # the caption first
                f"{c}.seg.json": b"{}",
                f"{c}.png": png(c),
            },
        )
    return tmp_path


def test_samples_by_number(two):
    source = open_source(f"webdataset:{two}/part-{{000..001}}.tar", "train")
    assert len(source) == 6
    for number in (5, 0, 3, 1, 4, 2):
        record = source[number]
        assert record["image"] == png(number)
        # A .txt is one caption, whatever line breaks it has.
        assert record["captions"] == [f"number {number}" + f"\nthe number {number}" * (number % 3 == 2)]
    assert source[4]["label"] == 4 and source[4]["id"] == "part-001.tar:deep/4"
    assert [r["captions"][0] for r in open_source(f"webdataset:{two}/*.tar", "all[:50%]")] != []
    assert len(open_source(f"webdataset:{two}/*.tar", "all[4:]")) == 2
    with pytest.raises(DataError, match="has no split 'test'"):
        open_source(f"webdataset:{two}/*.tar", "test")


def test_shards_of_a_split_are_its_records_of_each_tar(two):
    for split in ("all", "all[2:]", "all[:2]", "all[5:]"):
        source = open_source(f"webdataset:{two}/*.tar", split)
        tars = [int(record["id"][5:8]) for record in source]
        assert source.shard_starts.tolist() == [0, tars.count(0), len(source)] and tars == sorted(tars)


def test_the_index_is_made_once_and_again_for_another_file(two, monkeypatch):
    scanned = []

    def noted(path, size, scan=tar_index._scan):
        scanned.append(path.name)
        return scan(path, size)

    monkeypatch.setattr(tar_index, "_scan", noted)
    first, second = (two / f"part-00{number}.tar" for number in range(2))
    assert len(Tars(f"{two}/*.tar")) == 6 and sorted(scanned) == [first.name, second.name]
    assert len(Tars(f"{two}/*.tar")) == 6 and len(Tars(str(first))) == 3  # another set, from the same indexes
    assert len(scanned) == 2
    write(first, {"x.png": png(1), "x.txt": b"x", "y.png": png(2), "y.txt": b"y"})
    assert [r["id"] for r in Tars(f"{two}/*.tar")][:3] == ["part-000.tar:x", "part-000.tar:y", "part-001.tar:3"]
    assert scanned[2:] == [first.name]
    joined = paths.cache() / "tars"
    assert len(list(joined.glob("*-*"))) == 3
    for folder in joined.glob("*-*"):
        os.utime(folder, (0, 0))
    write(first, {"x.png": png(1), "x.txt": b"x"})
    assert len(Tars(f"{two}/*.tar")) == 4
    assert len(list(joined.glob("*-*"))) == 2  # of both sets; the old states of this one are removed
    index = two / "part-001.tar.index.npy"
    paths.remove(joined)
    for damage in (b"{", index.read_bytes()[:100], index.read_bytes()[:-1], index.read_bytes()[:-100], b""):
        index.write_bytes(damage)
        assert [r["id"][-1] for r in Tars(f"{second}")] == ["3", "4", "5"]
        paths.remove(joined)


@pytest.mark.parametrize("name", ["starts.npy", "samples.npy", "keys.npy"])
@pytest.mark.parametrize("kept", [-1, 0, None])
def test_a_damaged_joined_index_is_made_again(two, name, kept, caplog):
    expected = list(Tars(f"{two}/*.tar"))
    (folder,) = (paths.cache() / "tars").glob("*-*")
    if kept is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])
    assert list(Tars(f"{two}/*.tar")) == expected
    assert f"{folder} is damaged" in caplog.text


def test_an_index_that_cannot_be_read_is_not_called_unwritable(two, monkeypatch):
    def fail(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "_RETRY_DELAYS", (0.0,))
    monkeypatch.setattr(tar_index, "_read_columns", fail)
    with pytest.raises(DataError, match="part-000.tar.index.npy cannot be read, after 2 tries"):
        Tars(f"{two}/*.tar")


@pytest.mark.parametrize("step", ["_list_missing", "_scan", "save", "_join", "_read_columns"])
def test_no_index_is_kept_under_the_stamp_of_another_file(two, monkeypatch, step):
    path, other = two / "part-000.tar", two / "part-001.tar"
    before, stat, function = path.read_bytes(), path.stat(), getattr(tar_index, step)

    def replace_first(*arguments):
        path.write_bytes(other.read_bytes()[:-512])
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tar_index, step, replace_first)
        with pytest.raises(DataError, match="part-000.tar changed while its index was made; start again"):
            Tars(str(path))
    path.write_bytes(before)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [record["captions"] for record in Tars(str(path))][:2] == [["number 0"], ["number 1"]]
    assert len(list((paths.cache() / "tars").iterdir())) == 1


def test_a_joined_index_in_use_is_kept(two):
    path = two / "part-000.tar"
    first = Tars(str(path))
    (folder,) = (paths.cache() / "tars").glob("*-*")
    for days, kept in ((29, True), (31, True), (31, False)):
        then = time.time() - days * 86_400
        os.utime(folder, (then, then))
        if (days, kept) == (31, True):
            Tars(str(path))  # opened again
        changed = path.with_name("changed")
        changed.write_bytes(path.read_bytes())
        os.utime(changed, (days + kept, days + kept))  # another time in each turn
        before = path.rename(path.with_name("before"))
        changed.rename(path)
        Tars(str(path))  # another state of the set
        before.rename(path)
        assert folder.is_dir() == kept
    assert [record["captions"] for record in first][:2] == [["number 0"], ["number 1"]], "mapped when it was opened"


def test_a_folder_that_cannot_be_written_keeps_its_index_in_the_cache(two):
    (two / "part-000.tar.index.npy").mkdir()  # nothing can be written there
    assert len(Tars(f"{two}/part-000.tar")) == 3
    assert len(list((paths.cache() / "tars").glob("*.npy"))) == 1
    assert len(Tars(f"{two}/part-000.tar")) == 3


def test_an_index_that_can_be_kept_nowhere_is_an_error(two, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written to .*XDG_CACHE_HOME"):
        Tars(f"{two}/part-000.tar")
    (two / "part-001.tar.index.npy").mkdir()
    with pytest.raises(DataError, match="part-001.tar cannot be written .*XDG_CACHE_HOME"):
        Tars(f"{two}/part-001.tar")


def test_a_sample_takes_about_forty_bytes_and_its_key(two):
    Tars(f"{two}/*.tar")
    (folder,) = (paths.cache() / "tars").glob("*-*")
    samples, keys = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("samples", "keys"))
    assert samples.dtype.itemsize == 37 and len(samples) == 6
    assert keys.tobytes() == b"0deep/123deep/45"


def test_processes_may_join_the_same_indexes(two, monkeypatch):
    def join_twice(*arguments, join=tar_index._join):
        join(*arguments)
        join(*arguments)

    monkeypatch.setattr(tar_index, "_join", join_twice)
    assert len(Tars(f"{two}/*.tar")) == 6
    assert len(list((paths.cache() / "tars").iterdir())) == 1


def test_offsets_and_keys_of_any_size(tmp_path):
    # A terabyte into a tar, in a table of two tars, of which the first has no sample.
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).touch()
    far = 2**40
    samples = [
        tar_index.Sample(0, key, (far, 2**32 - 1), (far + 512, 7), "caption", label)
        for key, label in (("Käfer\udcff", None), ("b" * 300, (far + 1024, 2)))
    ]
    for name, rows in (("a.tar", []), ("b.tar", samples)):
        tar_index.save(tmp_path / name, tar_index.read_stamp(tmp_path / name), rows)
    index, _ = tar_index.open_index([tmp_path / "a.tar", tmp_path / "b.tar"])
    assert list(index) == [dataclasses.replace(sample, tar=1) for sample in samples]
    assert index.starts.tolist() == [0, 0, 2]


def test_many_tars_are_scanned_by_several_processes(tmp_path, monkeypatch):
    for number in range(16):
        write(tmp_path / f"{number:03}.tar", {"a.png": png(number), "a.txt": str(number).encode()})
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(tar_index, "_scan", None)  # this process need not scan
    tars = Tars(f"{tmp_path}/*.tar")
    assert [record["captions"] for record in tars] == [[str(number)] for number in range(16)]


def test_scanning_processes_leave_a_bad_tar_to_their_parent(tmp_path, monkeypatch, capfd):
    for number in range(16):
        (tmp_path / f"{number:03}.tar").write_bytes(b"not a tar" * 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(DataError, match="is not a readable tar file"):
        Tars(f"{tmp_path}/*.tar")
    assert capfd.readouterr().err == ""


def test_workers_read_as_their_parent_does(two):
    tars = Tars(f"{two}/part-000.tar")
    first = tars[0]
    sent = pickle.dumps(tars)
    assert pickle.loads(sent)[0] == first
    assert len(sent) < 1000, "the index is not sent"


@pytest.fixture
def many(tmp_path):
    for number in range(100):
        write(tmp_path / f"{number:03}.tar", {"a.png": png(number), "a.txt": str(number).encode()})
    return Tars(f"{tmp_path}/*.tar")


def test_more_tars_than_a_process_may_open_lose_no_sample(many, caplog):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 3)).tolist()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 70, before[1]))
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            actual = [record["captions"] for record in pool.map(many.__getitem__, order)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert actual == [[str(number)] for number in order]
    assert "trying again" not in caplog.text, "the limit is kept to, not run into"


def test_a_process_that_ends_with_open_tars_says_nothing(many):
    script = (
        f"from train_jax.data.tars import Tars\nprint(len([record for record in Tars({many._paths[0].as_posix()!r})]))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_other_files_of_the_process_may_take_the_descriptors(many, monkeypatch):
    monkeypatch.setattr(files, "_RETRY_DELAYS", (0.0, 0.0))
    assert [many[number]["captions"] for number in range(60)] == [[str(number)] for number in range(60)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, before[1]))
    others = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                others.append(os.open(os.devnull, os.O_RDONLY))
        actual = many[80]["captions"]  # by closing the 60 that are open
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in others:
            os.close(descriptor)
    assert actual == ["80"]


def test_a_failing_disk_breaks_no_sample(two, monkeypatch):
    monkeypatch.setattr(files, "_RETRY_DELAYS", (0.0, 0.0))
    tars = Tars(f"{two}/part-000.tar")
    failures = [errno.ESTALE, errno.EIO]

    def read(descriptor, size, offset, pread=os.pread):
        if failures:
            raise OSError(failures[0], os.strerror(failures.pop(0)))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", read)
    assert tars[0]["captions"] == ["number 0"]
    failures += [errno.EIO] * 100
    with pytest.raises(DataError, match="part-000.tar:0 cannot be read, after 3 tries"):
        tars[0]


@pytest.mark.parametrize(
    ("name", "data", "captions"),
    [
        ("a.json", {"captions": ["a cat", None, "", " "]}, ["a cat"]),
        ("a.json", {"captions": [{"text": "a bird"}, {"id": 7, "raw": " two birds"}]}, ["a bird", "two birds"]),
        ("a.json", {"caption": None, "text": "a fish"}, ["a fish"]),
        ("a.json", {"caption": {"en": "a dog"}}, "a caption must be a string, not an object with keys en"),
        ("a.json", {"caption": [["a dog"]]}, "a caption must be a string, not list"),
        ("a.json", {"caption": ["a dog", 7]}, "a caption must be a string, not int"),
        ("a.json", {"caption": "\ud800"}, "surrogates not allowed"),
        ("a.json", {"captions": [None, ""]}, "is empty"),
        ("a.json", {"captions": []}, "is empty"),
        ("a.txt", b"\xef\xbb\xbfwith\r\na mark\n", ["with\na mark"]),
        ("a.txt", "ein Käfer".encode("utf-16"), ["ein Käfer"]),
        ("a.txt", "ein Käfer".encode("latin-1"), "byte 5 is not UTF-8"),
    ],
)
def test_captions_are_text_and_nothing_else(tmp_path, name, data, captions):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    write(tmp_path / "x.tar", {"a.png": png(1), name: data})
    tars = Tars(str(tmp_path / "x.tar"))
    if isinstance(captions, list):
        assert tars[0]["captions"] == captions
    else:
        with pytest.raises(BrokenSample, match=rf"x.tar:a: its .*{captions}"):
            tars[0]


def test_labels_of_cls_files(tmp_path):
    members = {"a.cls": b"17\n", "b.cls": b"n01440764", "c.json": b'{"caption": "c", "label": true}'}
    members |= {f"{key}.jfif": png(1) for key in "abcd"} | {f"{key}.txt": key.encode() for key in "abd"}
    write(tmp_path / "x.tar", members)
    tars = Tars(str(tmp_path / "x.tar"))
    assert tars[0]["label"] == 17 and tars[0]["captions"] == ["a"]
    with pytest.raises(BrokenSample, match="x.tar:b: its .cls is b'n01440764', not a class index"):
        tars[1]
    assert "label" not in tars[2] and "label" not in tars[3]


def test_hostile_members_are_refused_and_named(tmp_path, caplog):
    link = tarfile.TarInfo("b.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = {"a.png": png(1), "a.txt": b"fine", "../../evil.png": png(2), "../../evil.txt": b"evil"}
    members |= {"/root/c.png": png(3), "/root/c.txt": b"absolute", "b.png": png(4), "b.txt": link}
    write(tmp_path / "hostile.tar", members)
    tars = Tars(str(tmp_path / "hostile.tar"))
    assert [record["captions"] for record in tars] == [["fine"]]
    for word in ("5 member(s) refused", "../../evil.png (leads out of the tar)", "b (no caption)"):
        assert word in caplog.text


def test_a_truncated_tar_gives_what_comes_before(two, caplog):
    path = two / "part-000.tar"
    with tarfile.open(path) as tar:
        cut = tar.getmember("deep/1.PNG").offset_data + 20
    path.write_bytes(path.read_bytes()[:cut])
    assert [r["captions"] for r in Tars(str(path))] == [["number 0"]]
    assert "deep/1.PNG (cut off)" in caplog.text


def test_a_tar_that_shrinks_later_breaks_samples_not_runs(two):
    tars = Tars(f"{two}/part-000.tar")
    path = two / "part-000.tar"
    assert tars[2]["image"] == png(2)  # which opens the tar
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BrokenSample, match="part-000.tar:2: the tar ends"):
        tars[2]


@pytest.mark.parametrize("storage", [Path, epath.Path])
def test_a_tar_that_is_replaced_gives_no_other_samples(two, storage):
    path, other = (two / f"part-00{number}.tar" for number in range(2))
    tars = Tars(str(path))
    tars._paths = [storage(path)]
    tars._stamps = [tar_index.read_stamp(storage(path))]
    os.utime(other, (0, 0))
    other.replace(path)  # of the same size, with samples at the same offsets
    with pytest.raises(BrokenSample, match="part-000.tar: the tar changed after its index was read"):
        tars[0]
    assert Tars(str(path))[0]["captions"] == ["number 3"]


def test_missing_halves_are_left_out_and_named(tmp_path, caplog):
    write(tmp_path / "half.tar", {"a.png": png(1), "a.txt": b"both", "b.png": png(2), "c.txt": b"alone"})
    assert len(Tars(str(tmp_path / "half.tar"))) == 1
    assert "2 sample(s) left out: b (no caption), c (no image)" in caplog.text


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\xff", b"\n \n"])
def test_a_caption_that_is_none_is_a_broken_sample(tmp_path, data):
    write(tmp_path / "x.tar", {"a.png": png(1), "a.txt": data, "b.png": png(1), "b.json": b"[1]"})
    tars = Tars(str(tmp_path / "x.tar"))
    for place, name in ((0, "x.tar:a"), (1, "x.tar:b")):
        with pytest.raises(BrokenSample, match=name):
            tars[place]


def test_patterns(tmp_path):
    for name in ("a-07.tar", "a-08.tar", "b-07.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in expand(f"{tmp_path}/a-{{07..08}}.tar")] == ["a-07.tar", "a-08.tar"]
    assert [p.name for p in expand(f"{tmp_path}/{{b,a}}-07.tar")] == ["b-07.tar", "a-07.tar"]
    assert [p.name for p in expand(f"{tmp_path}/*.tar")] == ["a-07.tar", "a-08.tar", "b-07.tar"]
    with pytest.raises(DataError, match=r"there is no file .*/a-09.tar"):
        expand(f"{tmp_path}/a-{{07..09}}.tar")
    with pytest.raises(DataError, match="counts downwards"):
        expand("{9..1}.tar")
    with pytest.raises(DataError, match=r"write \{000..099\}"):
        expand("{1-3}.tar")


def test_patterns_do_not_match_indexes(two):
    assert len(Tars(f"{two}/part*")) == 6
    (two / "part-000.tar.index.npy.1a2b3c4d").touch()  # left by a process that ended while it wrote
    assert (two / "part-000.tar.index.npy").exists()
    assert [path.name for path in expand(f"{two}/part*")] == ["part-000.tar", "part-001.tar"]


def test_what_is_no_tar_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 1000)
    with pytest.raises(DataError, match="x.tar is not a readable tar file"):
        Tars(str(tmp_path / "x.tar"))
    with pytest.raises(DataError, match="no records"):
        write(tmp_path / "empty.tar", {})
        open_source(f"webdataset:{tmp_path}/empty.tar", "train")


def test_a_label_may_stand_in_the_json_beside_a_caption(tmp_path):
    write(tmp_path / "a.tar", {"a.png": png(0), "a.txt": b"a cat", "a.json": b'{"label": 5}'})
    write(tmp_path / "b.tar", {"b.png": png(1), "b.txt": b"a dog", "b.json": b'{"width": 5}'})
    assert open_source(f"webdataset:{tmp_path}/a.tar", "all")[0]["label"] == 5
    assert "label" not in open_source(f"webdataset:{tmp_path}/b.tar", "all")[0]


def test_a_size_below_zero_is_the_end(tmp_path, caplog):
    write(tmp_path / "a.tar", {"a.png": png(0), "a.txt": b"a cat", "b.png": png(1), "b.txt": b"a dog"})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    header = data.index(b"b.png\0")
    data[header + 124 : header + 136] = b"\xff" * 10 + b"\xfe\x00"  # -512, in base 256
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    (tmp_path / "a.tar").write_bytes(data)
    source = open_source(f"webdataset:{tmp_path}/a.tar", "all")
    assert len(source) == 1 and "b.png has a size below 0" in caplog.text
