"""What a device has left, and what a function will take."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from train_jax import memory
from train_jax.errors import ConfigError


def test_an_accelerator_tells_what_it_has_left():
    stats = {"bytes_limit": 80, "bytes_in_use": 30}
    assert memory.free_bytes(mock.Mock(spec=jax.Device, platform="gpu", memory_stats=lambda: stats)) == 50
    assert memory.free_bytes(mock.Mock(spec=jax.Device, platform="tpu", memory_stats=lambda: None)) is None


def test_a_cpu_s_devices_share_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    for name, text in (("_MEMORY", "MemFree: 1 kB\nMemAvailable:  800 kB\n"), ("_LIMIT", "max\n"), ("_USED", "4096\n"),
                       ("_PARTS", "anon 1024\ninactive_file 2048\nactive_file 1024\n")):  # fmt: skip
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    device = jax.local_devices()[0]
    assert memory.free_bytes(device) == 800 * 1024 // jax.local_device_count()
    (tmp_path / "_LIMIT").write_text("10240\n")
    assert memory.free_bytes(device) == 9 * 1024 // jax.local_device_count()
    with pytest.raises(ConfigError, match="a step takes 1.0 GiB per device, and 0.0 GiB are free: take less"):
        memory.require(2**30, device, "a step takes", "take less")
    memory.require(1, device, "a step takes", "take less")


def test_the_largest_array_is_known_without_computing():
    def outer(x):
        return jnp.sum(jnp.outer(x, x).astype(jnp.bfloat16))

    assert memory.largest_array(outer, jax.ShapeDtypeStruct((100_000,), jnp.float32)) == 4 * 100_000**2
