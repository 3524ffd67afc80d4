"""unCLIP's public formats: diffusers' directories, both ways, and karlo's own files; what is not karlo's is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clip_jax
from clip_jax.pretrained import open_checkpoint as open_clip
from clip_jax.pretrained import text_tower
from dalle_jax.unclip.context import Context
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.options import PriorOptions
from dalle_jax.unclip.pretrained import LoadError, karlo_files, open_checkpoint, replace_prior, save_karlo
from dalle_jax.unclip.pretrained.checkpoint import PARTS
from tests import model_cards
from train_jax.compute import TransformerCompute
from train_jax.weights.layout import flatten, unflatten

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FOLDER = GOLDEN / "unclip" / "karlo"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_configurations_are_read(karlo):
    sizes = {"embed_dim": 12, "text_length": 16, "width": 16, "depth": 2, "heads": 2}
    assert karlo.prior == PriorOptions(**sizes)
    assert (karlo.decoder.channels, karlo.decoder.blocks, karlo.decoder.attention) == ((16, 24), 2, (1,))
    assert (karlo.decoder.scale_shift, karlo.super_res.scale_shift) == (True, False)
    assert (karlo.decoder.size, karlo.super_res.size) == (16, 32)
    assert karlo.prior_diffusion == Diffusion(prediction="x0", x0_range=5.0)
    assert karlo.decoder_diffusion == Diffusion(learned_variance=True)
    assert karlo.super_res_diffusion == Diffusion()


def test_statistics_are_those_of_the_prior_and_undo_its_units(karlo, golden):
    tensors = safetensors.numpy.load_file(FOLDER / "prior" / WEIGHTS)
    statistics, x = karlo.statistics(), golden["prior_x"]
    expected = x * tensors["clip_std"].astype(np.float32) + tensors["clip_mean"].astype(np.float32)
    np.testing.assert_allclose(statistics.restore(jnp.asarray(x)), expected, rtol=1e-5)
    np.testing.assert_allclose(statistics.standardize(jnp.asarray(expected)), x, atol=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_blocks_are_stacked_or_not_as_the_module_has_them(karlo, part):
    """The shapes are checked when parameters are read."""
    stacked, unrolled = (karlo.params(part, TransformerCompute(scan=scan)) for scan in (True, False))
    assert flatten(stacked).keys() == flatten(unrolled).keys()


def test_saved_for_diffusers_it_is_the_directory_that_it_came_from(karlo, tmp_path):
    save_karlo(karlo, tmp_path / "saved")
    for part in ("prior", "decoder", "text_proj", "super_res_first", "super_res_last", "text_encoder"):
        name = "model.safetensors" if part == "text_encoder" else WEIGHTS
        ours, theirs = (safetensors.numpy.load_file(folder / part / name) for folder in (tmp_path / "saved", FOLDER))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key], value, err_msg=key)
    for file in sorted((tmp_path / "saved").rglob("*.json")):
        if "tokenizer" in str(file):
            continue
        ours, theirs = (json.loads(path.read_text()) for path in (file, FOLDER / file.relative_to(tmp_path / "saved")))
        ours.pop("pad_token_id", None)  # ours pads with 0; pads are hidden
        assert {key: theirs.get(key) for key in ours} == ours, file
    card = (tmp_path / "saved" / "README.md").read_text()
    model_cards.check(card, None, library_name="diffusers", license=None, pipeline_tag="text-to-image")
    again = open_checkpoint(tmp_path / "saved")
    assert again.text.tokenizer.fingerprint == karlo.text.tokenizer.fingerprint
    assert (again.prior, again.decoder, again.super_res) == (karlo.prior, karlo.decoder, karlo.super_res)
    with pytest.raises(FileExistsError, match="holds files already"):
        save_karlo(karlo, tmp_path / "saved")
    patched = dataclasses.replace(karlo, decoder=dataclasses.replace(karlo.decoder, patch=2))
    with pytest.raises(ValueError, match="have no patches, this one's are of 2: save_karlo cannot write it"):
        save_karlo(patched, tmp_path / "patched")
    assert not (tmp_path / "patched").exists()


def test_a_text_tower_of_any_clip_is_one():
    clip = clip_jax.load(GOLDEN / "clip" / "hf-clip")
    text = text_tower.from_clip(open_clip(GOLDEN / "clip" / "hf-clip"))
    module = text.module(TransformerCompute(scan=False))
    ids = text.tokenizer.encode(["a red cat", "two dogs"])
    params = unflatten(text.read(), False)
    features = np.asarray(jax.jit(lambda ids: module.apply({"params": params}, ids))(ids))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, clip.encode_text(["a red cat", "two dogs"]), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# karlo's own files


@pytest.fixture(scope="module")
def files(karlo, tmp_path_factory):
    """The tiny model of karlo's own code; its CLIP is that of the other tiny model."""
    folder = tmp_path_factory.mktemp("karlo") / "files"
    shutil.copytree(GOLDEN / "unclip" / "karlo-files", folder)
    (folder / "ViT-L-14.pt").touch()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HEAD_DIM": 8, "GROUPS": 8, "SIZES": (16, 16)}.items():
            patch.setattr(karlo_files, name, value)
        patch.setattr(karlo_files, "open_checkpoint", lambda path: path)
        patch.setattr(text_tower, "from_clip", lambda path: karlo.text)
        yield open_checkpoint(folder)


def test_karlo_s_own_files_compute_what_karlo_s_own_code_does(files):
    """Queries, keys and values alternate by head in these files."""
    with np.load(GOLDEN / "unclip" / "karlo-files" / "outputs.npz") as file:
        golden = dict(file)
    text = tuple(golden[name] for name in ("text_embedding", "text_states", "text_mask"))

    def apply(part: str, *inputs):
        module, params = files.module(part, TransformerCompute()), files.params(part, TransformerCompute())
        return jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))(*inputs)

    np.testing.assert_allclose(apply("prior", golden["prior_x"], golden["t"], *text), golden["prior"], atol=1e-5)
    context = apply("context", golden["image_embedding"], *text, np.zeros(3, bool))
    x, t = golden["decoder_x"], golden["t"]
    np.testing.assert_allclose(apply("decoder", x, t, Context(*context)), golden["decoder"], atol=1e-5)
    pair = np.concatenate([x, x], axis=-1)
    np.testing.assert_allclose(apply("super_res_last", pair, t), golden["super_res_last"], atol=1e-5)
    files.params("super_res_first", TransformerCompute())  # whose shapes are checked
    statistics = files.statistics()
    np.testing.assert_allclose(statistics.mean, golden["mean"], rtol=1e-6)
    np.testing.assert_allclose(statistics.std, golden["std"], rtol=1e-6)
    assert files.prior_diffusion.x0_range == 10


def test_a_missing_file_of_karlo_s_is_named(tmp_path):
    shutil.copytree(GOLDEN / "unclip" / "karlo-files", tmp_path / "files")
    with pytest.raises(LoadError, match=r"lacks karlo's ViT-L-14.pt: an unCLIP is one of each of prior-ckpt"):
        open_checkpoint(tmp_path / "files")
    shutil.copy(next((tmp_path / "files").glob("decoder*")), tmp_path / "files" / "decoder-ckpt-2.ckpt")
    with pytest.raises(LoadError, match=r"holds 2 decoder-ckpt-\*.ckpt"):
        open_checkpoint(tmp_path / "files")


# ---------------------------------------------------------------------------------------------------------------------
# Other priors


def test_eclipse_s_prior_is_one_step_from_noise(karlo, text, tmp_path):
    checkpoint = replace_prior(karlo, GOLDEN / "unclip" / "eclipse")
    module, params = checkpoint.module("prior", TransformerCompute()), checkpoint.params("prior", TransformerCompute())
    with np.load(GOLDEN / "unclip" / "eclipse" / "outputs.npz") as golden:
        standardized = jax.jit(lambda x, *text: module.apply({"params": params}, x, None, *text))(golden["x"], *text)
        image = checkpoint.statistics().restore(standardized)
        np.testing.assert_allclose(image, golden["image_embedding"], atol=1e-5)
    np.testing.assert_array_equal(checkpoint.read("decoder")["conv_in/kernel"], karlo.read("decoder")["conv_in/kernel"])
    with pytest.raises(ValueError, match="this one has none: save_karlo cannot write it"):
        save_karlo(checkpoint, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_kandinsky_s_prior_is_that_of_karlo_with_another_scheduler(karlo, tmp_path):
    shutil.copytree(FOLDER / "prior", tmp_path / "prior")
    shutil.copytree(FOLDER / "prior_scheduler", tmp_path / "scheduler")
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"clip_sample_range": 10.0}))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPriorPipeline"}))
    checkpoint = replace_prior(karlo, tmp_path)
    assert checkpoint.prior == karlo.prior and checkpoint.prior_diffusion == Diffusion(prediction="x0", x0_range=10.0)
    np.testing.assert_array_equal(checkpoint.read("prior")["positions"], karlo.read("prior")["positions"])
    config = json.loads((tmp_path / "prior" / "config.json").read_text())
    (tmp_path / "prior" / "config.json").write_text(json.dumps(config | {"embedding_dim": 1280}))
    with pytest.raises(LoadError, match="the prior of .*: the prior's embed_dim is 1280, where its text encoder has 12"):
        replace_prior(karlo, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def edited(tmp_path: Path, file: str, **values) -> Path:
    folder = tmp_path / "karlo"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | values))
    return folder


PRIOR, DECODER, SUPER = (f"{part}/config.json" for part in ("prior", "decoder", "super_res_first"))
SCHEDULER = "decoder_scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    "file, values, message",
    [
        ("model_index.json", {"_class_name": "UnCLIPImageVariationPipeline"}, "it has no prior: open kakaobrain/karlo"),
        ("model_index.json", {"_class_name": "StableUnCLIPPipeline"}, "its decoder is a latent diffusion model"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline, which is not supported: open the dir"),
        (PRIOR, {"norm_in_type": "layer"}, r"prior: norm_in_type = 'layer'; only None is supported.*such as Shap-E"),
        (PRIOR, {"added_emb_type": None}, "added_emb_type = None; only 'prd'"),
        (PRIOR, {"additional_embeddings": 5}, "additional_embeddings = 5; only 4 or 3"),
        (PRIOR, {"clip_embed_dim": 13}, "clip_embed_dim = 13; only None or 12"),
        (PRIOR, {"num_embeddings": 20}, "prior's text_length is 20, where its text encoder has 16"),
        (PRIOR, {"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel'; karlo's is 'PriorTransformer'"),
        (PRIOR, {"num_attention_heads": "two"}, "describes no model that can be built"),
        (DECODER, {"class_embed_type": "timestep"}, "class_embed_type = 'timestep'; only 'identity'"),
        (DECODER, {"freq_shift": 1}, "freq_shift = 1; only 0"),
        (DECODER, {"out_channels": 3}, "out_channels = 3, where its scheduler's variance_type needs 6"),
        (DECODER, {"down_block_types": ["DownBlock2D"] * 2}, "block type 'DownBlock2D'; supported are ResnetDownsample"),
        (DECODER, {"up_block_types": ["ResnetUpsampleBlock2D"] * 2}, "are not mirrored by up_block_types"),
        (DECODER, {"norm_eps": 1e-6}, "norm_eps = 1e-06; only 1e-05"),
        (DECODER, {"cross_attention_dim": 24}, "text_proj: cross_attention_dim = 20; only 24"),
        (SUPER, {"add_attention": True}, "add_attention = True; only False"),
        (SUPER, {"layers_per_block": 2}, "super_res_last: layers_per_block = 1; only 2"),
        ("super_res_last/config.json", {"in_channels": 3}, "super_res_last: in_channels = 3; only 6"),
        (SCHEDULER, {"beta_schedule": "linear"}, "beta_schedule = 'linear'; only 'squaredcos_cap_v2'"),
        (SCHEDULER, {"variance_type": "fixed_large"}, "variance_type = 'fixed_large'; only 'fixed_small_log' or 'lea"),
        (SCHEDULER, {"prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'; only 'sample' or 'epsilon'"),
        (SCHEDULER, {"clip_sample": False}, "clip_sample = False; only True"),
        (SCHEDULER, {"_class_name": "DDPMScheduler"}, "karlo's is 'UnCLIPScheduler'"),
        ("text_encoder/config.json", {"architectures": ["CLIPTextModel"]}, "a text tower is a 'clip_text_model' of the"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ("text_encoder/config.json", {"projection_dim": 13}, "prior's embed_dim is 12, where its text encoder has 13"),
    ],
)
def test_what_is_not_karlo_s_is_refused_by_name(tmp_path, file, values, message):
    with pytest.raises(LoadError, match=message):
        checkpoint = open_checkpoint(edited(tmp_path, file, **values))
        checkpoint.params("super_res_first", TransformerCompute())


def test_options_that_a_config_lacks_have_diffusers_defaults(karlo, tmp_path):
    """karlo's were written by an old version."""
    folder = tmp_path / "karlo"
    shutil.copytree(FOLDER, folder)
    for file in (PRIOR, DECODER, SUPER, SCHEDULER):
        config = json.loads((folder / file).read_text())
        defaults = {"additional_embeddings", "norm_in_type", "time_embed_act_fn", "clip_embed_dim", "norm_eps", "freq_shift"}
        defaults |= {"flip_sin_to_cos", "act_fn", "time_embedding_type", "clip_sample", "beta_schedule"}
        (folder / file).write_text(json.dumps({key: value for key, value in config.items() if key not in defaults}))
    again = open_checkpoint(folder)
    assert (again.prior, again.decoder, again.super_res) == (karlo.prior, karlo.decoder, karlo.super_res)
    assert again.decoder_diffusion == karlo.decoder_diffusion


def test_deviations_of_zero_are_refused(tmp_path):
    folder = tmp_path / "karlo"
    shutil.copytree(FOLDER, folder)
    tensors = safetensors.numpy.load_file(folder / "prior" / WEIGHTS)
    tensors["clip_std"] = 0 * tensors["clip_std"]
    safetensors.numpy.save_file(tensors, folder / "prior" / WEIGHTS)
    with pytest.raises(LoadError, match="clip_std must be positive; its least value is 0"):
        open_checkpoint(folder).statistics()


def test_wrong_shapes_and_missing_files_are_named(tmp_path):
    folder = edited(tmp_path, "prior/config.json", num_layers=1)
    with pytest.raises(LoadError, match=r"parts that are not understood: 16 tensor\(s\): transformer_blocks.1"):
        open_checkpoint(folder).read("prior")
    (folder / "decoder" / WEIGHTS).unlink()
    with pytest.raises(LoadError, match="decoder lacks its weights: diffusion_pytorch_model.safetensors or"):
        open_checkpoint(folder).read("decoder")
    (folder / "decoder" / "config.json").unlink()
    with pytest.raises(LoadError, match="decoder/config.json is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content, message", [(None, "no such folder"), ("x", "it is a file"), ({}, "it holds nothing")])
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "thing"
    if content == "x":
        path.write_text("x")
    elif content is not None:
        path.mkdir()
    with pytest.raises(LoadError, match=f"{message}.*directories of diffusers' UnCLIPPipeline"):
        open_checkpoint(path)


def test_a_name_of_the_hub_is_its_directory(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(FOLDER))
    assert open_checkpoint("hf:kakaobrain/karlo-v1-alpha").prior.embed_dim == 12
