"""open_clip itself: small models of its own, and all of its configs, with the parameters counted (`make test-peers`)."""

import functools
import importlib.util
import json
import math
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
SPEC = importlib.util.find_spec("open_clip")
if SPEC is None or importlib.util.find_spec("timm") is None:
    pytest.skip("open_clip and timm are not installed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden"))

import make_clip  # noqa: E402

import clip_jax  # noqa: E402
from clip_jax import model as model_lib  # noqa: E402
from clip_jax.pretrained import open_clip as ours  # noqa: E402
from clip_jax.pretrained.checkpoint import abstract_variables  # noqa: E402
from tests.model_cards import execute  # noqa: E402

CONFIGS = sorted((Path(SPEC.origin).parent / "model_configs").glob("*.json"))
# Text towers of transformers, and image towers that are no plain transformers.
UNSUPPORTED = re.compile(
    r"coca_roberta|mt5|nllb|swin|vit_(medium|relpos)|ViT-M-16-alt"
)
TANH = {"act_kwargs": {"approximate": "tanh"}}
VIT, QK_NORM = make_clip.VIT, {"qk_norm": True}
MODELS = {
    "siglip": lambda name: make_clip.open_clip_siglip(name, "vit_large_patch16_siglip_256", 21),
    "siglip2-so400m": lambda name: make_clip.open_clip_siglip(name, "vit_so400m_patch16_siglip_256", 22, **TANH),
    "metaclip2": lambda name: make_clip.open_clip_metaclip2(name, 23),
    "clipa": lambda name: make_clip.open_clip_clipa(name, 24),
    "qk-norm": lambda name: make_clip.open_clip_directory(name, VIT | QK_NORM, 49, text=QK_NORM),
    "coca": lambda name: make_clip.open_clip_coca(name, 26),
    "pe": lambda name: make_clip.open_clip_trunk(name, "vit_pe_core_large_patch14_336", "map", 27),
    "pe-gigantic": lambda name: make_clip.open_clip_trunk(name, "vit_pe_core_gigantic_patch14_448", "map", 28),
    "eva02": lambda name: make_clip.open_clip_trunk(name, "eva02_large_patch14_clip_224", "token", 29),
    "eva": lambda name: make_clip.open_clip_trunk(name, "eva_giant_patch14_224", "token", 30),
    "convnext": lambda name: make_clip.open_clip_convnext(name, "convnext_base", "linear", 32),
    "convnext-mlp": lambda name: make_clip.open_clip_convnext(name, "convnext_xxlarge", "mlp", 33),
    "roberta": lambda name: make_clip.open_clip_roberta(name, make_clip.roberta_tokenizer, 34, hf_proj_type="linear"),
    "xlm-roberta": lambda name: make_clip.open_clip_roberta(name, make_clip.xlm_tokenizer, 35),
    "mobile": lambda name: make_clip.open_clip_mobile(name, 44),
    "mci": lambda name: make_clip.open_clip_mci(name, "fastvit_mci2", 46),
    "mci-deep": lambda name: make_clip.open_clip_mci(name, "fastvit_mci4", 48, 128, make_clip.MCI_DEEP),
    "vitamin": lambda name: make_clip.open_clip_vitamin(name, "vitamin_small_224", "linear", 36),
    "vitamin-xlarge": lambda name: make_clip.open_clip_vitamin(name, "vitamin_xlarge_336", "mlp", 37),
    "eva02-enormous": lambda name: make_clip.open_clip_trunk(name, "eva02_enormous_patch14_clip_224", "token", 38),
    "openvision": lambda name: make_clip.open_clip_clipa(name, 25, pos_embed_type="sin_cos_2d"),
}


@pytest.fixture(scope="module", autouse=True)
def without_torchvision():
    """open_clip reads no pictures here; what stands for torchvision is removed for the tests of other files."""
    before = {name: module for name, module in sys.modules.items() if name.startswith(("torchvision", "pkg_resources"))}
    make_clip.without_torchvision()
    yield
    for name in [name for name in sys.modules if name.startswith(("torchvision", "pkg_resources"))]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("name", MODELS)
def test_features_and_logits_are_those_of_open_clip(name, tmp_path, monkeypatch):
    monkeypatch.setattr(make_clip, "OUT", tmp_path)
    monkeypatch.setattr(ours.bert, "MODELS", make_clip.TINY_ROBERTA)
    if "vitamin" in name:
        for scale in ours.timm.VITAMIN:
            monkeypatch.setitem(ours.timm.VITAMIN, scale, (8, (1, 2), 32, 2, 4))
    MODELS[name](name)
    clip, expected = clip_jax.load(tmp_path / name), np.load(tmp_path / name / "expected.npz")
    pictures = sorted((tmp_path / name / "pictures").iterdir())
    np.testing.assert_array_equal(clip.tokenizer.encode(make_clip.TEXTS), expected["ids"])
    np.testing.assert_allclose(clip.encode_image(pictures), expected["image"], atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(make_clip.TEXTS), expected["text"], atol=1e-5)
    np.testing.assert_allclose(clip.similarity(pictures, make_clip.TEXTS), expected["logits"], atol=2e-4)


@pytest.mark.parametrize("name, trunk, stages", [("mci", "mci1", make_clip.MCI), ("mci-deep", "mci3", make_clip.MCI_DEEP)])
def test_an_mci_of_inference_is_that_of_training(tmp_path, name, trunk, stages):
    """timm's own reparameterisation of the golden's weights."""
    import timm
    from safetensors.torch import load_file, save_file
    from timm.utils.model import reparameterize_model

    golden = Path(make_clip.__file__).parent / "clip" / f"open-clip-{name}"
    shutil.copytree(golden, tmp_path / "mci")
    file, prefix = tmp_path / "mci" / "open_clip_model.safetensors", "visual.trunk."
    state = load_file(file)
    trunk = timm.create_model(f"fastvit_{trunk}", num_classes=20, **stages)
    trunk.load_state_dict({key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)})
    folded = {f"{prefix}{key}": x.contiguous() for key, x in reparameterize_model(trunk.eval()).state_dict().items()}
    assert len(folded) < 0.8 * sum(key.startswith(prefix) for key in state)
    save_file({key: x for key, x in state.items() if not key.startswith(prefix)} | folded, file)
    pictures = sorted((golden / "pictures").iterdir())
    expected = np.load(golden / "expected.npz")["image"]
    np.testing.assert_allclose(clip_jax.load(tmp_path / "mci").encode_image(pictures), expected, atol=1e-5)


# Without MobileCLIP-B, whose stem has one width in timm.
SAVED = ("clipa", "custom", "metaclip2", "quick", "resnet", "siglip2", "eva02", "pe", "convnext")


@pytest.mark.parametrize("kind", ["hf-clip", "openai-vit", *(f"open-clip-{name}" for name in SAVED)])
def test_open_clip_opens_what_is_saved_with_the_same_outputs(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(make_clip.__file__).parent / "clip" / kind
    clip = clip_jax.load(next(folder.glob("*.pt"), folder))
    clip_jax.save_open_clip(clip, tmp_path / "saved")
    _pass_arguments(tmp_path / "saved" / "open_clip_config.json", monkeypatch)
    opened = execute((tmp_path / "saved" / "README.md").read_text(), tmp_path / "saved", "open_clip")
    model, tokenizer = opened["model"], opened["tokenizer"]
    pictures = sorted((folder / "pictures").iterdir())
    pixels = clip.preprocess.normalize(clip.preprocess.batch(pictures)).transpose(0, 3, 1, 2)
    preprocess = model.visual.preprocess_cfg
    assert preprocess["size"] in (clip.preprocess.size, (clip.preprocess.size,) * 2)
    np.testing.assert_allclose(preprocess["mean"], clip.preprocess.mean, rtol=1e-6)
    np.testing.assert_allclose(preprocess["std"], clip.preprocess.std, rtol=1e-6)
    with torch.no_grad():
        image, text, scale, *bias = model.eval()(torch.tensor(pixels), tokenizer(make_clip.TEXTS))
        logits = scale * image @ text.T + sum(bias)
    np.testing.assert_allclose(clip.encode_image(pictures), image.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(make_clip.TEXTS), text.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.similarity(pictures, make_clip.TEXTS), logits.numpy(), atol=2e-4)


def _pass_arguments(file: Path, monkeypatch) -> None:
    """Passes the arguments of a trunk to timm, as open_clip 4 does; open_clip 3 knows none."""
    import open_clip

    config = json.loads(file.read_text())
    kwargs = config["model_cfg"]["vision_cfg"].pop("timm_model_kwargs", {})
    create = functools.partial(open_clip.timm_model.timm.create_model, **kwargs)
    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", create)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_has_as_many_parameters_as_in_open_clip_or_is_refused(file, monkeypatch):
    import open_clip
    import transformers

    config = functools.partial(make_clip.roberta_config, sizes=ours.bert.MODELS)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", config)

    config = json.loads(file.read_text())
    if UNSUPPORTED.search(file.stem):
        with pytest.raises(clip_jax.LoadError, match=r"_cfg\.\w+ = .*not supported"):
            ours.convert_options(config, file)
        return
    options = ours.convert_options(config, file)
    module = model_lib.build(options, options["text"]["vocab_size"], eos_id=2)
    config["vision_cfg"].pop("timm_model_pretrained", None)
    is_bert = "hf_model_name" in config["text_cfg"]
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) or is_bert else open_clip.CLIP
    if is_bert:
        config["text_cfg"]["hf_model_pretrained"] = False
    is_coca = "multimodal_cfg" in config
    is_mci = options["image"]["tower"] == "mci"
    with torch.device("cpu" if is_mci else "meta"):
        peer = open_clip.CoCa(**config) if is_coca else kind(**config)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(module)["params"]))
    expected = sum(p.numel() for p in peer.parameters())
    if is_mci:  # of what it becomes
        folded = ours.mci.fold(peer.state_dict(), options["image"], file.stem)
        names = [name for entry in ours.mci.list_entries(options["image"]) for name in entry.theirs]
        expected = sum(math.prod(folded[name].shape) for name in names)
        expected += sum(p.numel() for p in peer.text.parameters()) + 1
    if is_coca:  # without what writes captions: the second text tower, and all queries but the first
        expected -= sum(p.numel() for p in peer.text_decoder.parameters())
        pooler = peer.visual.attn_pool
        expected -= 0 if pooler is None else pooler.query[1:].numel()
    if is_bert:  # positions that are not used, and the type, which is part of the others
        embeddings = peer.text.transformer.embeddings
        expected -= embeddings.position_embeddings.weight[options["text"]["context_length"] :].numel()
        expected -= embeddings.token_type_embeddings.weight.numel()
    if options["image"].get("stem") == "hmlp":  # the class token's position of zeros
        expected += options["image"]["width"]
    assert count == expected


def test_published_weights_have_configs_that_open():
    import open_clip

    files, refused = {file.stem: file for file in CONFIGS}, set()
    tags = open_clip.list_pretrained()
    for name, _ in tags:
        try:
            ours.convert_options(json.loads(files[name].read_text()), files[name])
        except clip_jax.LoadError:
            refused.add(name)
    assert sum(name not in refused for name, _ in tags) >= 190 and all("nllb" in name for name in refused), refused


def test_convnexts_have_the_sizes_and_eps_of_timm():
    import timm

    for scale in ours.timm.CONVNEXT:
        name = f"convnext_{scale}"
        with torch.device("meta"):
            trunk = timm.create_model(name)
        config = {"timm_model_name": name, "image_size": 256, "timm_pool": "", "timm_proj": "linear"}
        options = ours.timm.convert_options(config, 32, Path(name))
        assert options["width"] == trunk.stem[0].out_channels
        assert options["layers"] == tuple(len(stage.blocks) for stage in trunk.stages)
        norms = [module for module in trunk.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {options["eps"]}, name


def test_vitamins_have_the_sizes_and_eps_of_timm():
    import timm

    names = timm.list_models("vitamin_*")
    assert {ours.timm.match_name(name)["scale"] for name in names} == set(ours.timm.VITAMIN)
    for name in names:
        with torch.device("meta"):
            trunk = timm.create_model(name)
        config = {"timm_model_name": name, "image_size": int(name[-3:]), "timm_pool": "", "timm_proj": "linear"}
        options = ours.timm.convert_options(config, 32, Path(name))
        assert (options["depth"], options["heads"]) == (len(trunk.blocks), trunk.blocks[0].attn.num_heads)
        assert options["learned_positions"] == (trunk.pos_embed is not None)
        assert options["stem_layers"] == tuple(len(stage) for stage in trunk.patch_embed.backbone.stages)
        norms = [module for module in trunk.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {options["eps"]}, name


def trunks() -> list[str]:
    import timm

    return sorted(name for name in timm.list_models(["vit_*", "eva*"]) if ours.timm.match_name(name))


def test_the_names_of_trunks_that_are_written_are_those_of_timm():
    import timm

    others = {name for name in timm.list_models(["convnext_*", "vitamin_*"]) if ours.timm.match_name(name)}
    assert {name for name in {*trunks(), *others} if "large2" not in name} == set(ours.timm.TRUNKS)


def test_trunks_have_the_activation_and_norms_of_timm(monkeypatch):
    """Of all names that open, those of timm: activation, eps, heads, sizes."""
    import timm

    for name in trunks():
        with torch.device("meta"):
            trunk = timm.create_model(name)
        family = ours.timm.match_name(name)["family"]
        pool, proj = {"siglip": ("map", "none"), "pe_core": ("map", None)}.get(family, ("token", None))
        size = trunk.patch_embed.img_size[0]
        config = {"timm_model_name": name, "image_size": size, "timm_pool": pool, "timm_proj": proj}
        options = ours.timm.convert_options(config, 32, Path(name))
        act = trunk.blocks[0].mlp.act
        activation = {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}.get(type(act).__name__, "gelu")
        assert options["activation"] == activation, (name, act)
        assert options["eps"] == trunk.blocks[0].norm1.eps, name
        assert (options["depth"], options["heads"]) == (len(trunk.blocks), trunk.blocks[0].attn.num_heads), name
        assert round(options["mlp_ratio"] * options["width"]) == trunk.blocks[0].mlp.fc2.in_features, name
