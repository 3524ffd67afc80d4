"""Object storage: runs, data and weights in `gs://`, which here is a local folder behind fsspec's interface."""

import io
import tarfile

import numpy as np
import pytest
from drive_toy import config
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry
from orbax.checkpoint._src.path import gcs_utils
from PIL import Image
from safetensors.numpy import save_file

import train_jax
from train_jax import metrics, paths, profiling, trained_weights
from train_jax.data import files, sources
from train_jax.errors import ConfigError
from train_jax.weights.tensors import open_tensors


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that `gs://bucket` is."""

    class Storage(DirFileSystem):
        protocol = ("gs", "gcs")
        cachable = False

        def __init__(self, **options):
            super().__init__(path=str(tmp_path), fs=LocalFileSystem(auto_mkdir=True))

        def _join(self, path):
            return super()._join(self._strip_protocol(path))

    for name in Storage.protocol:
        monkeypatch.setitem(_registry, name, Storage)
    backend.fsspec_backend._get_filesystem.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Arrays are written by TensorStore, which knows its own way to Google's servers.
    monkeypatch.setattr(
        gcs_utils, "get_kvstore_for_gcs", lambda path: {"driver": "file", "path": path.replace("gs://", f"{tmp_path}/")}
    )
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    (tmp_path / "bucket").mkdir()
    yield tmp_path / "bucket"
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_run_in_storage_is_a_run(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"optim": {"schedule": "constant"}}
    local = train_jax.run(config(steps=20, **options), tmp_path / "run")
    half = train_jax.run(config(steps=10, **options), "gs://bucket/run")
    assert len(half) and metrics.read("gs://bucket/run") == half
    stored = train_jax.run(config(steps=20, **options), "gs://bucket/run")  # goes on from step 10
    drop = {"time", "steps_per_second", "examples_per_second", "mfu"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in stored if row["step"] > 10] == [
        {k: v for k, v in row.items() if k not in drop} for row in local if row["step"] > 10
    ]
    for name in ("config.json", "checkpoints", "metrics.jsonl", "tensorboard"):
        assert (bucket / "run" / name).exists()
    assert list((bucket / "run" / "tensorboard").glob("events*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"bucket", "run", "cache"}, "nothing goes astray"
    from_storage, from_disk = (
        trained_weights.load_weights(folder) for folder in ("gs://bucket/run/checkpoints", tmp_path / "run" / "checkpoints")
    )
    assert from_storage[2] == from_disk[2] == 20
    np.testing.assert_array_equal(
        from_storage[0]["generator"]["out"]["kernel"], from_disk[0]["generator"]["out"]["kernel"]
    )


def test_traces_go_to_storage(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with profiling.trace("gs://bucket/profile"):
        pass
    assert any(path.is_file() for path in (bucket / "profile").rglob("*"))
    assert not (tmp_path / "gs:").exists()


@pytest.mark.parametrize(
    ("workdir", "complaint"),
    [
        ("ftp://host/run", "there is no storage ftp:// here"),
        ("s3://bucket/run", "s3:// needs the package s3fs"),
        ("hf://buckets/run", "checkpoints are kept in local folders and in gs:// alone"),
    ],
)
def test_run_directories_that_nobody_can_write_are_refused_first(tmp_path, monkeypatch, workdir, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=complaint):
        train_jax.run(config(data={"source": "no such source"}), workdir)
    assert not list(tmp_path.iterdir())


def test_what_is_mapped_into_memory_lies_on_a_disk(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.on_disk("~/codes", "config.codes.dir") == tmp_path / "codes"
    with pytest.raises(ConfigError, match="gs://bucket/run/codes: .* name a folder there: config.codes.dir"):
        paths.on_disk(paths.path("gs://bucket/run") / "codes", "config.codes.dir")


def test_a_run_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    metrics.Writer("~/run", total_steps=1).close()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_folders_in_storage(bucket):
    (bucket / "deep").mkdir()
    (bucket / "deep" / "a.png").write_bytes(png(7))
    (bucket / "deep" / "a.txt").write_text("a\n")
    (bucket / "labels.txt").write_bytes("ä\r\nb\n".encode("utf-16"))
    source = sources.open_source("folder:gs://bucket", "all")
    assert list(source) == [{"image": png(7), "captions": ["a"], "id": "deep/a.png"}]
    assert files.read_lines("gs://bucket/labels.txt") == ["ä", "b"]


def test_tars_in_storage(bucket):
    for number in range(2):
        with tarfile.open(bucket / f"{number}.tar", "w") as tar:
            for name, data in (("a.png", png(number)), ("a.txt", b"%d" % number)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    for pattern in ("{0..1}", "*", "?"):
        source = sources.open_source(f"webdataset:gs://bucket/{pattern}.tar", "all")
        assert [record["image"] for record in source] == [png(0), png(1)]
        assert [record["captions"] for record in source] == [["0"], ["1"]]
    assert (bucket / "0.tar.index.npy").is_file()


def test_weight_files_in_storage(bucket):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"x": array}, bucket / "x.safetensors")
    for _ in range(2):
        np.testing.assert_array_equal(open_tensors(paths.path("gs://bucket/x.safetensors"))["x"], array)
    save_file({"x": -array}, bucket / "x.safetensors.new")
    with (bucket / "x.safetensors").open("wb") as file:
        file.write((bucket / "x.safetensors.new").read_bytes() + b"\n")  # another length: it has changed
    assert paths.local(paths.path("gs://bucket/x.safetensors")).read_bytes()[-1:] == b"\n"
