"""The precision of inference on every kind of device."""

from types import SimpleNamespace

import jax
import pytest

from train_jax import arguments
from train_jax.compute import INFERENCE_DTYPES, inference_dtype


@pytest.mark.parametrize(
    "platform, capability, expected",
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "9.0", "bfloat16"),
        ("gpu", "12.0", "bfloat16"),
        ("gpu", None, "float32"),
        ("gpu", "gfx90a", "float32"),
    ],
)
def test_auto_is_bfloat16_where_it_is_multiplied(monkeypatch, platform, capability, expected):
    device = SimpleNamespace(platform=platform, **({"compute_capability": capability} if capability else {}))
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert inference_dtype("auto") == expected
    assert inference_dtype("float32") == "float32" and inference_dtype("bfloat16") == "bfloat16"


def test_another_dtype_is_refused_and_commands_offer_the_same():
    with pytest.raises(ValueError, match="dtype = 'float16' must be one of auto, float32, bfloat16"):
        inference_dtype("float16")
    assert arguments.DTYPES == INFERENCE_DTYPES
