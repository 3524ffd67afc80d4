"""Pickles read without Python's unpickler: the same plain values; nothing is run; damage and bombs are a LoadError."""

import argparse
import datetime
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from train_jax.errors import LoadError
from train_jax.weights.pickles import Global, Interpreter, Record
from train_jax.weights.tensors import open_tensors

SHARED = [1, 2]
PLAIN = {
    "numbers": [0, -1, 255, 65536, -(2**31), 2**70, 1.5, float("inf"), True, False, None],
    "text": ["", "ü", "a\nb", "x" * 300],
    "bytes": b"\x00\xff",
    "tuples": [(), (1,), (1, 2), (1, 2, 3), tuple(range(9))],
    "dicts": {1: {2: {}}, None: "none", 2.5: SHARED},
    "shared": SHARED,
}


def read(data: bytes):
    return Interpreter({"_codecs.encode": lambda text, _: text.encode("latin-1")}, lambda saved: saved).load(data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_those_of_pickle(protocol):
    assert read(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_shared_and_recursive_values_stay_so():
    first, second = read(pickle.dumps([SHARED, SHARED]))
    assert first is second
    endless = []
    endless.append(endless)
    actual = read(pickle.dumps(endless))
    assert actual[0] is actual


OBJECTS = [
    argparse.Namespace(lr=1e-4),
    pathlib.Path("logs"),
    datetime.timedelta(3),
    np.float64(0.5),
    np.arange(3),
    np.random.default_rng(0),
    {argparse.Namespace: {"best": np.float32(1)}, (1, 2): "a tuple"},
    slice(1, 2),
    os.path.join,
    ValueError("no"),
    frozenset({1}),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", OBJECTS, ids=lambda x: type(x).__name__)
def test_objects_are_records_of_what_was_asked(value, protocol):
    actual = read(pickle.dumps([value, "after"], protocol))
    assert actual[1] == "after"
    assert isinstance(actual[0], Record | Global | dict | list)


class Gadget:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def gadgets(marker: pathlib.Path) -> dict[str, bytes]:
    """Pickles each of which makes the file `marker` when Python's unpickler reads it."""
    text = f"open({str(marker)!r}, 'w').close()"
    touch = f"touch '{marker}'".encode()
    called = {
        "system": Gadget(os.system, touch.decode()),
        "eval": Gadget(eval, text),
        "exec": Gadget(exec, text),
        "popen": Gadget(subprocess.check_call, ["touch", str(marker)]),
        "key": {Gadget(eval, text): 1},
        "argument": Gadget(print, Gadget(eval, text)),
    }
    by_hand = {
        "inst": b"(S'" + touch.replace(b"'", b"") + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + touch.replace(b"'", b"") + b"'\no.",
        "getattr": b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'"
        + touch.replace(b"'", b"")
        + b"'\ntR.",
    }
    return {name: pickle.dumps(gadget) for name, gadget in called.items()} | by_hand


NAMES = list(gadgets(pathlib.Path("marker")))


def archive(path: pathlib.Path, data: bytes, compression=zipfile.ZIP_STORED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_file_is_run(name, tmp_path):
    marker = tmp_path / "marker"
    data = gadgets(marker)[name]
    pickle.loads(data)
    assert marker.exists(), "no gadget: the test would show nothing"
    marker.unlink()
    assert open_tensors(archive(tmp_path / "file.pt", data)) == {}
    assert not marker.exists()


def test_nothing_in_a_file_is_imported(tmp_path, monkeypatch):
    (tmp_path / "named_by_a_pickle.py").write_text("class Thing: pass")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_tensors(archive(tmp_path / "file.pt", b"cnamed_by_a_pickle\nThing\n)\x81.")) == {}
    assert "named_by_a_pickle" not in sys.modules


def nested(opcode: bytes, depth: int = 100_000) -> bytes:
    return b"\x80\x02N" + opcode * depth + b"."


def doubled(times: int) -> bytes:
    """A dict that holds the one before twice, `times` over."""
    data = b"\x80\x02}q\x00"
    for _ in range(times):
        data += b"0}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00uq\x00"
    return data + b"."


BOMBS = {
    "deep tuples": nested(b"\x85"),
    "deep tuples as a key": b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns.",
    "deep dicts": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 20_000 + b"}" + b"s" * 20_000 + b".",
    "deep records": b"\x80\x02" + b"cx\ny\n)R" * 20_000 + b"}" + b"b" * 20_000 + b".",
    "a dict of dicts": doubled(60),
    "far memo": b"\x80\x02Nr\xff\xff\xff\xff0N.",
    "far memo in text": b"Np99999999999999999999\n.",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "long bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
    "long number": b"I" + b"9" * 100_000 + b"\n.",
    "no end": b"\x80\x02N",
    "empty": b"",
    "nothing on the stack": b"\x80\x02s.",
    "no mark": b"\x80\x02t.",
    "an extension": b"\x80\x02\x82\x01.",
    "a tensor of a text": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(X\x01\x00\x00\x00aK\x00)Ktt\x85R.",
    "a call with no arguments": b"\x80\x02ctorch._utils\n_rebuild_parameter\nNR.",
    "a reference to itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_an_error_or_empty(name, tmp_path):
    try:
        assert open_tensors(archive(tmp_path / "file.pt", BOMBS[name])) == {}
    except LoadError as error:
        assert str(tmp_path / "file.pt") in str(error)


def test_a_compressed_member_is_refused(tmp_path):
    path = archive(tmp_path / "file.pt", pickle.dumps("x" * 10_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(LoadError, match=r"archive/data.pkl is compressed"):
        open_tensors(path)


def test_any_damage_is_a_load_error():
    intact = pickle.dumps([PLAIN, OBJECTS[:7]], 2)
    rng = random.Random(0)
    damaged = [intact[:length] for length in range(0, len(intact), 7)]
    for _ in range(500):
        data = bytearray(intact)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        damaged.append(bytes(data))
    for data in damaged:
        try:
            read(data)
        except LoadError:
            continue


def tensor_file(path: pathlib.Path, kind: str, shape: bytes, strides: bytes, numbers: bytes) -> pathlib.Path:
    """A PyTorch file of one tensor "w", by hand."""
    storage = b"((X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"K\x00" + shape + strides + b"\x89NtR"
    archive(path, b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s.")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", numbers)
    return path


def test_tensors_are_read_and_odd_ones_named(tmp_path):
    numbers = np.arange(4, dtype=np.float32).tobytes()
    path = tensor_file(tmp_path / "w.pt", "FloatStorage", b"K\x02K\x02\x86", b"K\x01K\x02\x86", numbers)
    np.testing.assert_array_equal(open_tensors(path)["w"], [[0, 2], [1, 3]])
    for kind, shape, stored, words in (
        ("ComplexFloatStorage", b"K\x02K\x02\x86", numbers, "w.pt holds numbers of type ComplexFloatStorage"),
        ("FloatStorage", b"K\x09K\x02\x86", numbers, "lies outside its storage"),
        ("FloatStorage", b"K\x02K\x02\x86", numbers[:7], "w.pt cannot be read as weights"),
    ):
        tensor = open_tensors(tensor_file(tmp_path / "w.pt", kind, shape, b"K\x01K\x02\x86", stored))["w"]
        with pytest.raises(LoadError, match=words):
            np.asarray(tensor)
    large = b"J\x00\x00\x00\x40J\x00\x00\x00\x40\x86"
    path = tensor_file(tmp_path / "w.pt", "FloatStorage", large, b"K\x00K\x00\x86", numbers)
    with pytest.raises(LoadError, match="has more numbers than its storage"):
        np.asarray(open_tensors(path)["w"])


def doubled(depth: int) -> list:
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_what_a_file_built_is_never_printed(tmp_path):
    """A list that holds itself twice, sixty times over, has 2^60 items in print."""
    name = b"\x80\x04" + pickle.dumps(doubled(60), 4)[11:-1] + b"\x8c\x01x\x93."  # STACK_GLOBAL of it and "x"
    with pytest.raises(LoadError, match="a name that is not a string"):
        read(name)


def test_overlong_names_of_tensors_are_refused(tmp_path):
    key, state = "k" * 900, 1
    for _ in range(5):
        state = {key: state}
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(state, 2))
    with pytest.raises(LoadError, match="names of more than 1,000 characters"):
        open_tensors(tmp_path / "weights.pt")


def test_keys_of_one_hash_take_no_time():
    keys = [number * (2**61 - 1) for number in range(1, 50)]
    assert read(pickle.dumps(dict.fromkeys(keys, 0))) == {str(key): 0 for key in keys}
