"""Checkpoint directories of open_clip: `open_clip_config.json`, weights and a tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_jax.pretrained import bert, mci, openai, timm
from clip_jax.pretrained.checkpoint import Checkpoint, join_towers
from clip_jax.pretrained.hugging_face import open_tokenizer
from clip_jax.pretrained.json_files import read_json, read_section
from train_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocess
from train_jax.data.text import AnyTokenizer
from train_jax.errors import LoadError
from train_jax.weights.layout import from_peer
from train_jax.weights.tensors import open_tensors
from train_jax.weights.wrappers import holds, unwrap

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
# Defaults of open_clip: sizes, and values of other options that are supported.
_IMAGE = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16, "head_width": 64, "mlp_ratio": 4.0}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
_LAYERS = ("act_kwargs", "norm_kwargs")
_SUPPORTED_IMAGE = {  # files hold the positions of both types
    "pool_type": ("tok", "avg"), "pos_embed_type": ("learnable", "sin_cos_2d"), "no_ln_pre": (True,),
    "final_ln_after_pool": (True,), "attentional_pool": (True,), "qk_norm": (True,), "block_type": ("custom",),
}  # fmt: skip
_SUPPORTED_TEXT = {
    "pool_type": ("argmax", "eos", "last"), "proj_type": ("linear", "none"), "text_arch": ("clip",),
    "no_causal_mask": (True,), "proj_bias": (True,), "embed_cls": (True,), "qk_norm": (True,), "block_type": ("custom",),
}  # fmt: skip
_POOLS = {"tok": "cls", "avg": "mean"}
# Options that do not change the features: options of training, of other modules, and of unsupported towers.
_IGNORED_OPTIONS = {
    "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_model_name", "timm_model_pretrained",
    "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "timm_model_kwargs", "hf_model_name",
    "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "hf_model_config", "hf_tokenizer_name", "tokenizer_kwargs",
    "tiktoken_name", "text_mask", "pad_id", "bos_id", "eos_id", "attention_mode", "pos_embed", "rope_temperature",
    "mlp_type", "norm_eps", "norm_placement", "variable_text",
}  # fmt: skip
_TOP = {  # options beside the towers; those of the initial values and of captioning do not change the features
    "embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "quick_gelu", "custom_text", "init_logit_scale",
    "init_logit_bias", "nonscalar_logit_scale", "cast_dtype", "output_dict",
}  # fmt: skip
_CAPTIONING = (r"^text_decoder\.",)  # CoCa's second text tower, which has no part in its embeddings
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_TOKENIZER_OPTIONS = {"clean": "whitespace", "strip_sep_token": False}


def open_directory(path: Path, weights: Path | None = None) -> Checkpoint | None:
    """Opens an open_clip directory. Returns None if it has no `open_clip_config.json`.

    Reads the weights from the file `weights`, by default from the directory.
    """
    file = path / CONFIG
    if not file.is_file():
        return None
    config = _read_model_config(file)
    model = convert_options(config, file)
    name = str(weights or path)
    weights = weights or next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise LoadError(f"{path} holds no weights: none of {', '.join(WEIGHTS)}")
    source = str(weights)
    trunk, bert_name = config["vision_cfg"].get("timm_model_name"), config["text_cfg"].get("hf_model_name")
    tensors = open_tensors(weights)
    anchors = [name for name in (timm.ANCHORS if trunk else (openai.ANCHOR,)) if holds(tensors, name)]
    tensors = unwrap(tensors, anchors[0], source) if anchors else tensors
    tensors = {name.removeprefix("text."): x for name, x in tensors.items()}
    ignored = (*openai.IGNORED, *(_CAPTIONING if config.get("multimodal_cfg") else ()))
    image_entries, text_entries = timm.list_entries(model["image"]) if trunk else None, None
    if model["image"].get("stem") == "hmlp":
        tensors = timm.add_class_position(tensors)
    if bert_name:
        tensors, ignored = bert.fold_positions(tensors, model["text"]["context_length"]), (*ignored, *bert.IGNORED)
        text_entries = bert.list_entries(model["text"])
    table = openai.list_entries(model, image_entries, text_entries)

    def read() -> tuple[dict, str]:
        is_mci = model["image"]["tower"] == "mci"
        return from_peer(mci.fold(tensors, model["image"], source) if is_mci else tensors, table, source, ignored), source

    return Checkpoint(
        name=name,
        kind="open_clip",
        model=model,
        tokenizer=_open_tokenizer(path, config["text_cfg"], model, file),
        preprocess=open_preprocess(path, model["image"]["size"]),
        read=read,
        files=f"{weights.name}, {CONFIG}"
        + (f" (sizes and activation of images: timm's {trunk})" if trunk else "")
        + (f" (sizes and activation of texts: transformers' {bert_name})" if bert_name else ""),
    )


def _open_tokenizer(path: Path, text: Mapping, model: Mapping, file: Path) -> AnyTokenizer:
    """Opens CLIP's tokenizer, or the one that `hf_tokenizer_name` names, which is expected in the directory."""
    tokenizer_config = path / "tokenizer_config.json"
    is_clips = tokenizer_config.is_file() and read_json(tokenizer_config).get("tokenizer_class") in _CLIP_TOKENIZERS
    if not text.get("hf_tokenizer_name") or is_clips:
        return open_tokenizer(path, model, is_padded=False)
    options = _TOKENIZER_OPTIONS | (text.get("tokenizer_kwargs") or {})
    if options.keys() != _TOKENIZER_OPTIONS.keys() or options["clean"] not in ("canonicalize", "lower", "whitespace"):
        raise LoadError(f"{file}: text_cfg.tokenizer_kwargs = {text['tokenizer_kwargs']!r} is not supported")
    blank = "[SEP]" if options["strip_sep_token"] else None
    tokenizer = open_tokenizer(path, model, is_padded=True, clean=options["clean"], repair=True, blank=blank)
    if model["text"]["pool"] == "eos" and tokenizer.eos_id != text.get("eos_id"):
        raise LoadError(
            f"{path}: the tokenizer's end token is {tokenizer.eos_id}, and text_cfg.eos_id is {text.get('eos_id')!r}"
        )
    if model["text"].get("pad_id", tokenizer.pad_id) != tokenizer.pad_id:
        raise LoadError(
            f"{path}: the tokenizer pads with {tokenizer.pad_id}, and {text['hf_model_name']} with {model['text']['pad_id']}"
        )
    return tokenizer


def _read_model_config(file: Path) -> dict:
    """Reads `model_cfg`. Files from open_clip's `model_configs` hold only this object."""
    config = read_json(file)
    return config if "model_cfg" not in config and "vision_cfg" in config else read_section(config, "model_cfg", file)


def convert_options(config: Mapping, file: Path) -> dict:
    """Converts open_clip's `model_cfg` to the options of `CLIPOptions`.

    Raises LoadError for unknown options, since they may change the features.
    """
    if unknown := config.keys() - _TOP:
        raise LoadError(f"{file}: model_cfg has {', '.join(sorted(unknown))}; what is understood: {', '.join(sorted(_TOP))}")
    image, text = (read_section(config, name, file) for name in ("vision_cfg", "text_cfg"))
    if text.get("hf_model_name") and config.get("multimodal_cfg"):
        raise LoadError(f"{file}: text_cfg.hf_model_name = {text['hf_model_name']!r} is not supported in a CoCa")
    if text.get("embed_cls") and text.get("pad_id", 0) != 0:
        raise LoadError(f"{file}: text_cfg.pad_id = {text['pad_id']!r} is not supported with embed_cls; 0 is")
    if not isinstance(config.get("embed_dim"), int):
        raise LoadError(f"{file}: embed_dim = {config.get('embed_dim')!r}; it must be an integer")
    for name, part, sizes, supported in (
        ("vision_cfg", image, _IMAGE, _SUPPORTED_IMAGE),
        ("text_cfg", text, _TEXT, _SUPPORTED_TEXT),
    ):
        for key, value in part.items():
            known = key in sizes or key in _LAYERS or key in _IGNORED_OPTIONS
            if not known and value not in (None, False, "", *supported.get(key, ())):
                raise LoadError(f"{file}: {name}.{key} = {value!r} is not supported")
    image, text = ({**sizes, **_drop_nulls(part)} for sizes, part in ((_IMAGE, image), (_TEXT, text)))
    image, text = ({**part, "mlp_ratio": float(part["mlp_ratio"])} for part in (image, text))
    is_trunk, is_bert = image.get("timm_model_name"), text.get("hf_model_name")
    return join_towers(
        timm.convert_options(image, config["embed_dim"], file) if is_trunk else _convert_image(config, image, file),
        bert.convert_options(text, config["embed_dim"], file) if is_bert else _convert_text(config, text, file),
        embed_dim=config["embed_dim"],
        loss="sigmoid" if config.get("init_logit_bias") is not None else "softmax",
    )


def _convert_image(config: Mapping, image: Mapping, file: Path) -> dict:
    """Converts `vision_cfg` of open_clip's own towers to the options of `ImageOptions`, with `activation` and `eps`."""
    where, layers = f"{file}: vision_cfg", _convert_layers(config, image, f"{file}: vision_cfg")
    if isinstance(image["layers"], (list, tuple)):
        heads = openai.count_heads(image["width"] * 32, image["head_width"], where)
        tower = {"tower": "resnet", "layers": tuple(image["layers"])}
        return {"size": image["image_size"], "width": image["width"], "heads": heads, **tower, **layers}
    heads = openai.count_heads(image["width"], image["head_width"], where)
    pool = _POOLS[image.get("pool_type", "tok")]
    options = {"pool": pool, "class_token": True} if pool != "cls" else {}
    options |= {"pre_norm": False} if image.get("no_ln_pre") else {}
    options |= {"norm_after_pool": True} if image.get("final_ln_after_pool") and pool != "cls" else {}
    options |= {"qk_norm": True} if image.get("qk_norm") else {}
    if image.get("attentional_pool"):
        if image["width"] == config["embed_dim"] or options.get("norm_after_pool") or pool != "cls":
            raise LoadError(f"{where}.attentional_pool with a width of embed_dim or another pool_type is not supported")
        options |= {"pool": "query", "class_token": True, "pool_heads": image.get("attn_pooler_heads", 8)}
    return {
        "size": image["image_size"],
        "width": image["width"],
        "heads": heads,
        "tower": "vit",
        "patch": image["patch_size"],
        "depth": image["layers"],
        "mlp_ratio": image["mlp_ratio"],
        **options,
        **layers,
    }


def _convert_text(config: Mapping, text: Mapping, file: Path) -> dict:
    """Converts `text_cfg` to the options of `TextOptions`, with `activation` and `eps`."""
    return {
        "context_length": text["context_length"],
        "vocab_size": text["vocab_size"],
        "width": text["width"],
        "depth": text["layers"],
        "heads": text["heads"],
        "mlp_ratio": text["mlp_ratio"],
        "pool": "cls" if text.get("embed_cls") else text.get("pool_type", "argmax"),
        **({"causal": False} if text.get("no_causal_mask") else {}),
        **({"qk_norm": True} if text.get("qk_norm") else {}),
        **({"proj": False} if text.get("proj_type") == "none" else {"proj_bias": True} if text.get("proj_bias") else {}),
        **_convert_layers(config, text, f"{file}: text_cfg"),
    }


def _convert_layers(config: Mapping, part: Mapping, where: str) -> dict:
    """Converts the options of a tower's activation and layer norms."""
    act, norm = (part.get(name) or {} for name in _LAYERS)
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    if act == {"approximate": "tanh"} and activation == "gelu":
        activation = "gelu_tanh"
    elif act:
        raise LoadError(f"{where}.act_kwargs = {act!r} is not supported")
    if not isinstance(norm, Mapping) or norm.keys() - {"eps"}:
        raise LoadError(f"{where}.norm_kwargs = {norm!r} is not supported")
    return {"activation": activation, "eps": norm.get("eps", 1e-5)}


def open_preprocess(path: Path, size: int) -> Preprocess | None:
    """Reads `preprocess_cfg`, with open_clip's defaults. Returns None if the configuration file is missing."""
    file = path / CONFIG
    if not file.is_file():
        return None
    config = _drop_nulls(read_json(file).get("preprocess_cfg") or {})
    modes, interpolations = {"shortest": "crop", "squash": "squash"}, ("bilinear", "bicubic", "random")
    mode, interpolation = config.get("resize_mode", "shortest"), config.get("interpolation", "bicubic")
    if mode not in modes:
        raise LoadError(f"{file}: resize_mode = {mode!r} is not supported: {', '.join(modes)}")
    if interpolation not in interpolations:
        raise LoadError(f"{file}: interpolation = {interpolation!r} is not supported: {', '.join(interpolations)}")
    if config.get("mode", "RGB") != "RGB":
        raise LoadError(f"{file}: mode = {config['mode']!r} is not supported: RGB")
    mean, std = (_to_channels(config.get(name, default)) for name, default in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    if (len(mean), len(std)) != (3, 3) or min(std) <= 0:
        raise LoadError(f"{file}: mean = {mean}, std = {std}: they must be numbers for three channels, std above 0")
    interpolation = "bilinear" if interpolation == "bilinear" else "bicubic"  # random: bicubic in evaluation
    return Preprocess(size, modes[mode], interpolation, mean, std)


def _drop_nulls(config: Mapping) -> dict:
    """Removes options that are null, so that their defaults apply."""
    return {name: value for name, value in config.items() if value is not None}


def _to_channels(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(x) for x in (values if isinstance(values, (list, tuple)) else (values,) * 3))
