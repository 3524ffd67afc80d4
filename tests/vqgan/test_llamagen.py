"""Class-conditional LlamaGen, against what its own code computes (`tests/golden/make_llamagen.py`)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vqgan_jax
from vqgan_jax import LoadError
from vqgan_jax.cli import main

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vqgan"
VQGAN = GOLDEN / "dalle-mini"
NAMES = ("llamagen-prior", "llamagen-prior-groups")


def outputs_of(name: str) -> dict:
    with np.load(GOLDEN / name / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def models():
    return {name: vqgan_jax.load_prior(GOLDEN / name, vqgan=VQGAN) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_peer(models, name):
    model, outputs = models[name], outputs_of(name)
    for labels, key in ((outputs["labels"].tolist(), "logits"), ([None] * 3, "logits_without_label")):
        condition_logits, logits = model.logits(model.condition.encode(labels), outputs["codes"])
        assert condition_logits is None
        np.testing.assert_allclose(logits, outputs[key], atol=1e-4)


def test_the_most_likely_codes_are_those_of_the_peer(models):
    outputs, options = outputs_of("llamagen-prior"), {"temperature": 0, "progress": False}
    for key, guidance in (("greedy", 1.0), ("guided", float(outputs["guidance"]))):
        drawing = models["llamagen-prior"].draw(outputs["labels"].tolist(), guidance=guidance, **options)
        np.testing.assert_array_equal(drawing.codes.reshape(3, -1), outputs[key])
    assert (outputs["greedy"] != outputs["guided"]).any()


def test_grouped_heads_are_cached_as_groups(models):
    """Codes of complete sequences without a cache, the most likely one after the other."""
    model, labels = models["llamagen-prior-groups"], [3, 0]
    drawing = model.draw(labels, temperature=0, guidance=2.0, progress=False)
    codes, tokens = np.zeros((2, 16), np.int32), model.condition.encode([*labels, None, None])
    for position in range(16):
        logits = model.logits(tokens, np.concatenate([codes, codes]))[1][:, position]
        codes[:, position] = np.argmax(logits[2:] + 2 * (logits[:2] - logits[2:]), axis=1)
    np.testing.assert_array_equal(drawing.codes.reshape(2, -1), codes)


def test_it_has_the_verbs_of_any_model(models, tmp_path):
    folder = tmp_path / "llamagen-prior"
    shutil.copytree(GOLDEN / "llamagen-prior", folder)
    shutil.copytree(VQGAN, folder / "vqgan")
    out = tmp_path / "grid.png"
    arguments = ["sample", "--model", str(folder), "--n", "2", "--class", "3", "--guidance", "2", "--out", str(out)]
    assert main(arguments) == 0 and out.is_file()
    model = vqgan_jax.load_prior(folder, dtype="bfloat16")
    assert model.fingerprint == models["llamagen-prior"].fingerprint and model.classes == 5
    outputs = outputs_of("llamagen-prior")
    logits = model.logits(model.condition.encode(outputs["labels"].tolist()), outputs["codes"])[1]
    assert np.abs(logits - outputs["logits"]).max() < 0.3
    ranked = models["llamagen-prior"].draw([1], 4, rerank="likelihood", best=2, progress=False)
    assert ranked.scores[0, 0] >= ranked.scores[0, 1]


def edited(tmp_path, **changes) -> Path:
    folder = tmp_path / "llamagen-prior"
    shutil.copytree(GOLDEN / "llamagen-prior", folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return folder


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "t2i"}, "model_type = 't2i'; only 'c2i' is supported here; open it with dalle_jax.load"),
        ({"norm_eps": 1e-6}, "norm_eps = 1e-06; only 1e-05 is supported"),
        ({"experts": 2}, "config.json has experts; the options of ModelArgs: attn_dropout_p"),
        ({"block_size": "absent"}, "it lacks 'block_size'"),
        ({"block_size": 12}, "block_size = 12 is not a square number"),
        ({"n_layer": 1}, "weights.pt has parts that are not understood: 7 tensor"),
        ({"n_layer": 3}, "weights.pt lacks 7 tensor"),
        ({"n_head": 3}, "width = 32; it must be a multiple of config.model.heads = 3"),
        ({"n_head": 16}, "width = 32; it must be a multiple of 64 for rotary positions"),
        ({"dim": 64.5}, "dim = 64.5; it must be a positive integer"),
        ({"multiple_of": 64}, "weights and configuration belong to different models"),
        ({"num_classes": 6}, "weights and configuration belong to different models"),
        ({"vocab_size": 23}, "is a VQGAN of 24 codes, but .* has vocab_size = 23"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(LoadError, match=message):
        vqgan_jax.load_prior(edited(tmp_path, **changes), vqgan=VQGAN)


def test_missing_files_are_asked_for(tmp_path):
    folder = edited(tmp_path)
    with pytest.raises(LoadError, match="no VQGAN that decodes its codes.*vq_ds16_c2i.pt"):
        vqgan_jax.load_prior(folder)
    (folder / "weights.pt").unlink()
    with pytest.raises(LoadError, match="must hold one file of weights .*; it holds none"):
        vqgan_jax.load_prior(folder, vqgan=VQGAN)
