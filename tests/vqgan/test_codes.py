"""Codes of a collection on disk: small, memory-mapped, resumed after a failure; unreadable images apart from all codes."""

import json
import pickle
import signal
from collections.abc import Sequence

import numpy as np
import pytest

from train_jax import precompute
from train_jax.data import mixture, sources
from train_jax.data.errors import BrokenSample, DataError
from train_jax.data.images import decode
from train_jax.datasets.shapes.render import png
from train_jax.errors import ConfigError, Interrupted
from vqgan_jax import codes as codes_lib
from vqgan_jax.coded import CodedRecords

COUNT = 10
RNG = np.random.default_rng(0)
PICTURES = [png(RNG.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(COUNT)]
RECORDS = [{"image": x, "id": str(i), "captions": ["a"]} for i, x in enumerate(PICTURES)]


class Counted(list):
    """Records that list which of them were read; reading record `fails` fails."""

    def __init__(self, fails: int | None = None):
        super().__init__(RECORDS)
        self.read, self.fails = [], fails

    def __getitem__(self, index):
        if index == self.fails:
            raise OSError(f"record {index}: the disk is gone")
        self.read.append(index)
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(precompute, "_PART", 3)
    monkeypatch.setattr(precompute, "_PROBES", 0)


def test_a_failed_job_resumes_after_its_last_part(trained, tmp_path):
    with pytest.raises(OSError, match="record 7"):
        codes_lib.with_codes(trained, sources.Source("s", Counted(7)), tmp_path)
    assert len(list(tmp_path.glob("*.parts/*.npz"))) == 2 and not list(tmp_path.glob("codes-*.npy"))
    again = Counted()
    coded = codes_lib.with_codes(trained, sources.Source("s", again), tmp_path, flip=False)
    assert again.read == [6, 7, 8, 9], "parts of records 0 to 5 were there"
    expected = trained.encode(np.stack([trained.preprocess([decode(record["image"])])[0] for record in RECORDS]))
    np.testing.assert_array_equal(coded.codes[:, 0], expected)
    assert not list(tmp_path.glob("*.parts")), "joined parts are removed"


@pytest.mark.parametrize("size, dtype", [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_codes_lie_in_the_smallest_unsigned_type(trained, tmp_path, monkeypatch, size, dtype):
    """The largest code of each vocabulary, which must not mark unreadable images."""
    last = np.full((1, 8, 8), size - 1, np.int32)
    monkeypatch.setattr(type(trained), "num_codes", property(lambda self: size))
    monkeypatch.setattr(type(trained), "encode", lambda self, x, batch_size: np.repeat(last, len(x), axis=0))
    records = [*RECORDS[:2], {"image": b"none", "id": "b", "captions": ["b"]}]
    coded = codes_lib.with_codes(trained, sources.Source("s", records), tmp_path)
    assert coded.codes.dtype == dtype
    record = coded[1]
    assert "image" not in record and record["codes"].dtype == np.int32 and (record["codes"] == size - 1).all()
    with pytest.raises(BrokenSample, match="b: the image could not be read"):
        coded[2]
    assert coded.histogram[size - 1] == 2 * 64 == coded.histogram.sum()


def test_codes_are_memory_mapped_in_every_process(trained, tmp_path):
    coded = codes_lib.with_codes(trained, sources.Source("s", RECORDS), tmp_path)
    assert isinstance(coded.codes, np.memmap)
    sent = pickle.dumps(CodedRecords(sources.Source("s", []), coded.file))
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).codes, coded.codes)


class Described(Sequence):
    """Records whose descriptions exist and whose images do not."""

    def __len__(self):
        return COUNT

    def metadata(self, index):
        return {key: value for key, value in RECORDS[index].items() if key != "image"}

    def __getitem__(self, index):
        raise OSError("the picture is gone")


def test_codes_are_read_without_images(trained, tmp_path):
    coded = codes_lib.with_codes(trained, sources.Source("s", RECORDS), tmp_path)
    without_images = CodedRecords(sources.Source("s", Described()), coded.file)
    np.testing.assert_array_equal(without_images[3]["codes"], coded[3]["codes"])
    assert without_images[3]["id"] == "3"


def test_each_record_of_a_mixture_is_encoded_once(trained, tmp_path):
    source = sources.Source("s", Counted())
    some = sources.select(source, ("id=3",))
    mixed = sources.Source("m", mixture.Mixed([source, some], [1, 1]))
    source.records.read.clear()
    coded = codes_lib.with_codes(trained, mixed, tmp_path)
    assert source.records.read == list(range(COUNT)) and len(coded) == 2 * COUNT
    alone = codes_lib.with_codes(trained, sources.Source("s", RECORDS), tmp_path)
    assert alone.file == coded.file, "the codes of a source serve its mixtures"
    sent = pickle.loads(pickle.dumps(coded))
    for index in (2, 3, COUNT, 2 * COUNT - 1):
        np.testing.assert_array_equal(sent[index]["codes"], alone[min(index, 3 if index >= COUNT else index)]["codes"])
    expected = np.bincount(alone.codes.ravel(), minlength=trained.num_codes)
    expected += COUNT * np.bincount(alone[3]["codes"].ravel(), minlength=trained.num_codes)
    np.testing.assert_array_equal(coded.histogram, expected[: len(coded.histogram)])


def test_a_json_file_describes_the_codes(trained, tmp_path):
    coded = codes_lib.with_codes(trained, sources.Source("s", RECORDS), tmp_path)
    made_of = json.loads(coded.file.with_suffix(".json").read_text())
    assert made_of["tokenizer"] == trained.fingerprint and made_of["records"] == COUNT


def test_a_damaged_part_is_named(trained, tmp_path):
    with pytest.raises(OSError):
        codes_lib.with_codes(trained, sources.Source("s", Counted(7)), tmp_path)
    part = min(tmp_path.glob("*.parts/*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{part.name} is damaged .*: remove it"):
        codes_lib.with_codes(trained, sources.Source("s", RECORDS), tmp_path)
    part.unlink()
    codes_lib.with_codes(trained, sources.Source("s", RECORDS), tmp_path)


def test_another_host_that_fails_or_stands_still_ends_the_waiting(tmp_path, monkeypatch):
    job = precompute._Job("codes", tmp_path, 7, lambda: 0)
    (tmp_path / "failed-7-3").write_text("OSError: no space left")
    with pytest.raises(DataError, match="by host 3: OSError: no space left"):
        job.wait(lambda names: False)
    (tmp_path / "failed-7-3").unlink()
    monkeypatch.setattr(precompute, "_PATIENCE", 0.05)
    monkeypatch.setattr(precompute, "_POLL", 0.01)
    with pytest.raises(DataError, match="0 files, and no host has added a file for 0 seconds"):
        job.wait(lambda names: False)


def test_a_host_that_is_asked_to_stop_ends_the_work_of_all_and_keeps_what_is_done(trained, tmp_path):
    records = Counted()
    with pytest.raises(Interrupted) as caught:
        codes_lib.with_codes(trained, sources.Source("s", records), tmp_path, asked_to_stop=lambda: signal.SIGTERM)
    assert caught.value.signal_number == signal.SIGTERM and records.read == [0, 1, 2], "one part"
    (note,) = tmp_path.glob("*.parts/stopped-*")
    token = int(note.name.split("-")[1])
    with pytest.raises(Interrupted) as caught:  # what another host of this job sees
        precompute._Job("codes", note.parent, token, lambda: 0).wait(lambda names: False)
    assert caught.value.signal_number == signal.SIGTERM
    precompute._Job("codes", note.parent, token + 1, lambda: 0).check()  # and what another job sees: nothing
    again = Counted()
    assert len(codes_lib.with_codes(trained, sources.Source("s", again), tmp_path).codes) == COUNT
    assert again.read == list(range(3, COUNT))


def test_a_host_that_was_done_before_another_was_asked_to_stop_stops_too(trained, tmp_path, monkeypatch):
    """Such as process 0, which looks at no notes while it joins the parts."""
    signals = []

    def gather(value):
        signals.append(value)
        return [value, signal.SIGTERM]

    monkeypatch.setattr(precompute.agreement, "gather", gather)
    with pytest.raises(Interrupted) as caught:
        codes_lib.with_codes(trained, sources.Source("s", Counted()), tmp_path)
    assert caught.value.signal_number == signal.SIGTERM
    with pytest.raises(Interrupted):
        codes_lib.with_codes(trained, sources.Source("t", Counted()), tmp_path, asked_to_stop=lambda: signal.SIGINT)
    assert signals == [0, signal.SIGINT], "every host meets the others, also one that stops"


def test_a_directory_that_hosts_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(precompute.multihost_utils, "process_allgather", lambda x: np.array([True, False, False]))
    with pytest.raises(ConfigError, match=r"host\(s\) 1, 2 do not see it: set config.codes.dir"):
        precompute._await_visible(tmp_path, "codes")
