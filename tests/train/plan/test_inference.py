"""Plans of programs for inference on fake devices: bytes by hand, and arguments like those of the programs that run."""

import json

import jax
import pytest
from ml_collections import ConfigDict
from tiny_clip import CLIP

from train_jax import config_file
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


def test_imagining_of_unclip():
    """A program for each network; the weights of all are in memory while one runs, those of the text tower once."""
    config = config_file.load("unclip/decoder_shapes")
    config.clip.path = "clip/shapes"
    words = ["--imagine.images=4", "--imagine.steps=9", "--imagine.candidates=3", "--imagine.prior=unclip/prior_shapes"]
    words.append("--imagine.upsampler=")
    prior, decoder = inference.trace_inference(config, Target.parse("fake:2"), "imagine", words)
    text = parameters_of(prior.traced.in_avals[0][0]["text"])
    total = prior.parameters + decoder.parameters - text
    for program in (prior, decoder):
        assert program.parts["weights"] == 4 * program.parameters, "in the config's float32"
        assert program.parts["weights of the others"] == 4 * (total - program.parameters)
        assert program.held == 4 * total + sum(program.parts[name] for name in program.parts if "weights" not in name)
    length, dim = 24, prior.traced.in_avals[0][0]["mean"].size
    assert prior.parts["batch"] == 2 * (length + 3) * 4 and decoder.parts["batch"] == 2 * (length + 3 + dim) * 4
    assert (prior.name, prior.passes, decoder.name, decoder.passes, decoder.units) == ("prior", 25, "decoder", 9, 4)
    (program,) = inference.trace_inference(
        config, Target.parse("fake:2"), "imagine", [words[0], "--imagine.offload=true", "--imagine.prior=", words[-1]]
    )
    assert program.held == sum(program.parts.values()) and program.parts["weights"] == decoder.parts["weights"]
    with pytest.raises(ConfigError, match="--imagine.prior=clip/digits is the config of a clip_jax.task; it must be"):
        inference.trace_inference(config, Target.parse("fake:2"), "imagine", [words[0], "--imagine.prior=clip/digits"])
    with pytest.raises(ConfigError, match="--imagine.images=3 must be a multiple of 2"):
        inference.trace_inference(config, Target.parse("fake:2"), "imagine", ["--imagine.images=3"])


def parameters_of(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


KARLO = {"prior": 1_022_030_080, "decoder": 885_439_686 + 7_878_400, "upsampler": 2 * 691_579_523}  # parameters of karlo
TEXT = 49_408 * 768 + 77 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 768**2  # of the text tower of ViT-L/14


@pytest.mark.slow
def test_imagining_of_karlo():
    """Its parameters, in bfloat16. Nothing is compiled, but tracing takes 15 seconds."""
    config = config_file.load("unclip/karlo_decoder")
    config.clip.path = "clip/vit_l14"
    prior, decoder, upsampler = inference.trace_inference(config, Target.parse("fake:2"), "imagine", ["--imagine.images=4"])
    counts = {"prior": prior.parameters - TEXT, "decoder": decoder.parameters - TEXT, "upsampler": upsampler.parameters}
    assert counts == KARLO
    total = sum(KARLO.values()) + TEXT
    assert upsampler.held == pytest.approx(2 * total, rel=2e-3)
    assert prior.parts["batch"] == 2 * (77 + 3) * 4 and decoder.parts["batch"] == 2 * (77 + 3 + 768) * 4
    assert upsampler.parts["batch"] == 2 * (64 * 64 * 3 + 3) * 4
    assert (prior.passes, decoder.passes, upsampler.passes, upsampler.units) == (25, 25, 0, 4)
