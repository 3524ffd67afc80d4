"""Checkpoint directories of open_clip: `open_clip_config.json`, weights and a tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_jax.pretrained import openai
from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.hugging_face import open_tokenizer
from clip_jax.pretrained.json_files import read_json, read_section
from train_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocess
from train_jax.errors import LoadError
from train_jax.weights.layout import from_peer
from train_jax.weights.tensors import open_tensors
from train_jax.weights.wrappers import unwrap

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
# Defaults of open_clip: sizes, and options for which only the default is supported.
_IMAGE = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16, "head_width": 64, "mlp_ratio": 4.0}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
_SUPPORTED_IMAGE = {"pool_type": "tok", "pos_embed_type": "learnable"}
_SUPPORTED_TEXT = {"pool_type": "argmax", "proj_type": "linear", "text_arch": "clip"}
# Options that do not change the features: options of training, of the tokenizer, and of unsupported towers.
_IGNORED_OPTIONS = {
    "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool",
    "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "timm_model_kwargs", "hf_model_pretrained", "hf_proj_type",
    "hf_pooler_type", "hf_model_config", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "tokenizer_type",
    "tiktoken_name", "text_mask", "pad_id", "bos_id", "eos_id", "attention_mode", "pos_embed", "rope_temperature",
    "mlp_type", "norm_eps", "norm_placement", "variable_text",
}  # fmt: skip


def open_directory(path: Path, weights: Path | None = None) -> Checkpoint | None:
    """Opens an open_clip directory. Returns None if it has no `open_clip_config.json`.

    Reads the weights from the file `weights`, by default from the directory.
    """
    file = path / CONFIG
    if not file.is_file():
        return None
    model = convert_options(_read_model_config(file), file)
    name = str(weights or path)
    weights = weights or next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise LoadError(f"{path} holds no weights: none of {', '.join(WEIGHTS)}")
    source = str(weights)
    tensors = unwrap(open_tensors(weights), openai.ANCHOR, source)
    tensors = {name.removeprefix("text."): x for name, x in tensors.items()}
    return Checkpoint(
        name=name,
        kind="open_clip",
        model=model,
        tokenizer=open_tokenizer(path, model),
        preprocess=open_preprocess(path, model["image"]["size"]),
        read=lambda: (from_peer(tensors, openai.list_entries(model), source, openai.IGNORED), source),
        files=f"{weights.name}, {CONFIG}",
    )


def _read_model_config(file: Path) -> dict:
    """Reads `model_cfg`. Files from open_clip's `model_configs` hold only this object."""
    config = read_json(file)
    return config if "model_cfg" not in config and "vision_cfg" in config else read_section(config, "model_cfg", file)


def convert_options(config: Mapping, file: Path) -> dict:
    """Converts open_clip's `model_cfg` to the options of `CLIPOptions`.

    Raises LoadError for unknown options, since they may change the features.
    """
    image, text = (read_section(config, name, file) for name in ("vision_cfg", "text_cfg"))
    if image.get("timm_model_name") or text.get("hf_model_name"):
        raise LoadError(
            f"{file}: its towers are from timm or transformers ({image.get('timm_model_name') or text['hf_model_name']}); "
            "the file does not describe them. For SigLIP, use the directory for transformers (google/siglip-…)"
        )
    if not isinstance(config.get("embed_dim"), int):
        raise LoadError(f"{file}: embed_dim = {config.get('embed_dim')!r}; it must be an integer")
    for name, part, sizes, supported in (
        ("vision_cfg", image, _IMAGE, _SUPPORTED_IMAGE),
        ("text_cfg", text, _TEXT, _SUPPORTED_TEXT),
    ):
        for key, value in part.items():
            if key not in sizes and key not in _IGNORED_OPTIONS and value not in (None, False, supported.get(key)):
                raise LoadError(f"{file}: {name}.{key} = {value!r} is not supported")
    image, text = ({**sizes, **_drop_nulls(part)} for sizes, part in ((_IMAGE, image), (_TEXT, text)))
    image, text = ({**part, "mlp_ratio": float(part["mlp_ratio"])} for part in (image, text))
    if isinstance(image["layers"], (list, tuple)):
        tower = {"tower": "resnet", "layers": tuple(image["layers"])}
        heads = openai.count_heads(image["width"] * 32, image["head_width"], f"{file}: vision_cfg")
    else:
        tower = {
            "tower": "vit",
            "patch": image["patch_size"],
            "depth": image["layers"],
            "mlp_ratio": image["mlp_ratio"],
        }
        heads = openai.count_heads(image["width"], image["head_width"], f"{file}: vision_cfg")
    return {
        "embed_dim": config["embed_dim"],
        "image": {"size": image["image_size"], "width": image["width"], "heads": heads, **tower},
        "text": {
            "context_length": text["context_length"],
            "vocab_size": text["vocab_size"],
            "width": text["width"],
            "depth": text["layers"],
            "heads": text["heads"],
            "mlp_ratio": text["mlp_ratio"],
            "pool": "argmax",
        },
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "loss": "sigmoid" if config.get("init_logit_bias") is not None else "softmax",
    }


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
    return Preprocess(
        size,
        mode=modes[mode],
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",  # random: bicubic in evaluation
        mean=_to_channels(config.get("mean", CLIP_MEAN)),
        std=_to_channels(config.get("std", CLIP_STD)),
    )


def _drop_nulls(config: Mapping) -> dict:
    """Removes options that are null, so that their defaults apply."""
    return {name: value for name, value in config.items() if value is not None}


def _to_channels(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(x) for x in (values if isinstance(values, (list, tuple)) else (values,) * 3))
