"""Saving of models as Hugging Face directories, which `transformers` opens with the same outputs."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from clip_jax import card
from clip_jax.options import CLIPOptions, ImageOptions, TextOptions
from clip_jax.pretrained.hugging_face import (
    ACTIVATIONS,
    LEGACY_EOS,
    list_chinese_clip_entries,
    list_clip_entries,
    list_clip_text_entries,
    list_siglip_entries,
)
from clip_jax.pretrained.image_processor import RESAMPLE
from train_jax import model_card
from train_jax.data.images import NATIVE, Preprocess
from train_jax.data.sentencepiece import SentencePiece
from train_jax.data.text import BOS, EOS, AnyTokenizer
from train_jax.weights import single_file
from train_jax.weights.layout import flatten, to_peer

_THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
# Option values that the models of transformers support; other values cannot be saved.
_VIT = {
    "stem": "patch", "rope": "none", "gated": False, "branch_norms": "none", "key_bias": True, "class_token": False,
    "norm_after_pool": False, "proj_bias": False, "proj_hidden": 0, "learned_positions": True, "native": False,
    "qk_norm": False, "registers": 0,
}  # fmt: skip
_TEXT = {"proj": True, "branch_norms": "none", "pad_id": -1, "proj_hidden": 0, "qk_norm": False}
_CLIP = {
    "image": _VIT | {"stem_bias": False, "pool": "cls", "pre_norm": True, "proj": True},
    "text": _TEXT | {"causal": True, "proj_bias": False},
}
_METACLIP_2 = {"image": _CLIP["image"], "text": _CLIP["text"] | {"pool": "eos"}}
_CHINESE_CLIP = {
    "image": _CLIP["image"],
    "text": {
        "proj": True, "proj_hidden": 0, "proj_bias": False, "qk_norm": False, "branch_norms": "post", "causal": False,
        "pool": "first",
    },
}  # fmt: skip
_SIGLIP = {
    "image": _VIT | {"stem_bias": True, "pool": "map", "pre_norm": False, "proj": False},
    "text": _TEXT | {"causal": False, "pool": "last", "proj_bias": True},
}
_SIGLIP_2 = _SIGLIP | {"image": _SIGLIP["image"] | {"native": True}}
_REQUIRED = {
    "clip": _CLIP, "metaclip_2": _METACLIP_2, "chinese_clip": _CHINESE_CLIP, "siglip": _SIGLIP, "siglip2": _SIGLIP_2
}  # fmt: skip
_CLASSES = {
    "clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "chinese_clip": "ChineseCLIPModel", "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
}  # fmt: skip
_TABLES = {"chinese_clip": list_chinese_clip_entries, "siglip": list_siglip_entries, "siglip2": list_siglip_entries}
_TYPES = "text_model.embeddings.token_type_embeddings.weight"  # of BERT; that of all tokens is part of our positions
_SIGLIPS = ("siglip", "siglip2")


def save_hf(clip, directory: str | Path, *, licence: str | None = None) -> None:
    """Saves `clip` (a `clip_jax.Clip`) as a Hugging Face directory.

    Its class is SiglipModel with the sigmoid loss, Siglip2Model if images may keep their aspect ratio, too; MetaClip2Model
    with the softmax loss and another tokenizer than CLIP's, or ChineseCLIPModel if the text tower is a BERT; else CLIPModel.
    Also writes preprocessor_config.json and the tokenizer: vocab.json and merges.txt for CLIPTokenizer, or tokenizer.json
    for AutoTokenizer. transformers always rounds an odd crop margin down, unlike some modes of `clip.preprocess`, and does
    not repair texts.
    A card, README.md, tells how to load the model and, if its weights are a run's, of their training and evaluation
    (`train_jax.model_card`).

    Args:
      licence: licence of the weights by the hub's name, such as "apache-2.0", for the card; None: not stated.

    Raises ValueError, which names the part, if transformers does not support the model (a ResNet, a convolutional stem,
    mean pooling, …), and FileExistsError if the directory is not empty.
    """
    module, directory = clip.module, Path(directory)
    kind = "metaclip_2" if isinstance(clip.tokenizer, SentencePiece) else "clip"
    if module.options.text.branch_norms == "post":
        kind = "chinese_clip"
    if module.options.loss == "sigmoid":
        kind = "siglip2" if module.options.image.native else "siglip"
    _check_expressible(module.options, _REQUIRED[kind], kind)
    if clip.preprocess.is_native != (kind == "siglip2"):
        mode = clip.preprocess.mode
        raise ValueError(f"transformers' {kind} model has no images of the mode {mode!r}: save_hf cannot write it")
    if clip.preprocess.interpolation not in RESAMPLE.values():
        raise ValueError(
            f"transformers has no interpolation {clip.preprocess.interpolation!r}: save_hf cannot write this preprocessing. "
            "Clip.assemble the model with another; Google's own conversions of SigLIP say bicubic, of SigLIP 2 bilinear"
        )
    params = flatten(single_file.exact_variables(clip.variables["params"], clip.name, clip.dtype))
    text = model_card.make(
        card.CLIP, clip.name, code=(card.TRANSFORMERS, card.CLIP.code), library="transformers", licence=licence
    )
    if directory.is_dir() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds files already; name a new directory")
    table = _TABLES.get(kind, list_clip_entries)(module.options.identity())
    weights = {name: np.array(x, order="C") for name, x in to_peer(params, table).items()}
    if kind in _SIGLIPS:
        weights |= {name: weights[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    if kind == "chinese_clip":
        weights[_TYPES] = np.zeros((2, module.options.text.width), np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", _make_config(module.options, kind, clip.tokenizer))
    write_json(directory / "preprocessor_config.json", _make_preprocessor_config(clip.preprocess, kind))
    save_tokenizer(clip.tokenizer, directory)
    model_card.write(directory, text)
    # Written last, so that a directory with weights is complete.
    safetensors.numpy.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _check_expressible(options: CLIPOptions, required: Mapping, kind: str) -> None:
    if options.image.tower != "vit":
        raise ValueError(f"transformers has no CLIP with a {options.image.tower}; save_hf cannot write this model")
    for name, tower in (("image", options.image), ("text", options.text)):
        for option, value in required[name].items():
            if getattr(tower, option) != value:
                raise ValueError(
                    f"transformers' {kind} model has {name}.{option} = {value!r}, and this one {getattr(tower, option)!r}: "
                    "save_hf cannot write it"
                )
    if kind in _SIGLIPS and options.embed_dim != options.image.width:
        raise ValueError(
            f"transformers' {kind} model has an embedding as wide as its image tower; save_hf cannot write it"
        )


def _make_tower_config(tower: ImageOptions | TextOptions, options: CLIPOptions) -> dict:
    return {
        "hidden_size": tower.width,
        "intermediate_size": round(tower.mlp_ratio * tower.width),
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": _THEIR_ACTIVATIONS[getattr(tower, "activation", "") or options.activation],
        "layer_norm_eps": getattr(tower, "eps", 0) or options.eps,
    }


def _make_config(options: CLIPOptions, kind: str, tokenizer: AnyTokenizer) -> dict:
    image, embed_dim = options.image, options.embed_dim
    sizes = {"num_patches": (image.size // image.patch) ** 2} if image.native else {"image_size": image.size}
    vision_config = _make_tower_config(image, options) | sizes | {"patch_size": image.patch}
    if kind not in _SIGLIPS:
        vision_config["projection_dim"] = embed_dim
    config = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "text_config": _make_text_config(options, kind, tokenizer),
        "vision_config": vision_config | {"model_type": f"{kind}_vision_model"},
    }
    return config if kind in _SIGLIPS else config | {"projection_dim": embed_dim}


def _make_text_config(options: CLIPOptions, kind: str, tokenizer: AnyTokenizer) -> dict:
    text = options.text
    config = _make_tower_config(text, options) | {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "eos_token_id": LEGACY_EOS if text.pool == "argmax" else tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    if kind in _SIGLIPS:
        return config | {"projection_size": options.embed_dim}
    if kind == "chinese_clip":
        return config | {"type_vocab_size": 2}
    begin = {"bos_token_id": tokenizer.bos_id} if kind == "clip" else {}
    return config | begin | {"projection_dim": options.embed_dim}


def save_text_tower(
    options: CLIPOptions, params: Mapping[str, np.ndarray], tokenizer: AnyTokenizer, directory: Path
) -> None:
    """Saves a text tower as a directory of transformers' CLIPTextModelWithProjection, without its tokenizer.

    Args:
      params: float32 parameters by unrolled names, as `clip_jax.pretrained.text_tower.TextCheckpoint.read` returns them.

    Raises ValueError if transformers does not support the tower.
    """
    for option, value in _CLIP["text"].items():
        if getattr(options.text, option) != value:
            raise ValueError(f"text.{option} = {getattr(options.text, option)!r}: transformers' CLIP has {value!r} there")
    table = list_clip_text_entries({"text": options.text.identity()})
    weights = to_peer({f"text/{name}": x for name, x in params.items()}, table)
    directory.mkdir(parents=True)
    config = {"architectures": ["CLIPTextModelWithProjection"]} | _make_text_config(options, "clip", tokenizer)
    write_json(directory / "config.json", config)
    weights = {name: np.array(x, order="C") for name, x in weights.items()}
    safetensors.numpy.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _make_preprocessor_config(preprocess: Preprocess, kind: str) -> dict:
    sides = {"height": preprocess.size, "width": preprocess.size}
    resample = next(code for code, name in RESAMPLE.items() if name == preprocess.interpolation)
    config = {
        "image_processor_type": {"squash": "Siglip", NATIVE: "Siglip2"}.get(preprocess.mode, "CLIP") + "ImageProcessor",
        "do_resize": True,
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "processor_class": "CLIPProcessor" if kind == "metaclip_2" else _CLASSES[kind].replace("Model", "Processor"),
    }
    if preprocess.is_native:
        return config | {"patch_size": preprocess.patch, "max_num_patches": preprocess.max_patches}
    if preprocess.mode == "squash":
        return config | {"size": sides}
    return config | {
        "size": {"shortest_edge": preprocess.size},
        "do_center_crop": True,
        "crop_size": sides,
        "do_convert_rgb": True,
    }


def save_tokenizer(tokenizer: AnyTokenizer, directory: Path) -> None:
    """Writes the files of a tokenizer for transformers."""
    if isinstance(tokenizer, SentencePiece):
        (directory / "tokenizer.json").write_text(tokenizer.pieces.to_str(), "utf-8")
        pad = tokenizer.pieces.padding["pad_token"]
        end = tokenizer.pieces.id_to_token(tokenizer.eos_id)
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": tokenizer.context_length,
                "pad_token": pad,
                "eos_token": end,
            },
        )
        return
    content = json.loads(tokenizer.to_json())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (directory / "vocab.json").write_text(json.dumps(content["vocab"], ensure_ascii=False), "utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    special_tokens = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, **special_tokens},
    )
    write_json(directory / "special_tokens_map.json", special_tokens)


def write_json(file: Path, content: Mapping) -> None:
    """Writes a JSON file."""
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
