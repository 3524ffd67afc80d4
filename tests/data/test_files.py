"""Text of users' files: every encoding that says what it is, and by name and place whatever is none."""

import contextlib
import errno
import os

import numpy as np
import pytest

from train_jax import paths
from train_jax.data import files
from train_jax.data.errors import BrokenSample, DataError
from train_jax.errors import ConfigError

TEXT = 'Käfer\n"The Scream\n 画\u2028画 \n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_every_encoding_that_says_so(tmp_path, encoding, end):
    data = TEXT.replace("\n", end)
    file = tmp_path / "x.txt"
    file.write_bytes(b"\xfe\xff" + data.encode("utf-16-be") if encoding.endswith("mark") else data.encode(encoding))
    assert files.read_text(file) == files.read_text(str(file)) == TEXT
    assert files.read_lines(file) == ["Käfer", '"The Scream', "画\u2028画"]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("für".encode("latin-1"), r"x\.txt: byte 1 is not UTF-8 \(invalid start byte\); save the file as UTF-8"),
        (b"\xef\xbb\xbfa\xff", r"x\.txt: byte 4 is not UTF-8"),
        (b"\xff\xfea\0b", r"x\.txt: byte 4 is not UTF-16-LE \(truncated data\)"),
        ("fur".encode("utf-16-le"), r"x\.txt: byte 1 is zero, which is invalid in UTF-8 text"),
        (b"\xff\xfea\0\0\0", r"x\.txt: byte 4 is zero, which is invalid in UTF-16-LE text"),
        ("aé".encode("utf-32"), r"x\.txt: byte 2 is zero"),
    ],
)
def test_other_encodings_are_named_with_the_place(tmp_path, data, complaint):
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(DataError, match=complaint):
        files.read_text(tmp_path / "x.txt")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "labels.txt").write_text("a\n\n  b ")
    assert files.read_lines("~/labels.txt") == ["a", "b"]
    assert paths.path("~/run") == tmp_path / "run" and paths.path(tmp_path) == tmp_path


def test_schemes_that_nobody_opens_are_refused():
    with pytest.raises(ConfigError, match=r"ftp://h/x: there is no storage ftp:// here; .* gs://, s3://"):
        paths.path("ftp://h/x")
    for name in ("s3://bucket/run", paths.Path("s3://bucket/run")):
        with pytest.raises(ConfigError, match="s3:// needs the package s3fs"):
            paths.path(name)


def test_a_failing_disk_is_no_broken_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_RETRY_DELAYS", (0.0, 0.0))
    codes = [errno.EMFILE, errno.EIO]

    def read():
        if codes:
            raise OSError(codes[0], os.strerror(codes.pop(0)))
        return b"at last"

    assert files.read_with_retries(read, "x.jpg") == b"at last"
    codes[:] = [errno.ESTALE] * 3
    with pytest.raises(DataError, match="x.jpg cannot be read, after 3 tries: .*Stale"):
        files.read_with_retries(read, "x.jpg")
    with pytest.raises(BrokenSample, match="nowhere.jpg: No such file"):
        files.read_bytes(tmp_path / "nowhere.jpg")
    with pytest.raises(BrokenSample, match="Is a directory"):
        files.read_bytes(tmp_path)


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    for file in (inside / "a", inside / "deep" / "b", outside / "c"):
        file.touch()
    (inside / "linked").symlink_to(outside)
    (inside / "d").symlink_to(outside / "c")
    (inside / "deep" / "up").symlink_to(inside)
    (outside / "back").symlink_to(inside)
    (inside / "self").symlink_to(inside / "self")
    (inside / "dangling").symlink_to(inside / "nothing")
    assert [str(file.relative_to(inside)) for file in paths.walk(inside)] == ["a", "d", "deep/b", "linked/c"]


def test_damaged_arrays_are_a_value_error(tmp_path):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, a=np.arange(1000), b=np.ones(3))
    content = file.read_bytes()
    assert files.read_arrays(file, ("b",))["b"].tolist() == [1, 1, 1]
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(damaged))
        with contextlib.suppress(ValueError):
            files.read_arrays(file, ("a", "b"))
    np.save(tmp_path / "c.npy", np.ones(3))
    for other, names in ((tmp_path / "c.npy", ("a",)), (file, ("c",))):
        with pytest.raises(ValueError):
            files.read_arrays(other, names)
    with pytest.raises(FileNotFoundError):
        files.read_arrays(tmp_path / "none.npz", ("a",))
