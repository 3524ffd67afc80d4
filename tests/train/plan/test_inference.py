"""Plans of programs for inference on fake devices: bytes by hand, and arguments like those of the programs that run."""

import json

import jax
import pytest
from ml_collections import ConfigDict
from tiny_clip import CLIP

from train_jax.errors import ConfigError
from train_jax.plan import command, inference
from train_jax.plan.targets import Target

DALLE = {
    "task": "dalle_jax.task", "steps": 1, "data": {"source": "webdataset:not-there/*.tar", "batch_size": 8},
    "vqgan": {"path": "vqgan/digits"}, "tokenizer": {"vocab_size": 600}, "compute": {"dtype": "bfloat16"},
    "model": {"text_length": 6, "width": 32, "depth": 2, "heads": 2},
}  # fmt: skip


def test_encoders_of_clip(tmp_path, monkeypatch, capsys):
    """Each encoder reads the weights of its tower, which are float32 and whole on every device; a line of JSON for each."""
    monkeypatch.setattr(Target, "set_environment", lambda self: None)
    file = tmp_path / "tiny.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({CLIP!r})\n")
    words = [f"--config={file}", "--target=fake:8", "--what=encode", "--encode.images=16", "--json"]
    assert command.main(words) == 0
    image, text = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(plan["program"], plan["unit"], plan["batch_size"]) for plan in (image, text)] == [
        ("encode_image", "images", 16),
        ("encode_text", "texts", 256),
    ]
    patches = 16 * 16 * 3 * 2  # a device's share of the pixels, uint8
    assert image["parts"]["weights"] == text["parts"]["weights"] == 4 * image["parameters"]
    assert image["parts"]["batch"] == patches and text["parts"]["batch"] == 4 * 77 * 256 // 8
    block = 4 * 32 * 32 + 4 * 32 + 2 * 4 * 32 * 32 + 5 * 32 + 4 * 32  # attention and MLP with biases, two norms
    tower = block + 2 * 32 + 32 * 16 + 640 * 32 + 77 * 32  # and the last norm, projection, tokens, positions
    assert text["bytes_read"] == 4 * tower + text["parts"]["batch"]
    assert text["peak_bytes"] >= text["parts"]["weights"] + text["parts"]["batch"] + text["parts"]["temporaries"]
    assert not image["collectives"] and image["step_seconds"] is None


def test_sampling_of_a_second_stage():
    """Kernels are bfloat16; a cache of keys and values of two rows an image; the scan reads them once a code."""
    words = ["--sample.images=8", "--sample.conditions=4"]
    prefill, *segments = inference.trace_inference(ConfigDict(DALLE), Target.parse("fake:4"), "sample", words)
    decode = segments[-1]
    assert (prefill.unit, prefill.units, decode.unit) == ("conditions", 5, "codes")
    params = decode.traced.in_avals[0][0]
    assert decode.parts["weights"] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16", "float32"}
    length, codes, rows = 64, 512, 2 * 8 // 4
    assert sum(x.passes for x in segments) == length and decode.units == 8 * length // 4
    for quarter, segment in enumerate(segments, 1):
        caches = 2 * 2 * rows * (quarter * length // 4) * 32 * 2  # of two blocks, in bfloat16
        assert segment.parts["caches and logits"] == caches + 4 * rows * codes
        assert segment.parts["prefixes"] == 2 * 2 * (1 + 1) * 6 * 32 * 2  # one caption of two images, and none
    with pytest.raises(ConfigError, match=r"guidance; set --sample.guided=false"):
        config = ConfigDict(DALLE | {"condition_dropout": 0.0})
        inference.trace_inference(config, Target.parse("fake:4"), "sample", words)
    with pytest.raises(ConfigError, match="--sample.images=8 must be a multiple of --sample.conditions=3"):
        inference.trace_inference(ConfigDict(DALLE), Target.parse("fake:4"), "sample", [words[0], "--sample.conditions=3"])
