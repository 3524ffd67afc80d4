"""Peers' files: the same codes and pictures as the peers' own code has, both ways; what does not fit is listed.

The files and numbers in `tests/golden/vqgan` are made by the peers (see `tests/golden/make_*.py`).
"""

import dataclasses
import functools
import json
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.serialization import msgpack_restore, msgpack_serialize
from ml_collections import ConfigDict

import vqgan_jax
from train_jax import config as config_lib
from train_jax.compute import Compute
from train_jax.errors import ConfigError
from train_jax.weights.layout import flatten, to_peer
from train_jax.weights.tensors import Tensor, open_tensors
from vqgan_jax import LoadError, codebook, discriminator, model, quantize, task
from vqgan_jax.pretrained import diffusers, llamagen, open_checkpoint, taming
from vqgan_jax.pretrained.checkpoint import abstract_variables
from vqgan_jax.prior import taming as prior_taming

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "vqgan"
KINDS = {
    "diffusers": "diffusers",
    "amused": "amused",
    "taming": "taming/last.ckpt",
    "dalle-mini": "dalle-mini",
    "gumbel": "gumbel/stage1.ckpt",
    "dvae": "dvae",
    "llamagen": "llamagen/vq.pt",
    "ldm": "ldm",
    "ibq": "ibq",
    "magvit2": "magvit2/magvit2.ckpt",
    "movq": "movq/movq_final.ckpt",
    "kandinsky": "kandinsky",
    "maskgit": "maskgit/tokenizer_imagenet256_checkpoint",
}


# Tests share loaded models, and so their compiled programs.
load = functools.cache(vqgan_jax.load)


def golden(kind: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / kind / "outputs.npz") as file:
        return dict(file)


def assert_same(vq, kind: str) -> None:
    expected = golden(kind)
    x = expected["images"].astype(np.float32) / 127.5 - 1
    latents = jax.jit(lambda v, x: vq.module.apply(v, x, method="latents"))(vq.variables, x)
    np.testing.assert_allclose(latents, expected["latents"], atol=1e-4)
    codes = vq.encode(expected["images"])
    np.testing.assert_array_equal(codes, expected["codes"])
    np.testing.assert_allclose(2 * vq.decode(codes) - 1, np.clip(expected["reconstructions"], -1, 1), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_reconstructions_are_the_peers(kind):
    assert_same(load(GOLDEN / KINDS[kind]), kind)


@pytest.mark.parametrize("kind", ["ibq", "magvit2"])
def test_losses_of_quantizers_and_their_gradients_are_the_peers(kind):
    vq, expected = load(GOLDEN / KINDS[kind]), golden(kind)
    options = dataclasses.replace(vq.options.quantizer, entropy=0.1, entropy_temperature=0.01)
    if kind == "ibq":
        options = dataclasses.replace(options, entropy=0.05, entropy_temperature=0.5)
    quantizer = quantize.build(options)

    def loss(params, latents):
        quantized = quantizer.apply({"params": params}, latents, True, 1.0)
        return quantized.loss + jnp.mean(quantized.vectors * expected["loss_weights"])

    params = vq.variables["params"].get("quantizer", {})
    value, (by_params, by_latents) = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, jnp.asarray(expected["latents"]))
    # The peer adds 1e-5 inside the logarithm of each mean probability.
    np.testing.assert_allclose(value, expected["loss"] - options.entropy * 1e-5 * vq.num_codes, rtol=1e-5)
    np.testing.assert_allclose(by_latents, expected["gradient_latents"], atol=1e-6)
    if "gradient_codebook" in expected:
        np.testing.assert_allclose(by_params["codebook"], expected["gradient_codebook"], atol=1e-5)


def test_a_folder_with_one_checkpoint_is_that_checkpoint():
    checkpoint = open_checkpoint(GOLDEN / "taming")
    assert checkpoint.format == "taming-transformers" and checkpoint.model["attention"] == (16,)


def test_saved_for_diffusers_it_is_the_file_that_it_came_from(tmp_path):
    vq = load(GOLDEN / "diffusers")
    vqgan_jax.save_diffusers(vq, tmp_path / "out")
    ours = safetensors.numpy.load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    theirs = safetensors.numpy.load_file(GOLDEN / "diffusers" / "diffusion_pytorch_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = json.loads((GOLDEN / "diffusers" / "config.json").read_text())
    assert {k: v for k, v in expected.items() if k in config and k != "scaling_factor"} == {
        k: v for k, v in config.items() if k != "scaling_factor"
    }
    assert vqgan_jax.load(tmp_path / "out").fingerprint == vq.fingerprint
    with pytest.raises(FileExistsError, match="is not empty"):
        vqgan_jax.save_diffusers(vq, tmp_path / "out")


def test_saved_for_taming_codes_of_unit_norm_have_the_same_codes_and_reconstructions(tmp_path):
    vq, images = load(GOLDEN / "llamagen" / "vq.pt"), golden("llamagen")["images"]
    vqgan_jax.save_taming(vq, tmp_path / "model.safetensors")
    plain, codes = vqgan_jax.load(tmp_path / "model.safetensors"), golden("llamagen")["codes"]
    np.testing.assert_array_equal(plain.encode(images), codes)
    np.testing.assert_allclose(plain.decode(codes), vq.decode(codes), atol=1e-5)


@pytest.mark.parametrize("kind", ["taming", "gumbel"])
def test_saved_for_taming_it_opens_again(kind, tmp_path):
    vq = load(GOLDEN / KINDS[kind])
    vqgan_jax.save_taming(vq, tmp_path / "model.safetensors")
    assert vqgan_jax.load(tmp_path / "model.safetensors").fingerprint == vq.fingerprint
    with pytest.raises(FileExistsError, match="already exists"):
        vqgan_jax.save_taming(vq, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="NAME.safetensors"):
        vqgan_jax.save_taming(vq, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="group norms have 32 groups, this model's 4"):
        vqgan_jax.save_taming(load(GOLDEN / "diffusers"), tmp_path / "other.safetensors")


def copy(tmp_path, kind: str) -> Path:
    return Path(shutil.copytree(GOLDEN / kind, tmp_path / kind))


def test_wrong_and_missing_tensors_are_listed_with_their_shapes(tmp_path):
    folder = copy(tmp_path, "diffusers")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = safetensors.numpy.load_file(file)
    smaller = weights | {"quantize.embedding.weight": np.zeros((7, 4), np.float32)}
    safetensors.numpy.save_file(smaller, file)
    with pytest.raises(LoadError, match=r"quantizer/codebook \[32, 4\] by the configuration, \[7, 4\] in the weights"):
        vqgan_jax.load(folder)
    safetensors.numpy.save_file({k: v for k, v in weights.items() if "mid_block" not in k}, file)
    with pytest.raises(LoadError, match=r"lacks \d+ tensor\(s\): "):
        vqgan_jax.load(folder)
    safetensors.numpy.save_file(weights | {"encoder.more": np.zeros(3, np.float32)}, file)
    with pytest.raises(LoadError, match="parts that are not understood: 1 tensor.*encoder.more"):
        vqgan_jax.load(folder)
    file.unlink()
    with pytest.raises(LoadError, match="lacks its weights: diffusion_pytorch_model.safetensors or"):
        vqgan_jax.load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act_fn": "relu"}, "act_fn = 'relu'; only 'silu'"),
        ({"norm_type": "layer"}, "norm_type = 'layer'; only 'group' or 'spatial'"),
        ({"norm_type": "spatial"}, "norm_num_groups = 4; with spatial norms"),
        (
            {"mid_block_add_attention": False},
            "parts that are not understood: 20 tensor.s.: decoder.mid_block.attentions.0",
        ),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "attention at different levels"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 3}, "unknown block type 'CrossAttnDownBlock2D'"),
        ({"block_out_channels": [8, 12, 16]}, "must be multiples of the first"),
        ({"norm_num_groups": 3}, "describes no model that can be built"),
    ],
)
def test_unsupported_options_of_diffusers_are_refused(tmp_path, changes, words):
    folder = copy(tmp_path, "diffusers")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(LoadError, match=words):
        vqgan_jax.load(folder)


def test_diffusers_older_names_variants_and_pipelines_are_the_same_model(tmp_path):
    expected = load(GOLDEN / "diffusers").fingerprint
    folder = copy(tmp_path, "diffusers").rename(tmp_path / "vqvae")
    (tmp_path / "model_index.json").write_text('{"_class_name": "AmusedPipeline", "vqvae": ["diffusers", "VQModel"]}')
    file = folder / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers <= 0.16
    weights = safetensors.numpy.load_file(file)
    for new, old in names.items():
        weights = {name.replace(f".{new}.", f".{old}."): x for name, x in weights.items()}
    assert sum("query" in name for name in weights) == 10
    safetensors.numpy.save_file(weights, file)
    assert vqgan_jax.load(tmp_path).fingerprint == expected
    file.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert vqgan_jax.load(folder).fingerprint == expected


def test_diffusers_default_size_is_ignored_for_models_with_too_few_codes(tmp_path):
    folder = copy(tmp_path, "diffusers")
    config = json.loads((folder / "config.json").read_text())
    for size, expected in ((None, 64), (16, 64), (32, 32), (64, 64)):
        (folder / "config.json").write_text(json.dumps(config | {"sample_size": size}))
        assert open_checkpoint(folder).model["resolution"] == expected
    (folder / "config.json").write_text(json.dumps({k: x for k, x in config.items() if k != "norm_num_groups"}))
    assert open_checkpoint(folder).model["groups"] == 32  # diffusers' own default


def test_taming_checkpoints_that_cannot_be_opened_say_why(tmp_path):
    folder = copy(tmp_path, "taming")
    (folder / "last.yaml").rename(folder / "elsewhere.txt")
    with pytest.raises(LoadError, match="has no .yaml beside it: put .* there as last.yaml"):
        vqgan_jax.load(folder / "last.ckpt")
    for name in ("one.yaml", "two.yml"):
        shutil.copy(folder / "elsewhere.txt", folder / name)
    with pytest.raises(LoadError, match=r"has several \(one.yaml, two.yml\): put the model's configuration"):
        vqgan_jax.load(folder / "last.ckpt")
    (folder / "one.yaml").unlink()
    assert open_checkpoint(folder / "last.ckpt").model["channels"] == 32
    (folder / "last.yaml").write_text(
        "model:\n  target: taming.models.cond_transformer.Net2NetTransformer\n  params: {}\n"
    )
    with pytest.raises(LoadError, match="Net2NetTransformer, which has no ddconfig"):
        vqgan_jax.load(folder / "last.ckpt")
    (folder / "last.yaml").write_text("nothing: here")
    with pytest.raises(LoadError, match="describes no model of taming-transformers: it has no model"):
        vqgan_jax.load(folder / "last.ckpt")
    shutil.copy(folder / "last.ckpt", folder / "other.ckpt")
    with pytest.raises(LoadError, match="holds several checkpoints: name one of"):
        vqgan_jax.load(folder)
    with pytest.raises(LoadError, match="no such file or folder"):
        vqgan_jax.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="is not a VQGAN: it holds nothing"):
        vqgan_jax.load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("z_channels: 8", "lacks 'z_channels'"),
        ("in_channels: 3", "ddconfig has other; what is understood: "),
        ("n_embed: 24", "lacks 'n_embed'"),
        ("double_z: false", "double_z = True; only False"),
        ("dropout: 0.0", "tanh_out = True; only False"),
        ("embed_dim: 4", "remap = 'used.npy'; remapped codes"),
        ("ch: 32", "last.ckpt describes no model that can be built"),
    ],
)
def test_taming_configurations_that_mean_another_model_are_refused(text, words, tmp_path):
    folder = copy(tmp_path, "taming")
    config = (folder / "last.yaml").read_text()
    assert text in config
    instead = {"double_z: false": "double_z: true", "dropout: 0.0": "tanh_out: true", "ch: 32": "ch: wide"}
    instead["embed_dim: 4"] = "embed_dim: 4\n    remap: used.npy"
    instead["z_channels: 8"] = ""
    (folder / "last.yaml").write_text(config.replace(text, instead.get(text, "other: 1")))
    with pytest.raises(LoadError, match=words):
        vqgan_jax.load(folder / "last.ckpt")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "state_dict.module._orig_mod.", "first_stage_model."])
def test_prefixes_of_trainers_are_removed_from_names(prefix, tmp_path):
    expected = load(GOLDEN / "taming" / "last.ckpt")
    vqgan_jax.save_taming(expected, tmp_path / "model.safetensors")
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    prefixed = {prefix + name: x for name, x in weights.items()}
    safetensors.numpy.save_file(prefixed, tmp_path / "model.safetensors")
    assert vqgan_jax.load(tmp_path / "model.safetensors").fingerprint == expected.fingerprint


def test_a_second_stage_s_file_opens_as_its_vqgan_whatever_its_condition(tmp_path):
    expected = load(GOLDEN / "gumbel" / "stage1.ckpt")
    assert load(GOLDEN / "gumbel" / "stage2.ckpt").fingerprint == expected.fingerprint
    shutil.copy(GOLDEN / "gumbel" / "stage2.ckpt", tmp_path)
    text = (GOLDEN / "gumbel" / "stage2.yaml").read_text()
    (tmp_path / "stage2.yaml").write_text(text.replace("util.Labelator", "misc.coord.OtherStage"))
    assert vqgan_jax.load(tmp_path).fingerprint == expected.fingerprint
    with pytest.raises(LoadError, match="condition OtherStage; only labels.*vqgan_jax.load opens its first stage"):
        vqgan_jax.load_prior(tmp_path)


def test_dalle_mini_s_text_model_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dallebart"}')
    shutil.copy(GOLDEN / "dalle-mini" / "flax_model.msgpack", tmp_path)
    with pytest.raises(LoadError, match="'dallebart'.*dalle_jax.load opens dalle-mini's transformer"):
        vqgan_jax.load(tmp_path)


def test_dalle_mini_s_damaged_files_are_refused(tmp_path):
    shutil.copytree(GOLDEN / "dalle-mini", tmp_path / "cut")
    weights = (tmp_path / "cut" / "flax_model.msgpack").read_bytes()
    (tmp_path / "cut" / "flax_model.msgpack").write_bytes(weights[:1000])
    with pytest.raises(LoadError, match="flax_model.msgpack cannot be read"):
        vqgan_jax.load(tmp_path / "cut")
    config = json.loads((GOLDEN / "dalle-mini" / "config.json").read_text())
    (tmp_path / "cut" / "flax_model.msgpack").write_bytes(weights)
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config | {"double_z": True}))
    with pytest.raises(LoadError, match="double_z = True; only False is supported"):
        vqgan_jax.load(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config | {"num_res_blocks": 2}))
    with pytest.raises(LoadError, match="lacks .*: encoder.down_0.block_1.norm1.scale"):
        vqgan_jax.load(tmp_path / "cut")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dalle-mini", "does not support model.pixels = 'unit'"),
        ("maskgit", "has no layout 'maskgit'"),
        ("magvit2", "has no quantiser of type 'lfq'"),
        ("ibq", "has no quantiser of type 'ibq'"),
    ],
)
def test_models_that_a_peer_cannot_represent_are_not_written(kind, words, tmp_path):
    for save in (vqgan_jax.save_diffusers, vqgan_jax.save_taming):
        with pytest.raises(ValueError, match=words):
            save(load(GOLDEN / KINDS[kind]), tmp_path / "model.safetensors")


def test_kandinsky_s_movq_is_written_for_diffusers_alone(tmp_path):
    vq = load(GOLDEN / "kandinsky")
    vqgan_jax.save_diffusers(vq, tmp_path / "pipeline" / "movq")
    assert vqgan_jax.load(tmp_path / "pipeline").fingerprint == vq.fingerprint
    with pytest.raises(ValueError, match="taming has no layout 'movq'"):
        vqgan_jax.save_taming(vq, tmp_path / "model.safetensors")


def test_taming_s_second_stage_has_its_logits():
    expected = golden("gumbel")
    prior = vqgan_jax.load_prior(GOLDEN / "gumbel" / "stage2.ckpt")
    assert (
        prior.grid == (16, 16) and prior.classes == 12
    )  # n_classes; the table that labels and codes share has 24 rows
    assert prior.vqgan.fingerprint == load(GOLDEN / "gumbel" / "stage1.ckpt").fingerprint
    _, logits = prior.logits(prior.condition.encode(expected["labels"].tolist()), expected["codes"])
    np.testing.assert_allclose(logits[:, ::16], expected["logits"][..., :20], atol=1e-4)
    assert prior.draw([3, 11], top_k=5, progress=False).codes.shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match="was not trained without labels; pass labels 0 to 11"):
        prior.draw()
    with pytest.raises(ValueError, match="label 12: this model has labels 0 to 11"):
        prior.draw([12])
    with pytest.raises(ValueError, match="was not trained without class"):
        prior.draw([2], guidance=2)


LABELS = "target: taming.modules.util.Labelator\n      params:\n        n_classes: 12"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (LABELS, "target: taming.models.dummy_cond_stage.DummyCondStage", "condition DummyCondStage; only labels"),
        (LABELS, "target: taming.modules.util.Labelator", "lacks 'params'"),
        ("n_classes: 12", "n_classes: 25", "24 tokens are too few for 20 codes and 25 labels"),
        ("n_classes: 12", "n_classes: many", "n_classes = 'many' must be an integer above 0"),
        ("n_layer: 2", "n_layer: 3", "lacks 16 tensor.s.: transformer.blocks.2.ln1.weight"),
        ("n_layer: 2", "n_layer: 2\n        n_unmasked: 4", "n_unmasked = 4; only 0"),
        ("mingpt.GPT", "mingpt.CodeGPT", "transformer_config CodeGPT; only GPT is supported"),
        (
            "cond_stage_key:",
            "permuter_config: {target: any.ZCurve}\n    cond_stage_key:",
            "permuter_config ZCurve; only",
        ),
        ("n_head: 2", "n_head: 3", "stage2.ckpt"),
    ],
)
def test_unsupported_second_stages_of_taming_are_refused(old, new, words, tmp_path):
    shutil.copy(GOLDEN / "gumbel" / "stage2.ckpt", tmp_path)
    text = (GOLDEN / "gumbel" / "stage2.yaml").read_text()
    assert old in text
    (tmp_path / "stage2.yaml").write_text(text.replace(old, new))
    with pytest.raises(LoadError, match=words):
        vqgan_jax.load_prior(tmp_path / "stage2.ckpt")


def test_a_first_stage_is_refused_as_a_prior():
    with pytest.raises(LoadError, match="neither a run directory nor taming's Net2NetTransformer"):
        vqgan_jax.load_prior(GOLDEN / "gumbel" / "stage1.ckpt")


def test_a_second_stage_without_labels_begins_with_its_token(tmp_path):
    shutil.copy(GOLDEN / "gumbel" / "stage2.ckpt", tmp_path)
    text = (GOLDEN / "gumbel" / "stage2.yaml").read_text()
    table = np.asarray(open_tensors(tmp_path / "stage2.ckpt")["state_dict.transformer.tok_emb.weight"])
    provider = "target: taming.modules.util.SOSProvider\n      params:\n        sos_token: 5"
    for new, token in ((provider, 5), ("target: any\n    unconditional: true\n    sos_token: 7", 7)):
        (tmp_path / "stage2.yaml").write_text(text.replace(LABELS, new))
        prior = vqgan_jax.load_prior(tmp_path / "stage2.ckpt")
        assert prior.classes == 0
        np.testing.assert_array_equal(prior.variables["condition"]["tokens"], table[[token]])
        np.testing.assert_array_equal(prior.condition.encode([None]), [[0]])


@pytest.mark.parametrize("name", ["os.system", "builtins.eval"])
def test_a_program_in_a_pickle_is_not_run(name, tmp_path):
    shutil.copytree(GOLDEN / "dvae", tmp_path / "dvae")
    module, function = name.rsplit(".", 1)
    trace = tmp_path / "trace"
    text = f"open({str(trace)!r}, 'w')" if function == "eval" else f"touch {trace}"
    # Protocol 2, by hand: GLOBAL, argument, TUPLE1, REDUCE.
    data = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X" + len(text).to_bytes(4, "little") + text.encode()
    with zipfile.ZipFile(tmp_path / "dvae" / "encoder.pkl", "w") as archive:
        archive.writestr("encoder/data.pkl", data + b"\x85R.")
    with pytest.raises(LoadError, match="holds no dVAE: no tensor 'encoder.blocks.input.w'"):
        vqgan_jax.load(tmp_path / "dvae")
    assert not trace.exists()


def test_a_program_in_a_lightning_checkpoint_is_not_run(tmp_path):
    """Calls `os.system` before the checkpoint and as a callback's state, whose class is unknown."""
    trace = tmp_path / "trace"

    def call(text: str) -> bytes:  # GLOBAL, argument, TUPLE1, REDUCE
        return b"cos\nsystem\nX" + len(text).to_bytes(4, "little") + text.encode() + b"\x85R"

    with zipfile.ZipFile(GOLDEN / "ldm" / "model.ckpt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("data.pkl"))
    monitor = b"X\x0c\x00\x00\x00val/rec_loss"
    assert members[name].startswith(b"\x80\x02") and members[name].count(monitor) == 1
    hostile = members[name][2:].replace(monitor, call(f"touch {trace}"))
    assert b"ModelCheckpoint" in hostile
    members[name] = b"\x80\x02" + call(f"touch {trace}") + b"0" + hostile
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    shutil.copy(GOLDEN / "ldm" / "config.yaml", tmp_path / "model.yml")
    assert vqgan_jax.load(tmp_path).fingerprint == load(GOLDEN / "ldm").fingerprint
    assert not trace.exists()


@pytest.mark.parametrize(
    ("kind", "old", "new", "words"),
    [
        ("ldm", "attn_type: none", "attn_type: linear", "attn_type = 'linear'; only vanilla"),
        ("ldm", "attn_type: none", "attn_type: vanilla", "lacks 20 tensor.s.: .*mid.attn_1"),
        ("ibq", "n_embed: 24", "n_embed: 24\n    l2_normalize: true", "l2_normalize = True; only False"),
        ("ibq", "ibqgan.IBQ", "ibqgan.Gumbel", "unknown class src.IBQ.models.ibqgan.Gumbel; known are GumbelVQ, IBQ, "),
        ("magvit2", "models.lfqgan", "models.video_lfqgan", "unknown class .*video_lfqgan.VQModel"),
        ("magvit2", "n_embed: 64", "n_embed: 63", "n_embed = 63; of LFQ it must be 2 .. embed_dim"),
        ("magvit2", "z_channels: 6", "z_channels: 5", "z_channels = 5; it must be the quantiser's 6 channels"),
        ("movq", "autoencoder.MOVQ", "autoencoder.VQModel", "lacks .* tensor.s.: decoder.up.0.block.0.norm1.weight"),
    ],
)
def test_configurations_that_mean_another_model_are_refused(kind, old, new, words, tmp_path):
    folder = copy(tmp_path, kind)
    (config,) = folder.glob("*.yaml")
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(LoadError, match=words):
        vqgan_jax.load(folder)


def test_averages_are_used_where_the_peer_uses_them(tmp_path):
    folder = copy(tmp_path, "ibq")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("use_ema: true", "use_ema: false"))
    tensors = open_tensors(folder / "ibq.ckpt")
    for path, name in ((GOLDEN / "ibq", "model_ema.quantizeembeddingweight"), (folder, "quantize.embedding.weight")):
        points = load(path).variables["params"]["quantizer"]["codebook"]
        np.testing.assert_array_equal(points, np.asarray(tensors[f"state_dict.{name}"]).astype(np.float32))


def test_maskgit_s_files_that_are_not_understood_are_refused(tmp_path):
    tree = msgpack_restore((GOLDEN / KINDS["maskgit"]).read_bytes())
    encoder = tree["params"]["encoder"]
    file = tmp_path / "tokenizer"
    for words, changed in (
        ("4 residual blocks cannot be divided over 2 levels", encoder | {"ResBlock_3": encoder["ResBlock_0"]}),
        ("parts that are not understood: 1 tensor.*encoder.Conv_2", encoder | {"Conv_2": {"kernel": np.zeros(8)}}),
        ("lacks 1 tensor.s.: encoder.Conv_1.bias", encoder | {"Conv_1": {"kernel": encoder["Conv_1"]["kernel"]}}),
    ):
        file.write_bytes(msgpack_serialize({"params": tree["params"] | {"encoder": changed}}))
        with pytest.raises(LoadError, match=words):
            vqgan_jax.load(file)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_are_a_load_error(kind, tmp_path):
    """Cut anywhere, and with a byte changed: of another model if it can be read at all."""
    folder = copy(tmp_path, kind)
    path = tmp_path / KINDS[kind]
    file = path if path.is_file() else max(folder.iterdir(), key=lambda file: file.stat().st_size)
    content = file.read_bytes()
    for part in (0, 1, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:part])
        with pytest.raises(LoadError, match=file.name.split(".")[0]):
            checkpoint = open_checkpoint(path)
            checkpoint.variables(checkpoint.module())
    file.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(LoadError, match=file.name.split(".")[0]):
        checkpoint = open_checkpoint(path)
        checkpoint.variables(checkpoint.module())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["diffusers", "dalle-mini", "taming/last.ckpt", "gumbel/stage1.ckpt", "gumbel/stage2.ckpt", "movq/movq_final.ckpt"],
)
def test_every_wrong_configuration_is_a_load_error(name, tmp_path, monkeypatch):
    """Each option in turn is missing, or of another type."""
    import yaml

    @functools.cache
    def read_once(path):  # the weights stay the same
        arrays = {name: np.asarray(x) for name, x in open_tensors(path).items()}
        return {name: Tensor(x.shape, functools.partial(np.asarray, x)) for name, x in arrays.items()}

    for module in (taming, diffusers, llamagen):
        monkeypatch.setattr(module, "open_tensors", read_once)

    path = tmp_path / name
    folder = copy(tmp_path, name.split("/")[0])
    open_file = prior_taming.open_file if path.name == "stage2.ckpt" else lambda path: open_checkpoint(path).module()
    file = path.with_suffix(".yaml") if path.is_file() else path / "config.json"
    text = file.read_text()

    def options(tree, path_to=()):
        for key, value in tree.items():
            yield path_to, key
            if isinstance(value, dict):
                yield from options(value, (*path_to, key))

    for path_to, key in options(yaml.safe_load(text)):
        for value in ("missing", None, "text", -1, 1.5, ["text"], {"a": 1}):
            config = yaml.safe_load(text)
            section = config
            for part in path_to:
                section = section[part]
            if value == "missing":
                del section[key]
            else:
                section[key] = value
            file.write_text(json.dumps(config))  # which is YAML too
            try:
                open_file(path)
            except LoadError as error:
                assert str(folder) in str(error)
    for content in (b"", b"[]", b"1", b"\xff\xfe\x00", b"{", b"- a\n- b", b"!!python/object/apply:os.system ['true']"):
        file.write_bytes(content)
        with pytest.raises(LoadError, match=file.name):
            open_file(path)


def test_names_of_the_hub_are_downloaded(tmp_path, monkeypatch):
    downloads = []

    def snapshot_download(repository, *, revision, allow_patterns):
        downloads.append((repository, revision))
        return str({"org/vq": GOLDEN / "diffusers", "org/net": tmp_path}[repository])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for name in ("stage2.ckpt", "stage2.yaml"):
        shutil.copy(GOLDEN / "gumbel" / name, tmp_path)
    assert vqgan_jax.load("hf:org/vq@main").fingerprint == load(GOLDEN / "diffusers").fingerprint
    assert vqgan_jax.load_prior("hf:org/net").classes == 12
    options = {"task": "vqgan_jax.task", "steps": 2, "data": {"source": "shapes"}, "pretrained": "hf:org/vq"}
    assert config_lib.resolve(ConfigDict(options)).model.channels == 8
    assert set(downloads) == {("org/vq", "main"), ("org/net", None), ("org/vq", None)}


def test_a_dvae_can_be_neither_trained_nor_written_for_taming(tmp_path):
    vq = load(GOLDEN / "dvae")
    assert vq.num_codes == 30 and vq.factor == 8 and vq.size == 256
    with pytest.raises(ValueError, match="taming has no dvae"):
        vqgan_jax.save_taming(vq, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'dvae' cannot be trained"):
        config = {"task": "vqgan_jax.task", "steps": 1, "data": {"source": "shapes"}, "model": {"architecture": "dvae"}}
        config_lib.resolve(ConfigDict(config))


@pytest.mark.parametrize("kind", ["amused", "dalle-mini", "dvae", "llamagen", "ibq", "magvit2", "movq", "maskgit"])
def test_a_model_in_one_file_is_the_same_model(kind, tmp_path):
    vq = load(GOLDEN / KINDS[kind])
    vqgan_jax.save(vq, tmp_path / "model.safetensors")
    assert vqgan_jax.load(tmp_path / "model.safetensors").fingerprint == vq.fingerprint
    with pytest.raises(FileExistsError, match="already exists"):
        vqgan_jax.save(vq, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="NAME.safetensors"):
        vqgan_jax.save(vq, tmp_path / "model.bin")


@pytest.mark.parametrize("kind", ["taming/last.ckpt", "diffusers", "llamagen/vq.pt", "ibq", "magvit2", "run"])
def test_a_run_starts_from_a_checkpoint(kind, tiny):
    path = str(tiny[1] if kind == "run" else GOLDEN / kind)
    vq = vqgan_jax.load(path)
    options = {"task": "vqgan_jax.task", "steps": 2, "data": {"source": "shapes"}, "pretrained": path}
    config = config_lib.resolve(ConfigDict(options | {"fresh_discriminator": True}))
    params, extra = task.make(config, None).pretrained()
    jax.tree.map(np.testing.assert_array_equal, params, {"generator": jax.device_get(vq.variables["params"])})
    rest = {name: x for name, x in jax.device_get(vq.variables).items() if name != "params"}
    average = {"averaged": rest["codebook"]["quantizer"]["points"]} if "codebook" in rest else {}
    jax.tree.map(np.testing.assert_array_equal, extra, {"generator": rest} | average)
    assert config.model.channels == vq.options.channels


@pytest.mark.parametrize("kind", ["ibq", "magvit2", "movq", "maskgit"])
@pytest.mark.slow
def test_a_checkpoint_trains_on(kind):
    options = {"task": "vqgan_jax.task", "steps": 2, "data": {"source": "shapes"}, "pretrained": str(GOLDEN / KINDS[kind])}
    options |= {"model": {"resolution": 16}, "loss": {"adversarial": "none"}}
    made = task.make(config_lib.resolve(ConfigDict(options)), None)
    batch = {"image": jnp.asarray(golden(kind)["images"][:, :16, :16])}
    params, extra = made.pretrained()
    extra["usage"] = codebook.init_usage(load(GOLDEN / KINDS[kind]).num_codes)
    key = jax.random.key(0)
    gradient, _ = jax.jit(jax.grad(lambda params: made.loss(params, extra, batch, key, 0), has_aux=True))(params)
    for path, x in flatten(gradient).items():
        # Biases before a norm of groups of one channel have no effect.
        assert np.isfinite(x).all() and (np.any(x) or path.endswith("/bias")), path


@pytest.mark.parametrize("kind", ["taming/last.ckpt", "diffusers"])
def test_a_run_of_another_resolution_has_the_layers_of_its_checkpoint(kind):
    options = {"task": "vqgan_jax.task", "steps": 2, "data": {"source": "shapes"}, "pretrained": str(GOLDEN / kind)}
    full = config_lib.resolve(ConfigDict(options))
    half = config_lib.resolve(ConfigDict(options | {"model": {"resolution": full.model.resolution // 2}}))
    assert config_lib.resolve(half) == half and half.model.resolution == full.model.resolution // 2
    shapes = [jax.tree.map(jnp.shape, abstract_variables(model.build(c.model))) for c in (full, half)]
    assert full.model.attention and shapes[0] == shapes[1]


def test_options_that_contradict_a_checkpoint_are_refused():
    options = {
        "task": "vqgan_jax.task",
        "steps": 2,
        "data": {"source": "shapes"},
        "pretrained": str(GOLDEN / "diffusers"),
    }
    full = config_lib.resolve(ConfigDict(options | {"model": {"quantizer": {"beta": 0.5}}, "dropout": 0.1}))
    assert full.model.quantizer.beta == 0.5 and full.dropout == 0.1
    with pytest.raises(
        ConfigError, match=r"config.model.quantizer.size = 7, but the checkpoint .* has 32: leave it out"
    ):
        config_lib.resolve(ConfigDict(options | {"model": {"quantizer": {"size": 7}}}))


def test_llamagen_s_options_are_those_of_its_tensors(tmp_path):
    checkpoint = open_checkpoint(GOLDEN / "llamagen" / "vq.pt")
    assert checkpoint.format == "LlamaGen" and checkpoint.discriminator[0] == {"channels": 4, "layers": 1, "norm": "batch"}
    assert checkpoint.discriminator[1]()["params"]["conv2"]["kernel"].shape == (4, 4, 8, 1)
    vq = load(GOLDEN / "llamagen" / "vq.pt")
    norms = np.linalg.norm(vq.variables["params"]["quantizer"]["codebook"], axis=1)
    assert vq.options.quantizer.unit and not np.allclose(norms, 1, atol=0.01)

    published = {"channels": 128, "multipliers": (1, 2, 2, 4), "blocks": 2, "resolution": 256, "attention": (32,)}
    published |= {"z_channels": 256, "quantizer": {"type": "nearest", "size": 16384, "dim": 8, "unit": True}}
    shapes = flatten(abstract_variables(model.build(published))["params"])
    weights = to_peer(shapes, llamagen.build_entries(published))
    assert sum(x.size for x in weights.values()) == 70_109_835  # LlamaGen's VQ-8
    assert llamagen.infer_options(weights, Path("vq_ds8_c2i.pt")) == published


def test_llamagen_s_files_that_are_not_understood_are_refused(tmp_path):
    tensors = {name: np.asarray(x) for name, x in open_tensors(GOLDEN / "llamagen" / "vq.pt").items()}
    weights = {name: x for name, x in tensors.items() if name.startswith("model.")}
    wide = weights | {"model.encoder.conv_blocks.1.res.0.conv1.weight": np.zeros((40, 32, 3, 3), np.float32)}
    average = {name.replace("model", "ema", 1): x for name, x in weights.items()}
    cases = {
        r"holds 2 models, under 'ema.', 'model.'": weights | average,
        r"parts that are not understood: 1 tensor.*decoder.more": weights | {"model.decoder.more": np.zeros(3, np.float32)},
        r"the widths of the levels, \[32, 40\], must be multiples": wide,
        r"lacks 2 tensor.s.: decoder.conv_blocks.1.res.1.norm2.weight": {
            name: x for name, x in weights.items() if "decoder.conv_blocks.1.res.1.norm2" not in name
        },
    }
    for words, changed in cases.items():
        safetensors.numpy.save_file(changed, tmp_path / "vq.safetensors")
        with pytest.raises(LoadError, match=words):
            vqgan_jax.load(tmp_path / "vq.safetensors")
    safetensors.numpy.save_file({name.removeprefix("model."): x for name, x in weights.items()}, tmp_path / "vq.safetensors")
    assert vqgan_jax.load(tmp_path / "vq.safetensors").fingerprint == load(GOLDEN / "llamagen" / "vq.pt").fingerprint


@pytest.fixture
def with_discriminator(tmp_path):
    """`(checkpoint with a discriminator inside, its arrays by PyTorch's names)`."""
    rng = np.random.default_rng(0)
    prefix = "loss.discriminator.main."
    widths = (3, 4, 8, 16, 1)  # three channels, one convolution, two with norms, the logits
    arrays = {}
    for i, (index, bias) in enumerate(((0, True), (2, False), (5, False), (8, True))):
        arrays[f"{prefix}{index}.weight"] = rng.normal(0, 0.2, (widths[i + 1], widths[i], 4, 4))
        if bias:
            arrays[f"{prefix}{index}.bias"] = rng.normal(size=widths[i + 1])
    for index, width in ((3, 8), (6, 16)):
        for part in ("weight", "bias", "running_mean"):
            arrays[f"{prefix}{index}.{part}"] = rng.normal(size=width)
        arrays[f"{prefix}{index}.running_var"] = rng.uniform(0.5, 2, width)
        arrays[f"{prefix}{index}.num_batches_tracked"] = np.array(7.0)
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    tensors = {n: np.asarray(x) for n, x in open_tensors(GOLDEN / "taming" / "last.ckpt").items()}
    generator = {
        n.removeprefix("state_dict."): x for n, x in tensors.items() if n.startswith("state_dict.") and "loss" not in n
    }
    safetensors.numpy.save_file(generator | arrays, tmp_path / "last.safetensors")
    shutil.copy(GOLDEN / "taming" / "last.yaml", tmp_path / "last.yaml")
    return tmp_path / "last.safetensors", {name.removeprefix(prefix): x for name, x in arrays.items()}


def pix2pix_logits(w, x):
    """The discriminator as pix2pix's source has it, evaluated with its running statistics; x [b, 3, h, w]."""

    def conv(x, index, stride):
        dims = ("NCHW", "OIHW", "NCHW")
        y = jax.lax.conv_general_dilated(
            x, w[f"{index}.weight"], (stride, stride), [(1, 1)] * 2, dimension_numbers=dims
        )
        return y + w.get(f"{index}.bias", np.zeros(y.shape[1], np.float32))[None, :, None, None]

    def leaky(x):
        return np.where(x > 0, x, 0.2 * x)

    x = leaky(conv(x, 0, 2))
    for index, stride in ((2, 2), (5, 1)):
        x = np.asarray(conv(x, index, stride))
        part = {
            k: w[f"{index + 1}.{k}"][None, :, None, None] for k in ("weight", "bias", "running_mean", "running_var")
        }
        x = leaky((x - part["running_mean"]) / np.sqrt(part["running_var"] + 1e-5) * part["weight"] + part["bias"])
    return np.asarray(conv(x, 8, 1))[:, 0]


def test_a_run_goes_on_with_the_discriminator_of_a_checkpoint(with_discriminator):
    path, arrays = with_discriminator
    options = {"task": "vqgan_jax.task", "steps": 2, "data": {"source": "shapes"}, "pretrained": str(path)}
    config = config_lib.resolve(ConfigDict(options))
    assert config.discriminator.to_dict() == {"channels": 4, "layers": 2, "norm": "batch"}
    params, extra = task.make(config, None).pretrained()
    module = discriminator.build(config.discriminator, Compute())
    x = np.random.default_rng(1).normal(size=(2, 3, 24, 24)).astype(np.float32)
    variables = {"params": params["discriminator"], **extra["discriminator"]}
    logits = module.apply(variables, jnp.asarray(x.transpose(0, 2, 3, 1)), False)
    np.testing.assert_allclose(logits, pix2pix_logits(arrays, x), atol=1e-4)

    fresh = config_lib.resolve(ConfigDict(options | {"fresh_discriminator": True, "discriminator": {"channels": 8}}))
    assert "discriminator" not in task.make(fresh, None).pretrained()[0]
    with pytest.raises(
        ConfigError, match="config.discriminator.channels = 8, but the checkpoint .* has 4: leave it out"
    ):
        config_lib.resolve(ConfigDict(options | {"discriminator": {"channels": 8}}))
