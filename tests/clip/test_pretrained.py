"""Models of every format, saved by the peers, have the peers' outputs. `tests/golden/make_clip.py` makes the files."""

import dataclasses
import functools
import gzip
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax import LoadError, card, verify
from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.pretrained import open_checkpoint, timm
from clip_jax.pretrained.checkpoint import join_towers
from tests import hub_server, model_cards
from tests.tiny_towers import tiny_towers
from train_jax import model_card
from train_jax.data.images import CLIP_MEAN
from train_jax.errors import ConfigError, UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "clip"
TEXTS = [
    "a photo of a cat.",
    "Two DOGS  and a red ball",
    "the sea at night, with many, many, many ships far away",
    "42",
]
PICTURE = GOLDEN / "hf-clip" / "pictures" / "0.png"
KINDS = sorted(folder.name for folder in GOLDEN.iterdir())


def model_path(kind: str) -> Path:
    files = [*(GOLDEN / kind).glob("*.pt"), *(GOLDEN / kind).glob("*.npz")]
    files = [file for file in files if file.name != "expected.npz"]
    return files[0] if files else GOLDEN / kind


@pytest.fixture(scope="module", autouse=True)
def tiny_sizes():
    """The sizes of models whose files only name a tower."""
    with tiny_towers():
        yield


@functools.cache
def golden(kind: str, **options) -> clip_jax.Clip:
    return clip_jax.load(model_path(kind), **options)


@pytest.fixture(scope="module", params=KINDS)
def opened(request):
    """`(model, the peer's outputs, pictures)`."""
    pictures = sorted((GOLDEN / request.param / "pictures").iterdir())
    return golden(request.param), np.load(GOLDEN / request.param / "expected.npz"), pictures


def test_texts_become_the_peers_ids(opened):
    clip, expected, _ = opened
    ids = clip.tokenizer.encode(TEXTS)
    # What follows the end of the text is never attended: transformers writes another padding.
    if clip.module.options.text.causal:
        attended = np.cumsum(ids == clip.tokenizer.eos_id, axis=1) - (ids == clip.tokenizer.eos_id) == 0
        assert attended.any(axis=1).all()
    else:
        attended = np.ones_like(ids, bool)
    np.testing.assert_array_equal(ids[attended], expected["ids"][attended])


def test_features_and_logits_are_the_peers(opened):
    clip, expected, pictures = opened
    np.testing.assert_allclose(clip.encode_image(pictures), expected["image"], atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(TEXTS), expected["text"], atol=1e-5)
    # Logits are cosines times about 12.
    np.testing.assert_allclose(clip.similarity(pictures, TEXTS), expected["logits"], atol=2e-4)


# ---------------------------------------------------------------------------------------------------------------------
# One file


@pytest.mark.parametrize("kind", ["hf-siglip", "open-clip-clipa", "open-clip-resnet", "openai-vit"])
def test_a_model_is_saved_as_one_file(kind, tmp_path):
    """SentencePiece, WordPiece with repaired texts, running statistics, and OpenAI's rule for the end token."""
    clip, file = golden(kind), tmp_path / "clip.safetensors"
    clip_jax.save(clip, file)
    again = clip_jax.load(file)
    assert again.fingerprint == clip.fingerprint and again.module == clip.module
    np.testing.assert_array_equal(again.tokenizer.encode(TEXTS), clip.tokenizer.encode(TEXTS))
    if kind != "hf-siglip":  # whose scores lose their last digit in JSON
        assert file.read_bytes() == clip_jax.to_bytes(again), "the same file again"
    with pytest.raises(FileExistsError, match="already exists"):
        clip_jax.save(clip, file)
    with pytest.raises(ValueError, match="name the file as NAME.safetensors"):
        clip_jax.save(clip, tmp_path / "clip.npz")


def test_a_damaged_single_file_is_described(tmp_path):
    file = tmp_path / "clip.safetensors"
    description = {"model": {"text": {"context_length": 8}}, "compute": {}, "tokenizer": "{}", "preprocess": "{}"}
    for changed, words in (
        (json.dumps({"model": {}}), "lacks 'compute'"),
        ("[1]", "must hold an object, not a list"),
        ("{", "is not JSON"),
        (json.dumps(description), "not a tokenizer.json"),
    ):
        save_file({"a": np.zeros(1, np.float32)}, file, metadata={"clip_jax": changed})
        with pytest.raises(LoadError, match=words):
            clip_jax.load(file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(LoadError, match="cannot be read"):
        clip_jax.load(file)


# ---------------------------------------------------------------------------------------------------------------------
# Saving for transformers


@pytest.mark.parametrize("kind", ["hf-clip", "hf-clip-legacy", "hf-metaclip2", "hf-naflex", "hf-siglip", "hf-siglip2"])
def test_saved_for_transformers_as_transformers_saves(kind, tmp_path):
    """The tensors, names and configs are those that the peer itself writes."""
    clip_jax.save_hf(golden(kind), tmp_path / "saved")
    theirs, mine = (load_file(folder / "model.safetensors") for folder in (GOLDEN / kind, tmp_path / "saved"))
    assert mine.keys() == theirs.keys()
    for name in theirs:
        assert mine[name].dtype == np.float32 and mine[name].shape == theirs[name].shape, name
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    expected = json.loads((GOLDEN / kind / "config.json").read_text())
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["architectures"] == expected["architectures"] and saved["model_type"] == expected["model_type"]
    assert saved.get("projection_dim") == expected.get("projection_dim")
    for part in ("text_config", "vision_config"):
        for key, value in saved[part].items():
            if key not in ("pad_token_id", "bos_token_id", "eos_token_id", "projection_dim"):
                assert expected[part][key] == value, (part, key)
    if "siglip" not in kind and kind != "hf-naflex":
        assert saved["text_config"]["eos_token_id"] == expected["text_config"]["eos_token_id"]
    expected = json.loads((GOLDEN / kind / "preprocessor_config.json").read_text())
    for key, value in json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text()).items():
        assert key in ("processor_class", "do_convert_rgb") or expected[key] == value, key


@pytest.mark.parametrize(
    "kind",
    [
        "big-vision-naflex", "hf-chinese-clip", "hf-siglip", "open-clip-quick", "open-clip-metaclip2", "open-clip-siglip2",
        "openai-vit",
    ],
)  # fmt: skip
def test_a_saved_model_is_loaded_unchanged(kind, tmp_path):
    clip = golden(kind)
    clip_jax.save_hf(clip, tmp_path / "saved")
    again = clip_jax.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.tokenizer.encode(TEXTS), clip.tokenizer.encode(TEXTS))
    pictures = sorted((GOLDEN / kind / "pictures").iterdir())
    np.testing.assert_array_equal(again.similarity(pictures, TEXTS), clip.similarity(pictures, TEXTS))


def test_models_that_transformers_cannot_express_are_refused(tmp_path, trained, new_clip):
    with pytest.raises(ValueError, match="no CLIP with a resnet"):
        clip_jax.save_hf(golden("openai-resnet"), tmp_path / "saved")
    with pytest.raises(ValueError, match="siglip model has image.stem_bias = True, and this one False"):
        clip_jax.save_hf(golden("open-clip-custom"), tmp_path / "saved")
    with pytest.raises(ValueError, match="no interpolation 'bilinear_aliased'"):
        clip_jax.save_hf(golden("big-vision"), tmp_path / "saved")
    with pytest.raises(ValueError, match="chinese_clip model has text.proj_hidden = 0, and this one 26"):
        clip_jax.save_hf(golden("open-clip-roberta"), tmp_path / "saved")
    with pytest.raises(ValueError, match="clip model has image.pool = 'cls', and this one 'mean'"):
        clip_jax.save_hf(
            new_clip(image={"size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2, "pool": "mean"}),
            tmp_path / "saved",
        )
    assert not (tmp_path / "saved").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="holds files already"):
        clip_jax.save_hf(trained, tmp_path / "full")


OWN, TRUNKS = ("clipa", "custom", "metaclip2", "resnet"), ("convnext", "eva02", "mobile", "pe", "siglip2", "vitamin")


@pytest.mark.parametrize("kind", ["open-clip", *(f"open-clip-{name}" for name in (*OWN, *TRUNKS))])
def test_saved_for_open_clip_as_open_clip_saves(kind, tmp_path):
    """The tensors are those that open_clip itself writes; a text tower of its own has a prefix there."""
    clip = golden(kind)
    clip_jax.save_open_clip(clip, tmp_path / "saved")
    file = "open_clip_model.safetensors"
    theirs, mine = (load_file(folder / file) for folder in (GOLDEN / kind, tmp_path / "saved"))
    theirs = {name.removeprefix("text."): x for name, x in theirs.items() if not name.endswith("attn_mask")}
    assert mine.keys() == theirs.keys()
    for name in theirs:
        assert mine[name].dtype == theirs[name].dtype and mine[name].shape == theirs[name].shape, name
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    again = clip_jax.load(tmp_path / "saved")
    assert again.module == clip.module and again.preprocess == clip.preprocess
    np.testing.assert_array_equal(again.tokenizer.encode(TEXTS), clip.tokenizer.encode(TEXTS))


def test_a_trunk_of_timm_is_written_by_its_name():
    for name in timm.TRUNKS:
        family = timm.match_name(name)["family"]
        pool, proj = {"siglip": ("map", "none"), "pe_core": ("map", None)}.get(family, ("token", None))
        pool, proj = ("", "linear") if family in ("convnext", "vitamin") else (pool, proj)
        size = int(name.rsplit("_", 1)[1]) if name[-1].isdigit() else 256
        config = {"timm_model_name": name, "image_size": size, "timm_pool": pool, "timm_proj": proj}
        model = join_towers(timm.convert_options(config, 640, Path(name)), {"eps": 1e-5, "activation": "gelu"})
        options = CLIPOptions.parse(model | {"embed_dim": model["image"]["width"] if proj == "none" else 640}, "model")
        written = timm.find_config(options)
        assert {key: x for key, x in written.items() if key != "timm_proj_bias"} == config


def test_the_position_of_a_class_token_is_written_as_part_of_the_token(tmp_path):
    """MobileCLIP-B has none; a trained one has."""
    clip = golden("open-clip-mobile")
    vision = clip.variables["params"]["vision"]
    moved = {**vision, "positions": vision["positions"].at[0].set(jnp.arange(32) % 2)}
    variables = {**clip.variables, "params": {**clip.variables["params"], "vision": moved}}
    clip = clip_jax.Clip.assemble(clip.module, variables, clip.tokenizer, clip.preprocess, "moved")
    clip_jax.save_open_clip(clip, tmp_path / "saved")
    images = clip.encode_image([PICTURE])
    np.testing.assert_allclose(clip_jax.load(tmp_path / "saved").encode_image([PICTURE]), images, atol=1e-5)
    assert np.abs(golden("open-clip-mobile").encode_image([PICTURE]) - images).max() > 1e-3


def test_models_that_open_clip_cannot_express_are_refused(tmp_path, new_clip):
    for kind, words in (
        ("hf-naflex", "image.stem_bias = False, and this one True"),
        ("open-clip-coca", "image.pool = 'cls' or 'mean', and this one 'query'"),
        ("open-clip-mci", "image.tower = 'vit' or 'resnet', and this one 'mci'"),
        ("open-clip-roberta", "text.pool = 'argmax' or 'eos' or 'last', and this one 'mean'"),
    ):
        with pytest.raises(ValueError, match=f"open_clip's own models have {words}: it cannot be written"):
            clip_jax.save_open_clip(golden(kind), tmp_path / "saved")
    text = {"context_length": 32, "width": 16, "depth": 1, "heads": 2}
    with pytest.raises(ValueError, match="text.causal = True, and this one False"):
        clip_jax.save_open_clip(new_clip(text=text | {"causal": False}), tmp_path / "saved")
    with pytest.raises(ValueError, match="quick_gelu in both towers or in none, and this model .*'text': 'gelu'"):
        clip_jax.save_open_clip(new_clip(text=text | {"activation": "gelu"}), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(FileExistsError, match="holds files already"):
        clip_jax.save_open_clip(golden("open-clip"), GOLDEN / "open-clip")


def test_a_trained_run_is_saved_and_loaded(trained, tmp_path):
    clip_jax.save_hf(trained, tmp_path / "saved")
    again = clip_jax.load(tmp_path / "saved")
    texts = ["a red circle", "a small blue star above a large ring"]
    np.testing.assert_array_equal(again.encode_text(texts), trained.encode_text(texts))
    assert again.preprocess == dataclasses.replace(trained.preprocess, mode="crop_floor")  # transformers rounds down


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def test_pictures_of_another_size():
    """Position embeddings against Pillow's antialiased bicubic filter, channel by channel."""
    clip = golden("hf-clip", image_size=40)
    small = golden("hf-clip")
    assert clip.preprocess.size == 40 and clip.encode_image([PICTURE]).shape == (1, 20)
    for new, model in ((5, clip), (2, golden("hf-clip", image_size=16))):
        old = np.asarray(small.variables["params"]["vision"]["positions"])
        grid = old[1:].reshape(3, 3, -1)
        channels = [Image.fromarray(grid[:, :, c]).resize((new, new), Image.Resampling.BICUBIC) for c in range(32)]
        expected = np.stack([np.asarray(c) for c in channels], axis=-1).reshape(new * new, -1)
        positions = np.asarray(model.variables["params"]["vision"]["positions"])
        np.testing.assert_allclose(positions[1:], expected, atol=2e-6)
        np.testing.assert_array_equal(positions[0], old[0])
    with pytest.raises(LoadError, match="patch = 8 does not divide size = 30"):
        clip_jax.load(GOLDEN / "hf-clip", image_size=30)


# ---------------------------------------------------------------------------------------------------------------------
# Traps, and files that are not what they seem


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden folder, for changes."""
    return lambda kind: Path(shutil.copytree(GOLDEN / kind, tmp_path / kind))


def edit(folder: Path, file: str, *path, **changes) -> None:
    content = json.loads((folder / file).read_text())
    part = content
    for key in path:
        part = part[key]
    part.update(changes)
    (folder / file).write_text(json.dumps(content))


def vision(folder: Path, **changes) -> None:
    edit(folder, "open_clip_config.json", "model_cfg", "vision_cfg", **changes)


def text(folder: Path, **changes) -> None:
    edit(folder, "open_clip_config.json", "model_cfg", "text_cfg", **changes)


def test_the_legacy_rule_reads_at_the_largest_id(copy):
    """With eos_token_id 2 a text is pooled at its largest id, else at the first end token."""
    legacy, new = golden("hf-clip-legacy"), golden("hf-clip")
    assert legacy.module.options.text.pool == "argmax" and new.module.options.text.pool == "eos"
    folder = copy("hf-clip")
    edit(folder, "config.json", "text_config", eos_token_id=3)
    with pytest.raises(LoadError, match="end token is 556, but eos_token_id is 3 in config.json"):
        clip_jax.load(folder)


def test_padding_does_not_matter_to_a_causal_tower_and_does_to_another():
    for kind, same in (("hf-clip", True), ("hf-siglip", False)):
        clip = golden(kind)
        ids = clip.tokenizer.encode(["42"])
        other = ids.copy()
        end = int(np.argmax(ids[0] == clip.tokenizer.eos_id))
        other[0, end + 1 :] = 7
        encode = jax.jit(lambda x, clip=clip: clip.module.apply(clip.variables, x, method="encode_text"))
        embeddings = [encode(x) for x in (ids, other)]
        assert np.allclose(*embeddings, atol=1e-6) == same


def test_old_position_ids_are_passed_over(copy):
    folder = copy("hf-clip")
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = np.arange(16)[None]
    tensors["vision_model.embeddings.position_ids"] = np.arange(10)[None]
    save_file(tensors, folder / "model.safetensors")
    assert clip_jax.load(folder).fingerprint == golden("hf-clip").fingerprint


def test_the_activation_is_taken_from_the_config(copy):
    activations = {"hf-clip": "quick_gelu", "hf-clip-legacy": "gelu", "hf-siglip": "gelu_tanh"}
    activations |= {"open-clip": "gelu", "open-clip-quick": "quick_gelu", "openai-vit": "quick_gelu"}
    for kind, expected in activations.items():
        clip = golden(kind)
        assert clip.module.options.activation == expected
    folder = copy("hf-clip")
    for part in ("text_config", "vision_config"):
        edit(folder, "config.json", part, hidden_act="gelu")
    before, after = (clip_jax.load(x).encode_image([PICTURE]) for x in (GOLDEN / "hf-clip", folder))
    assert np.abs(before - after).max() > 1e-3
    edit(folder, "config.json", "vision_config", hidden_act="swish")
    with pytest.raises(LoadError, match="'swish' is not supported; supported: "):
        clip_jax.load(folder)


def test_heads_follow_the_width_of_a_head(copy):
    folder = copy("open-clip")
    assert clip_jax.load(folder).module.options.image.heads == 2
    edit(folder, "open_clip_config.json", "model_cfg", "vision_cfg", head_width=8)
    assert clip_jax.load(folder).module.options.image.heads == 4


def test_preprocessing_comes_with_the_model():
    clip, siglip = golden("hf-clip").preprocess, golden("hf-siglip").preprocess
    assert (clip.mode, clip.interpolation, clip.mean) == ("crop_floor", "bicubic", CLIP_MEAN)
    assert (siglip.mode, siglip.interpolation, siglip.mean, siglip.std) == ("squash", "bicubic", (0.5,) * 3, (0.5,) * 3)


def test_the_clean_up_is_more_than_the_tokenizer_file_says():
    clip = golden("hf-clip")
    plain, dirty = clip.tokenizer.encode(["cat & dog's", "  CAT &amp;amp;  dog\u2019s\n"])
    np.testing.assert_array_equal(plain, dirty)


def test_eps_comes_from_the_config(copy):
    for kind, eps in (("hf-clip", 1e-5), ("hf-siglip", 1e-6), ("big-vision", 1e-6), ("open-clip", 1e-5)):
        assert golden(kind).module.options.eps == eps
    folder = copy("hf-clip")
    for part in ("text_config", "vision_config"):
        edit(folder, "config.json", part, layer_norm_eps=1e-2)
    assert clip_jax.load(folder).module.options.eps == 1e-2


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/this-should-never-appear",))


def test_a_program_in_a_pickle_is_not_run(copy):
    folder = copy("openai-resnet")
    with zipfile.ZipFile(folder / "RN-tiny.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"visual.conv1.weight": Evil()}))
    with pytest.raises(LoadError, match="RN-tiny.pt"):
        clip_jax.load(folder / "RN-tiny.pt")
    assert not Path("/tmp/this-should-never-appear").exists()


@pytest.mark.parametrize("kind", ["hf-clip", "open-clip", "openai-resnet", "big-vision"])
def test_a_damaged_file_is_named(kind, copy):
    folder = copy(kind)
    weights = next(
        p for p in folder.iterdir() if p.suffix in (".pt", ".npz", ".safetensors") and p.name != "expected.npz"
    )
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(LoadError, match=f"{weights.name} cannot be read as weights"):
        clip_jax.load(weights if kind in ("openai-resnet", "big-vision") else folder)


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("hf-clip", lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
        ("hf-clip", lambda d: [(d / f).unlink() for f in ("vocab.json", "tokenizer.json")], "no tokenizer at"),
        ("hf-clip", lambda d: (d / "preprocessor_config.json").unlink(), "processor_config.json is missing"),
        ("hf-clip", lambda d: edit(d, "config.json", model_type="bert"), "model_type 'bert' is no complete model of"),
        ("hf-clip", lambda d: edit(d, "config.json", model_type="clip_text_model"), "half a CLIP, without its image tower"),
        ("hf-clip", lambda d: edit(d, "config.json", model_type="siglip_vision_model"), "half a CLIP, without its text"),
        ("hf-halves", lambda d: edit(d / "image_encoder", "config.json", projection_dim=24), "20 in text_encoder"),
        ("hf-halves", lambda d: edit(d / "text_encoder", "config.json", architectures=["CLIPTextModel"]), "of the class"),
        ("hf-halves", lambda d: edit(d / "text_encoder", "config.json", rope=1), "has rope; what is understood"),
        ("hf-halves", lambda d: shutil.rmtree(d / "feature_extractor"), "feature_extractor or image_processor is missing"),
        ("hf-halves", lambda d: (d / "image_encoder" / "model.safetensors").unlink(), "image_encoder holds no weights"),
        ("hf-metaclip2", lambda d: edit(d, "config.json", "text_config", eos_token_id=3), "end token is 2, but eos_"),
        ("open-clip-siglip2", lambda d: vision(d, timm_pool="avg"), "timm_pool = 'avg'; vit_base_.* has 'map'"),
        ("open-clip-siglip2", lambda d: vision(d, timm_proj="linear"), "timm_proj = 'linear'; vit_base_.* has 'none'"),
        ("open-clip-siglip2", lambda d: vision(d, image_size=32), "image_size = 32; vit_base_.* has 24"),
        ("open-clip-siglip2", lambda d: vision(d, timm_model_kwargs={"qk_norm": True}), "kwargs.qk_norm is not supported"),
        ("open-clip-siglip2", lambda d: text(d, act_kwargs={"approximate": "erf"}), "act_kwargs = .*erf.* is not supported"),
        ("open-clip-siglip2", lambda d: text(d, norm_kwargs={"bias": False}), "norm_kwargs = .*bias.* is not supported"),
        ("open-clip-siglip2", lambda d: text(d, tokenizer_kwargs={"clean": "x"}), "tokenizer_kwargs = .* is not supported"),
        ("open-clip-siglip2", lambda d: text(d, tokenizer_mode="clips"), "tokenizer_mode = 'clips' is not supported"),
        ("open-clip-siglip2", lambda d: text(d, hf_model_name="google/mt5-base"), "hf_model_name = 'google/mt5-b"),
        ("open-clip-roberta", lambda d: text(d, hf_pooler_type="cls_pooler"), "hf_pooler_type = 'cls_pooler' is not supp"),
        ("open-clip-roberta", lambda d: text(d, hf_proj_type="none"), "hf_proj_type = 'none' is not supported; sup"),
        ("open-clip-roberta", lambda d: text(d, hf_tokenizer_name=None), "hf_tokenizer_name is missing, which tiny-roberta"),
        (
            "open-clip-roberta",
            lambda d: edit(d, "tokenizer_config.json", pad_token="</s>"),
            "the tokenizer pads with 2, and tiny-roberta with 1",
        ),
        (
            "open-clip-roberta",
            lambda d: edit(d, "open_clip_config.json", "model_cfg", multimodal_cfg={"width": 8}),
            "not supported in a CoCa",
        ),
        ("open-clip-convnext", lambda d: vision(d, timm_proj=None), "timm_proj = None; convnext_large has one of"),
        ("open-clip-convnext", lambda d: vision(d, timm_pool="abs_attn"), "timm_pool = 'abs_attn'; convnext_large has one"),
        ("open-clip-convnext", lambda d: vision(d, timm_model_name="convnext_nano"), "this trunk of timm is not supported"),
        ("open-clip-mci", lambda d: vision(d, timm_proj="linear"), "timm_proj = 'linear'; fastvit_mci1 has None"),
        ("open-clip-mci", lambda d: vision(d, timm_model_name="fastvit_sa12"), "this trunk of timm is not supported"),
        ("open-clip-mci", lambda d: vision(d, timm_model_name="fastvit_mci3"), "mci3 has 5 stages"),
        ("open-clip-convnext", lambda d: vision(d, timm_model_kwargs={"use_grn": True}), "kwargs.use_grn is not supported"),
        ("open-clip-vitamin", lambda d: vision(d, image_size=48), "image_size = 48; vitamin_small_224 has 32"),
        ("open-clip-vitamin", lambda d: vision(d, timm_proj="none"), "timm_proj = 'none'; vitamin_small_224 has one of"),
        ("open-clip-vitamin", lambda d: vision(d, timm_model_name="vitamin_tiny_224"), "this trunk of timm"),
        ("open-clip-eva02", lambda d: vision(d, timm_model_name="eva02_tiny_patch14_clip_224"), "this trunk of timm"),
        ("open-clip-metaclip2", lambda d: text(d, eos_id=1), "end token is 2, and text_cfg.eos_id is 1"),
        ("open-clip-coca", lambda d: text(d, pad_id=1), "pad_id = 1 is not supported with embed_cls"),
        ("open-clip-coca", lambda d: vision(d, attentional_pool="parallel"), "attentional_pool = 'parallel' is not"),
        ("open-clip-coca", lambda d: vision(d, pool_type="avg"), "attentional_pool with .* is not supported"),
        ("hf-clip", lambda d: edit(d, "config.json", "text_config", vocab_size=300), "wrong tokenizer for the weights"),
        ("hf-clip", lambda d: edit(d, "config.json", projection_dim=7), r"text/proj/kernel has shape \(32, 7\) in the conf"),
        (
            "hf-clip",
            lambda d: edit(d, "config.json", "text_config", num_hidden_layers=1),
            "has parts that are not under",
        ),
        ("hf-clip", lambda d: edit(d, "config.json", "text_config", num_hidden_layers=3), "lacks 16 tensor"),
        (
            "open-clip",
            lambda d: edit(d, "open_clip_config.json", "model_cfg", "vision_cfg", timm_model_name="x"),
            "timm_model_name = 'x': this trunk of timm is not supported",
        ),
        (
            "open-clip",
            lambda d: edit(d, "open_clip_config.json", "model_cfg", "text_cfg", ls_init_value=1),
            "ls_init_value",
        ),
        ("open-clip", lambda d: (d / "open_clip_model.safetensors").unlink(), "holds no weights"),
        ("hf-siglip", lambda d: (d / "spiece.model").write_bytes(b"junk"), "spiece.model|SentencePiece"),
    ],
)
def test_incomplete_directories_are_described(kind, change, words, copy):
    folder = copy(kind)
    change(folder)
    with pytest.raises(LoadError, match=words):
        clip_jax.load(folder)


def test_openais_files_ask_for_their_vocabulary(copy, tmp_path):
    folder = copy("openai-vit")
    expected = clip_jax.load(folder / "ViT-tiny.pt").encode_text(TEXTS)
    merges = (folder / "merges.txt").read_text()
    for file in (*folder.glob("*.json"), folder / "merges.txt"):
        file.unlink()
    with pytest.raises(LoadError, match="contain no vocabulary: put bpe_simple_vocab_16e6.txt.gz"):
        clip_jax.load(folder / "ViT-tiny.pt")
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wt") as file:
        file.write(merges)
    np.testing.assert_array_equal(clip_jax.load(folder / "ViT-tiny.pt").encode_text(TEXTS), expected)


def test_the_hub_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match=r"copy \*.json.* of https://huggingface.co/openai/clip-vit-base-patch32 into"):
        clip_jax.load("hf:openai/clip-vit-base-patch32")
    with pytest.raises(LoadError, match="write hf:organisation/name"):
        clip_jax.load("hf:clip")


def test_layers_to_compare_are_the_outputs_of_blocks():
    checkpoint = open_checkpoint(GOLDEN / "hf-clip")
    module = checkpoint.module(scan=False)
    variables = jax.tree.map(jnp.asarray, checkpoint.variables(module)[0])
    size = module.options.image.size
    layers, features = verify._capture_layers(module, variables, "image", np.zeros((2, size, size, 3), np.float32))
    assert layers and features.shape[0] == 2
    assert all(layer.shape == layers[0].shape and layer.shape[0] == 2 for layer in layers)


def test_a_loaded_model_has_none_of_the_computation_of_its_training():
    checkpoint = open_checkpoint(GOLDEN / "hf-clip")
    trained = CLIPCompute(dtype="bfloat16", remat="full", float8=True, micro_batch=2, text_lengths=(4,), scan=False)
    module = dataclasses.replace(checkpoint, compute=trained).module()
    assert module.compute == CLIPCompute(dtype="bfloat16", scan=False)


# ---------------------------------------------------------------------------------------------------------------------
# Model cards


def test_a_card_tells_what_the_run_knows_and_its_code_runs(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    front = {"pipeline_tag": "zero-shot-image-classification", "tags": ["jax", "clip"]}
    clip_jax.save_hf(trained, "saved", licence="apache-2.0")
    text = (tmp_path / "saved" / "README.md").read_text()
    model_cards.check(text, tiny[1], library_name="transformers", license="apache-2.0", base_model=None, **front)
    again = model_cards.execute(text, tmp_path / "saved", "clip_jax")["clip"]
    np.testing.assert_array_equal(again.encode_text(["a red circle"]), trained.encode_text(["a red circle"]))
    assert "rendered by multimodal-jax" in text and "\nmodel.embed_dim = " in text and "\noptim.lr = " not in text
    # The same of the run itself, at an address of the hub.
    text = model_card.make(card.CLIP, trained.name)
    model_cards.check(text, tiny[1], library_name="multimodal-jax", license=None)
    assert 'clip_jax.load("hf:org/name")' in model_card.address(text, "org/name")


def test_a_card_of_weights_of_no_run_invents_nothing(tmp_path):
    clip_jax.save_open_clip(golden("open-clip"), tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    model_cards.check(text, None, library_name="open_clip", license=None)
    assert '"hf-hub:org/name"' in model_card.address(text, "org/name")
    with pytest.raises(ConfigError, match="licence 'Apache 2': write a name of the hub in lower case, such as apache-2.0"):
        clip_jax.save_hf(golden("hf-clip"), tmp_path / "other", licence="Apache 2")
    assert not (tmp_path / "other").exists()


def test_a_pushed_model_is_opened_from_the_hub(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hub_server.serve(monkeypatch) as hub:
        again = model_cards.push_and_open(tiny[1], hub, tmp_path / "run", "clip_jax")["clip"]
        assert again.fingerprint == trained.fingerprint
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "run"))
        assert clip_jax.load("hf:org/name").fingerprint == trained.fingerprint
        assert clip_jax.push(trained, "org/file", revision="v1") == "hf:org/file/model.safetensors@v1"
        (tmp_path / "file").mkdir()
        arrived = hub.write("org/file", tmp_path / "file", "v1")
        text = (arrived / "README.md").read_text()
        assert 'clip_jax.load("hf:org/file/model.safetensors")' in text
        assert clip_jax.load(arrived / "model.safetensors").fingerprint == trained.fingerprint
    with pytest.raises(UserError, match="step = …: a loaded model has the weights of one step already"):
        clip_jax.push(trained, "org/file", step=1)
