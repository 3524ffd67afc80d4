"""Saving of models as directories of open_clip, which open_clip opens with the same outputs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from clip_jax import card
from clip_jax.options import CLIPOptions, ImageOptions
from clip_jax.pretrained import openai, timm
from clip_jax.pretrained.open_clip import CONFIG, WEIGHTS
from clip_jax.pretrained.save import save_tokenizer, write_json
from train_jax import model_card
from train_jax.data.images import Preprocess
from train_jax.data.text import AnyTokenizer, Tokenizer
from train_jax.weights import single_file
from train_jax.weights.layout import STATS, flatten, to_peer

# Values of options that open_clip's own towers have. Others may be a trunk of timm; transformers' towers and CoCa's pooling
# cannot be saved.
_VIT = {
    "stem": ("patch",), "stem_bias": (False,), "learned_positions": (True,), "pool": ("cls", "mean"), "rope": ("none",),
    "gated": (False,), "branch_norms": ("none",), "key_bias": (True,), "has_class_token": (True,), "proj": (True,),
    "proj_bias": (False,), "proj_hidden": (0,), "drop_margin": (False,), "native": (False,), "registers": (0,),
}  # fmt: skip
_TEXT = {"pool": ("argmax", "eos", "last"), "branch_norms": ("none",), "pad_id": (-1,), "proj_hidden": (0,)}
_TOWERS = {"vit": _VIT, "resnet": {}}
_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
_MODES = {"crop": "shortest", "crop_floor": "shortest", "squash": "squash"}
_INTERPOLATIONS = ("bilinear", "bicubic")


def save_open_clip(clip, directory: str | Path, *, licence: str | None = None) -> None:
    """Saves `clip` (a `clip_jax.Clip`) as a directory that open_clip opens as the model `local-dir:DIRECTORY`.

    Its files are `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer's, which open_clip opens with
    transformers. open_clip always rounds half a crop margin to the nearest pixel, unlike the mode "crop_floor", and always
    repairs texts.
    A card, README.md, tells how to load the model and, if its weights are a run's, of their training and evaluation
    (`train_jax.model_card`).

    Args:
      licence: licence of the weights by the hub's name, such as "apache-2.0", for the card; None: not stated.

    Image towers that open_clip takes from timm (SigLIP's, EVA-02's, ConvNeXts, …) are written with the name of the trunk. If
    no name has their sizes, these are arguments of the trunk, which open_clip reads from version 4 on.

    Raises ValueError, which names the part, if open_clip has no such model (a text tower of transformers, CoCa, …), and
    FileExistsError if the directory is not empty.
    """
    options, directory = clip.module.options, Path(directory)
    trunk = None if _is_own(options) else timm.find_config(options)
    _check_expressible(options, clip.preprocess, clip.tokenizer, trunk is not None)
    variables = single_file.exact_variables(clip.variables, clip.name, clip.dtype)
    text = model_card.make(card.CLIP, clip.name, code=(card.OPEN_CLIP, card.CLIP.code), library="open_clip", licence=licence)
    if directory.is_dir() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds files already; name a new directory")
    stats = {STATS + name: x for name, x in flatten(variables.get("batch_stats", {})).items()}
    table = openai.list_entries(options.identity(), trunk and timm.list_entries(options.image.identity()))
    params = flatten(variables["params"]) | stats
    params = timm.fold_class_position(params) if options.image.stem == "hmlp" else params
    weights = {name: np.array(x, order="C") for name, x in to_peer(params, table).items()}
    norms = [name.removesuffix("running_var") for name in weights if name.endswith("running_var")]
    weights |= {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}  # PyTorch expects it
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": _make_model_config(options, clip.tokenizer, trunk),
        "preprocess_cfg": {
            "mean": list(clip.preprocess.mean),
            "std": list(clip.preprocess.std),
            "interpolation": clip.preprocess.interpolation,
            "resize_mode": _MODES[clip.preprocess.mode],
        },
    }
    write_json(directory / CONFIG, config)
    save_tokenizer(clip.tokenizer, directory)
    model_card.write(directory, text)
    # Written last, so that a directory with weights is complete.
    safetensors.numpy.save_file(weights, directory / WEIGHTS[0], metadata={"format": "pt"})


def _list_image_values(image: ImageOptions) -> list[tuple]:
    """Lists names, values and allowed values of the options of open_clip's own image towers."""
    towers = _TOWERS.get(image.tower, {})
    return [
        ("image.tower", image.tower, tuple(_TOWERS)),
        *((f"image.{name}", getattr(image, name), allowed) for name, allowed in towers.items()),
    ]


def _is_own(options: CLIPOptions) -> bool:
    return all(value in allowed for _, value, allowed in _list_image_values(options.image))


def _check_expressible(options: CLIPOptions, preprocess: Preprocess, tokenizer: AnyTokenizer, is_trunk: bool) -> None:
    text, activations = options.text, _list_activations(options, is_trunk)
    values = [
        *([] if is_trunk else _list_image_values(options.image)),
        *((f"text.{name}", getattr(text, name), allowed) for name, allowed in _TEXT.items()),
        *(("activation", activation, _ACTIVATIONS) for activation in activations.values()),
        ("preprocess.mode", preprocess.mode, tuple(_MODES)),
        ("preprocess.interpolation", preprocess.interpolation, _INTERPOLATIONS),
    ]
    if isinstance(tokenizer, Tokenizer):  # transformers pads with its end token, ours with 0
        values.append(("text.causal", text.causal, (True,)))
    for name, value, allowed in values:
        if value not in allowed:
            names = " or ".join(map(repr, allowed))
            raise ValueError(f"open_clip's own models have {name} = {names}, and this one {value!r}: it cannot be written")
    if "quick_gelu" in activations.values() and len(set(activations.values())) > 1:
        raise ValueError(f"open_clip has quick_gelu in both towers or in none, and this model {activations}")


def _list_activations(options: CLIPOptions, is_trunk: bool) -> dict[str, str]:
    """Lists the activations of the towers of open_clip that have MLPs."""
    image = {"image": options.activation} if options.image.tower == "vit" and not is_trunk else {}
    return image | {"text": options.text.activation or options.activation}


def _make_model_config(options: CLIPOptions, tokenizer: AnyTokenizer, trunk: dict | None) -> dict:
    is_quick = "quick_gelu" in _list_activations(options, trunk is not None).values()
    config = {"embed_dim": options.embed_dim} | ({"quick_gelu": True} if is_quick else {})
    if options.loss == "sigmoid":
        config["init_logit_bias"] = options.init_logit_bias
    text = _make_text_config(options)
    if text["pool_type"] == "eos":
        text["eos_id"] = tokenizer.eos_id
    # Any name: open_clip opens the tokenizer in the directory.
    return config | {"vision_cfg": trunk or _make_image_config(options), "text_cfg": text | {"hf_tokenizer_name": "."}}


def _make_image_config(options: CLIPOptions) -> dict:
    image = options.image
    config = {"image_size": image.size, "width": image.width}
    if image.tower == "resnet":
        return config | {"layers": list(image.layers), "head_width": 32 * image.width // image.heads}
    return config | {
        "layers": image.depth,
        "head_width": image.width // image.heads,
        "patch_size": image.patch,
        "mlp_ratio": image.mlp_ratio,
        **({} if image.pool == "cls" else {"pool_type": "avg"}),
        **({} if image.pre_norm else {"no_ln_pre": True}),
        **({"final_ln_after_pool": True} if image.norm_after_pool else {}),
        **({"qk_norm": True} if image.qk_norm else {}),
        **_make_layer_config(options.activation, options.eps),
    }


def _make_text_config(options: CLIPOptions) -> dict:
    text = options.text
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        "mlp_ratio": text.mlp_ratio,
        "pool_type": text.pool,
        **({} if text.causal else {"no_causal_mask": True}),
        **({"qk_norm": True} if text.qk_norm else {}),
        **({"proj_bias": True} if text.proj_bias else {} if text.proj else {"proj_type": "none"}),
        **_make_layer_config(text.activation or options.activation, text.eps or options.eps),
    }


def _make_layer_config(activation: str, eps: float) -> Mapping:
    config = {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}
    return config | ({} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}})
