"""dalle-mini's files, against what borisdayma's own code computes (`tests/golden/make_dalle_mini_transformer.py`)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import clip_jax
import dalle_jax
from dalle_jax import LoadError
from dalle_jax.cli import main
from dalle_jax.text_normalizer import TextNormalizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDER, VQGAN = GOLDEN / "dalle" / "dalle-mini", GOLDEN / "vqgan" / "dalle-mini"
NAMES = ("dalle-mini", "dalle-mini-cogview", "dalle-mini-preln")


def outputs_of(name: str) -> dict:
    with np.load(GOLDEN / "dalle" / name / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def models():
    return {name: dalle_jax.load(GOLDEN / "dalle" / name, vqgan=VQGAN) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_logits_are_those_of_the_peer(models, name):
    """Logits of codes that the VQGAN has; the peer's vocabulary is padded."""
    model, outputs = models[name], outputs_of(name)
    tokens, truncated = model.condition.encode_flagged([str(prompt) for prompt in outputs["prompts"]])
    np.testing.assert_array_equal(tokens, outputs["text"])
    assert truncated.tolist()[:3] == [False, True, False]
    null = 0 * tokens + model.condition.null
    for rows, key in ((tokens, "logits"), (null, "logits_without_text")):
        condition_logits, logits = model.logits(rows, outputs["codes"])
        assert condition_logits is None
        np.testing.assert_allclose(logits, outputs[key][..., :24], atol=1e-4)


def test_guidance_is_super_conditioning(models):
    """The likeliest codes, one after the other, with caches of ours and of the peer's."""
    outputs = outputs_of("dalle-mini")
    prompts = [str(prompt) for prompt in outputs["prompts"]]
    options = {"temperature": 0, "guidance": float(outputs["guidance"]), "progress": False}
    drawing = models["dalle-mini"].draw(prompts, **options)
    np.testing.assert_array_equal(drawing.codes.reshape(4, -1), outputs["sampled"])
    assert drawing.images.shape == (4, 1, 8, 8, 3)


def test_texts_are_normalized_as_by_the_peer(models):
    outputs, normalize = outputs_of("dalle-mini"), models["dalle-mini"].condition.normalize
    for text, normalized in zip(outputs["texts"], outputs["normalized"], strict=True):
        assert normalize(str(text)) == str(normalized)
    assert models["dalle-mini-cogview"].condition.normalize is None


def test_letters_beyond_ascii_are_transliterated(models):
    pytest.importorskip("emoji")
    pytest.importorskip("text_unidecode")
    outputs, normalize = outputs_of("dalle-mini"), models["dalle-mini"].condition.normalize
    for text, normalized in zip(outputs["foreign"], outputs["normalized_foreign"], strict=True):
        assert normalize(str(text)) == str(normalized)


def test_what_transliterates_is_named(models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "emoji", None)
    with pytest.raises(ValueError, match=r"'naïve' has characters beyond ASCII.*multimodal-jax\[dalle-mini\]"):
        models["dalle-mini"].generate(["naïve"], progress=False)
    assert models["dalle-mini"].generate(["naive"], progress=False).shape == (1, 1, 8, 8, 3)
    with pytest.raises(ValueError, match="split into words by enwiki-words-frequency.txt, which was not beside"):
        TextNormalizer()("#tag")


def test_it_has_the_verbs_of_any_model(models, tmp_path, capsys):
    """From a directory that holds the VQGAN: generate with a CLIP that ranks, complete, score; in bfloat16, too."""
    folder = tmp_path / "mini"
    shutil.copytree(FOLDER, folder)
    shutil.copytree(VQGAN, folder / "vqgan")
    clip = GOLDEN / "clip" / "hf-clip"
    options = ["--model", str(folder), "--n", "3", "--guidance", "2", "--top-k", "8", "--out", str(tmp_path / "grid.png")]
    assert main(["generate", "a red circle", *options, "--rerank", str(clip), "--best", "2"]) == 0
    ranked = models["dalle-mini"].draw(
        ["a red circle"], 3, guidance=2.0, top_k=8, rerank=clip_jax.load(clip), best=2, progress=False
    )
    assert ranked.samples.shape == (1, 2) and (np.diff(ranked.scores) <= 0).all()
    rounded = dalle_jax.load(folder, dtype="bfloat16")
    assert rounded.fingerprint == models["dalle-mini"].fingerprint and rounded.dtype == "bfloat16"
    outputs = outputs_of("dalle-mini")
    logits = rounded.logits(outputs["text"], outputs["codes"])[1]
    assert np.abs(logits - outputs["logits"][..., :24]).max() < 0.2
    picture = str(tmp_path / "grid.png")
    arguments = ["complete", picture, "a star", "--keep", "top", "--model", str(folder), "--vqgan", str(VQGAN), "--n", "1"]
    assert main([*arguments, "--out", str(tmp_path / "completed.png")]) == 0
    assert main(["score", picture, "--prompts", "a star,a cat", "--model", str(folder)]) == 0
    assert capsys.readouterr().out.count("\n  ") == 2


def edited(tmp_path, **changes) -> Path:
    folder = tmp_path / "mini"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"use_head_scale": True}, "use_head_scale = True; only False is supported"),
        ({"sinkhorn_iters": 2}, "sinkhorn_iters = 2; only 1 is supported"),
        ({"ln_type": "rmsnorm"}, "ln_type = 'rmsnorm'; only 'layernorm' is supported"),
        ({"ln_positions": "swinv2"}, "ln_positions = 'swinv2'; one of normformer, cogview, preln is supported"),
        ({"activation_function": "smelu"}, "activation_function = 'smelu'; one of gelu,"),
        ({"use_rotary": True}, "config.json has use_rotary; the options"),
        ({"encoder_ffn_dim": 24}, "encoder_ffn_dim = 24, decoder_ffn_dim = 20; only equal ones"),
        ({"d_model": "wide"}, "d_model = 'wide'; it must be of the type int"),
        ({"image_length": 12}, "image_length = 12 is not a square number"),
        ({"encoder_vocab_size": 100}, "tokenizer.json: a tokenizer of 290 tokens, but the model has 100"),
        ({"decoder_start_token_id": 23}, "is a VQGAN of 24 codes, but .* has decoder_start_token_id = 23"),
        ({"decoder_layers": 4}, r"flax_model.msgpack cannot be read|lacks \d+ tensor"),
        ({"encoder_layers": 1}, r"has parts that are not understood: \d+ tensor"),
        ({"use_glu": False}, "lacks .*FFN_0"),
        ({"max_text_length": 9}, "condition/positions"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(LoadError, match=message):
        dalle_jax.load(edited(tmp_path, **changes), vqgan=VQGAN)


def test_a_missing_vqgan_is_asked_for(tmp_path):
    with pytest.raises(LoadError, match=r"no VQGAN that decodes.*--vqgan ….*hf:dalle-mini/vqgan_imagenet_f16_16384"):
        dalle_jax.load(FOLDER)


@pytest.mark.parametrize("name", ["flax_model.msgpack", "tokenizer.json"])
def test_a_damaged_or_missing_file_is_named(tmp_path, name):
    file = edited(tmp_path) / name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match=name):
        dalle_jax.load(file.parent, vqgan=VQGAN)
    file.unlink()
    with pytest.raises(LoadError, match=name):
        dalle_jax.load(file.parent, vqgan=VQGAN)
