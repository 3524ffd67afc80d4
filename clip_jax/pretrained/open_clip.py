"""open_clip's directories: `open_clip_config.json` beside the weights and a tokenizer."""

from collections.abc import Mapping
from pathlib import Path

from clip_jax.pretrained import openai
from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.hugging_face import open_tokenizer, read_json
from clip_jax.pretrained.openai_file import bare
from train_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocess
from train_jax.errors import LoadError
from train_jax.weights.layout import take
from train_jax.weights.tensors import open_tensors

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
# Options of the towers that change nothing here: training's, and those that say what is so anyway.
_HARMLESS = {"patch_dropout", "hf_tokenizer_name", "tokenizer_kwargs", "text_mask", "pad_id", "eos_id", "output_tokens"}
_IMAGE = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "heads"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def open_directory(path: Path) -> Checkpoint | None:
    """The checkpoint in a directory; None if there is no `open_clip_config.json`."""
    file = path / CONFIG
    if not file.is_file():
        return None
    config = read_json(file)
    if "model_cfg" not in config:
        raise LoadError(f"{file} has no model_cfg")
    model = options(config["model_cfg"], file)
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise LoadError(f"{path} holds no weights: none of {', '.join(WEIGHTS)}")
    tensors = {name.removeprefix("text."): x for name, x in bare(open_tensors(weights)).items()}
    where = str(weights)
    return Checkpoint(
        name=str(path),
        kind="open_clip",
        model=model,
        tokenizer=open_tokenizer(path, model),
        preprocess=_preprocess(config.get("preprocess_cfg", {}), model["image"]["size"], file),
        read=lambda: (take(tensors, openai.entries(model), where, openai.IGNORED), where),
    )


def options(config: Mapping, file: Path) -> dict:
    """Our options for open_clip's `model_cfg`. LoadError for a part that is not known: it may change every feature."""
    image, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in image or "hf_model_name" in text:
        raise LoadError(
            f"{file}: its towers are timm's or another library's ({image.get('timm_model_name') or text['hf_model_name']}); "
            "the file does not tell how they compute. Of a SigLIP take the directory for transformers (google/siglip-…)"
        )
    for name, part, known in (("vision_cfg", image, _IMAGE), ("text_cfg", text, _TEXT)):
        unknown = [key for key, value in part.items() if key not in known | _HARMLESS and value not in (None, False)]
        if unknown:
            raise LoadError(f"{file}: {name}.{unknown[0]} = {part[unknown[0]]!r} is not supported")
    if isinstance(image["layers"], (list, tuple)):
        heads = image["width"] * 32 // image.get("head_width", 64)
        tower = {"tower": "resnet", "layers": tuple(image["layers"]), "heads": heads}
    else:
        tower = {
            "tower": "vit",
            "patch": image["patch_size"],
            "depth": image["layers"],
            "heads": image["width"] // image.get("head_width", 64),
            "mlp_ratio": float(image.get("mlp_ratio", 4.0)),
        }
    return {
        "embed_dim": config["embed_dim"],
        "image": {"size": image["image_size"], "width": image["width"], **tower},
        "text": {
            "context_length": text.get("context_length", 77),
            "vocab_size": text.get("vocab_size", 49408),
            "width": text["width"],
            "depth": text["layers"],
            "heads": text["heads"],
            "mlp_ratio": float(text.get("mlp_ratio", 4.0)),
            "pool": "argmax",
        },
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "loss": "sigmoid" if config.get("init_logit_bias") is not None else "softmax",
    }


def _preprocess(config: Mapping, size: int, file: Path) -> Preprocess:
    modes = {"shortest": "crop", "squash": "squash"}
    mode = config.get("resize_mode", "shortest")
    if mode not in modes:
        raise LoadError(f"{file}: resize_mode = {mode!r} is not supported: {', '.join(modes)}")
    interpolation = config.get("interpolation", "bicubic")
    if interpolation == "random":  # what was trained with; open_clip itself evaluates so
        interpolation = "bicubic"
    return Preprocess(
        size,
        mode=modes[mode],
        interpolation=interpolation,
        mean=tuple(config.get("mean", CLIP_MEAN)),
        std=tuple(config.get("std", CLIP_STD)),
    )
