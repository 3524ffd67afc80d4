"""ruDALL-E's files, against what SberAI's own code computes with them (`tests/golden/make_rudalle.py`)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import clip_jax
import dalle_jax
from dalle_jax import LoadError
from dalle_jax.cli import main
from train_jax.data.yttm import YouTokenToMe

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VQGAN = GOLDEN / "vqgan" / "dalle-mini"
VERSIONS = ("v2", "v3")


def folder_of(version: str) -> Path:
    return GOLDEN / "dalle" / f"rudalle-{version}"


def outputs_of(version: str) -> dict:
    with np.load(folder_of(version) / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def models():
    return {version: dalle_jax.load(folder_of(version), vqgan=VQGAN) for version in VERSIONS}


def test_texts_become_the_tokens_of_the_peer():
    outputs, bpe = outputs_of("v3"), YouTokenToMe.parse((folder_of("v3") / "bpe.model").read_text())
    for text, expected in zip(outputs["texts"], outputs["tokens"], strict=True):
        tokens = [bpe.begin, *bpe.encode(str(text).lower()), bpe.end]
        assert tokens[: len(expected)] == expected[expected > 0].tolist(), text
    assert bpe.vocab_size == 28 + 72 + 4 and (outputs["tokens"] == bpe.unknown).any()


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_and_the_most_likely_codes_are_those_of_the_peer(models, version):
    model, outputs = models[version], outputs_of(version)
    prompts = [str(prompt) for prompt in outputs["prompts"]]
    tokens, truncated = model.condition.encode_flagged(prompts)
    assert truncated.tolist() == [False, True, False] and tokens.shape == (3, 12 + (version == "v2"))
    assert model.condition.likelihood_mask(tokens).sum(axis=1).tolist() == [n + (version == "v2") for n in (4, 12, 2)]
    text_logits, code_logits = model.logits(tokens, outputs["codes"])
    np.testing.assert_allclose(text_logits, outputs["text_logits"], atol=1e-4)
    np.testing.assert_allclose(code_logits, outputs["code_logits"], atol=1e-4)
    drawing = model.draw(prompts, temperature=0, progress=False)
    np.testing.assert_array_equal(drawing.codes.reshape(3, -1), outputs["codes"])


def test_it_has_the_verbs_of_any_model(models, tmp_path, capsys):
    clip, out = GOLDEN / "clip" / "hf-clip", str(tmp_path / "grid.png")
    shared = ["--model", str(folder_of("v3")), "--vqgan", str(VQGAN)]
    assert main(["generate", "круг", *shared, "--n", "3", "--rerank", str(clip), "--best", "2", "--out", out]) == 0
    assert main(["complete", out, "круг", *shared, "--keep", "top", "--n", "1", "--out", str(tmp_path / "half.png")]) == 0
    assert main(["score", out, "--prompts", "круг,звезда", *shared]) == 0
    assert capsys.readouterr().out.count("\n  ") == 2
    ranked = models["v3"].draw(["круг"], 3, rerank=clip_jax.load(clip), best=2, progress=False)
    assert (np.diff(ranked.scores) <= 0).all()
    with pytest.raises(ValueError, match="guidance = 2.0: .* was not trained without text"):
        models["v3"].generate(["круг"], guidance=2.0, progress=False)
    rounded, outputs = dalle_jax.load(folder_of("v3"), vqgan=VQGAN, dtype="bfloat16"), outputs_of("v3")
    assert rounded.fingerprint == models["v3"].fingerprint
    logits = rounded.logits(rounded.condition.encode([str(p) for p in outputs["prompts"]]), outputs["codes"])[1]
    assert np.abs(logits - outputs["code_logits"]).max() < 0.2


def edited(tmp_path, version: str = "v3", params: dict | None = None, **changes) -> Path:
    folder = tmp_path / "rudalle"
    shutil.copytree(folder_of(version), folder)
    entry = json.loads((folder / "config.json").read_text()) | changes
    entry["model_params"] |= params or {}
    (folder / "config.json").write_text(json.dumps(entry))
    return folder


@pytest.mark.parametrize(
    "params, changes, message",
    [
        ({"mlp_activation": "relu"}, {}, "mlp_activation = 'relu'; only gelu_jit and gelu"),
        ({"rotary": True}, {}, "config.json has rotary; what is understood: attention_dropout_prob"),
        ({}, {"rotary": True}, "config.json has rotary; what is understood: authors"),
        ({}, {"hf_version": "v1"}, "hf_version = 'v1'; it must be one of v2, v3"),
        ({}, {"hf_version": "v2"}, "conv_mask is not that of hf_version v2|condition/positions"),
        ({}, {"filename": "other.bin"}, "names other.bin, which is not there"),
        ({"hidden_size": 16.0}, {}, "hidden_size = 16.0; it must be of the type int"),
        ({"num_attention_heads": 3}, {}, "width = 16; it must be a multiple"),
        ({"num_layers": 3}, {}, "has parts that are not understood: 16 tensor"),
        ({"num_layers": 5}, {}, "lacks 16 tensor"),
        ({"cogview_sandwich_layernorm": False}, {}, "not understood: 16 tensor.*before_first_addition_layernorm"),
        ({"image_tokens_per_dim": 4}, {}, "row_mask is not that of"),
        ({"vocab_size": 110}, {}, "a tokenizer of 104 tokens, with 12 pads too many for vocab_size = 110"),
        ({"image_vocab_size": 25}, {}, "is a VQGAN of 24 codes, but .* has image_vocab_size = 25"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, params, changes, message):
    with pytest.raises(LoadError, match=message):
        dalle_jax.load(edited(tmp_path, params=params, **changes), vqgan=VQGAN)


def test_weights_without_a_configuration_ask_for_it(tmp_path):
    folder = edited(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match="no config.json with the model's entry in rudalle.dalle.MODELS"):
        dalle_jax.load(folder, vqgan=VQGAN)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "bpe.model"])
def test_a_damaged_file_is_named(tmp_path, name):
    file = edited(tmp_path) / name
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(LoadError, match=name):
        dalle_jax.load(file.parent, vqgan=VQGAN)
