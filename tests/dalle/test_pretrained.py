"""minDALL-E's files, against what kakaobrain's own code computes with them (`tests/golden/make_dalle.py`)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import dalle_jax
from dalle_jax import LoadError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dalle" / "mindalle"


@pytest.fixture(scope="module")
def outputs():
    with np.load(GOLDEN / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return dalle_jax.load(GOLDEN)


def test_prompts_become_the_same_tokens(model, outputs):
    prompts = [str(prompt) for prompt in outputs["prompts"]]
    rows, truncated = model.condition.encode_flagged(prompts)
    np.testing.assert_array_equal(rows, outputs["text"])
    assert truncated.tolist() == [False, True, False]
    assert model.condition.likelihood_mask(rows)[:, :3].tolist() == [[True] * 3, [True] * 3, [False] * 3]


def test_logits_are_those_of_the_peer(model, outputs):
    text_logits, code_logits = model.logits(outputs["text"], outputs["codes"])
    np.testing.assert_allclose(text_logits, outputs["text_logits"], atol=1e-4)
    np.testing.assert_allclose(code_logits, outputs["code_logits"], atol=1e-4)


def test_the_most_likely_codes_and_their_pictures_are_those_of_the_peer(model, outputs):
    prompts = [str(prompt) for prompt in outputs["prompts"]]
    drawing = model.draw(prompts, temperature=0, progress=False)
    np.testing.assert_array_equal(drawing.codes.reshape(3, -1), outputs["codes"])
    np.testing.assert_allclose(drawing.images[:, 0] / 255, outputs["pictures"], atol=0.5 / 255 + 1e-4)


def test_guidance_is_refused_to_a_model_that_always_saw_the_caption(model):
    with pytest.raises(ValueError, match="guidance = 2.0: .* was not trained without text"):
        model.generate(["a red circle"], guidance=2.0, progress=False)


def edited(tmp_path, *keys, value) -> Path:
    folder = tmp_path / "mindalle"
    shutil.copytree(GOLDEN, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (("stage2", "type"), "transformer2d", "stages of the types"),
        (("stage2", "hparams", "n_layers"), 3, "only dense layers"),
        (("stage2", "hparams", "n_dense_layers"), 1, "only dense layers"),
        (("stage2", "hparams", "mlp_bias"), False, "only layers with biases"),
        (("stage2", "hparams", "ctx_len_img"), 12, "not a square number"),
        (("stage2", "vocab_size_txt"), 20, "but the model has 20"),
        (("stage2", "hparams", "n_heads"), 3, "embed_dim = 16 is not a multiple of n_heads = 3"),
        (("stage2", "hparams", "n_embd"), 16, "stage2.hparams has n_embd; minDALL-E.s options are embed_dim"),
        (("stage2", "hparams", "n_layers"), "two", "stage2.hparams.n_layers = 'two'; it must be of the type int"),
        (("stage2", "hparams"), 3, "stage2.hparams is 3; it must be a mapping"),
        (("dataset", "context_length"), 10, "condition/positions"),
        (("dataset",), 10, "dataset is 10; it must be a mapping"),
        (("stage1",), 1, "not a configuration of minDALL-E"),
        (("stage1", "hparams", "ch"), 48, "stage1_last.ckpt"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, keys, value, message):
    with pytest.raises(LoadError, match=message):
        dalle_jax.load(edited(tmp_path, *keys, value=value))


def test_missing_options_have_the_published_model_s_values(model, tmp_path):
    """As kakaobrain's loader does it: the published file has no `dataset`, and these options have their defaults."""
    assert "dataset" not in yaml.safe_load((GOLDEN / "config.yaml").read_text())
    assert model.module.condition_length == 64
    folder = edited(tmp_path, "dataset", value={"image_resolution": 256})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("ctx_len_txt", "mlp_bias", "attn_bias", "gelu_use_approx", "resid_pdrop"):
        del config["stage2"]["hparams"][key]
    for key in ("double_z", "in_channels", "out_ch", "pdrop"):
        del config["stage1"]["hparams"][key]
    del config["stage1"]["type"], config["stage2"]["type"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert dalle_jax.load(folder).fingerprint == model.fingerprint


def test_a_name_of_the_hub_is_its_directory(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(GOLDEN))
    assert dalle_jax.load("hf:org/name").fingerprint == model.fingerprint


@pytest.mark.parametrize(
    "name", ["stage1_last.ckpt", "stage2_last.ckpt", "config.yaml", "tokenizer/bpe-16k-vocab.json"]
)
def test_a_damaged_file_is_named(tmp_path, name):
    shutil.copytree(GOLDEN, tmp_path / "mindalle")
    file = tmp_path / "mindalle" / name
    for content in (b"", b"\xff\xfe", file.read_bytes()[: file.stat().st_size // 2]):
        file.write_bytes(content)
        with pytest.raises(LoadError, match=Path(name).name):
            dalle_jax.load(tmp_path / "mindalle")


def test_missing_tensors_are_listed(tmp_path):
    folder = edited(tmp_path, "stage2", "hparams", "n_layers", value=3)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["stage2"]["hparams"]["n_dense_layers"] = 3
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        LoadError, match=r"stage2_last.ckpt lacks 16 tensor\(s\): blocks.2.ln1.weight, .*blocks.2.mlp.2.bias"
    ):
        dalle_jax.load(folder)


@pytest.mark.parametrize("name", ["stage1_last.ckpt", "stage2_last.ckpt", "tokenizer/bpe-16k-merges.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    shutil.copytree(GOLDEN, tmp_path / "mindalle")
    (tmp_path / "mindalle" / name).unlink()
    with pytest.raises(LoadError, match=Path(name).name):
        dalle_jax.load(tmp_path / "mindalle")


def test_a_second_vqgan_is_refused():
    with pytest.raises(LoadError, match="contains the VQGAN of its codes: leave out the VQGAN 'other'"):
        dalle_jax.load(GOLDEN, vqgan="other")


@pytest.mark.parametrize(
    "content, message", [(None, "no such folder"), ("x", "it is a file"), ({}, "it holds nothing")]
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "thing"
    if content == "x":
        path.write_text("x")
    elif content is not None:
        path.mkdir()
    with pytest.raises(LoadError, match=f"{message}.*run directories of train-jax"):
        dalle_jax.load(path)
