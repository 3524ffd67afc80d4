"""Directories of diffusers' UnCLIPPipeline, such as kakaobrain/karlo-v1-alpha: reading and writing.

Files: model_index.json; {prior,decoder,text_proj,super_res_first,super_res_last}/{config.json,
diffusion_pytorch_model.safetensors}; text_encoder/, tokenizer/; {prior,decoder,super_res}_scheduler/scheduler_config.json
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from clip_jax.pretrained import text_tower
from clip_jax.pretrained.json_files import read_json
from clip_jax.pretrained.openai import linear_entries, norm_entries
from clip_jax.pretrained.save import save_text_tower, save_tokenizer, write_json
from dalle_jax import card
from dalle_jax.unclip.diffusion import Diffusion, output_channels
from dalle_jax.unclip.options import DecoderOptions, PriorOptions, UNetOptions
from dalle_jax.unclip.pretrained.checkpoint import PARTS, STATISTICS, UnclipCheckpoint
from train_jax import model_card
from train_jax.data.text import Tokenizer
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, to_peer
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained.checkpoint import convert_errors
from vqgan_jax.pretrained.diffusers import WEIGHTS, find_weights

INDEX = "model_index.json"
FOLDERS = {part: part for part in PARTS} | {"context": "text_proj"}
_CLASSES = {
    "prior": ("diffusers", "PriorTransformer"),
    "decoder": ("diffusers", "UNet2DConditionModel"),
    "text_proj": ("unclip", "UnCLIPTextProjModel"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "super_res_first": ("diffusers", "UNet2DModel"),
    "super_res_last": ("diffusers", "UNet2DModel"),
    **{f"{stage}_scheduler": ("diffusers", "UnCLIPScheduler") for stage in ("prior", "decoder", "super_res")},
}
# Related pipelines, and what to open instead.
_OTHERS = {
    "UnCLIPImageVariationPipeline": "it has no prior: open kakaobrain/karlo-v1-alpha, which has the same decoder",
    **dict.fromkeys(
        ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline"),
        "it is a prior alone, and its decoder a latent diffusion model: open kakaobrain/karlo-v1-alpha",
    ),
    **dict.fromkeys(
        ("StableUnCLIPPipeline", "StableUnCLIPImg2ImgPipeline"),
        "its decoder is a latent diffusion model: open kakaobrain/karlo-v1-alpha",
    ),
}
_HAS_ATTENTION = {  # of blocks of diffusers' U-Nets
    "ResnetDownsampleBlock2D": False,
    "SimpleCrossAttnDownBlock2D": True,
    "ResnetUpsampleBlock2D": False,
    "SimpleCrossAttnUpBlock2D": True,
}
# Values of options of diffusers' classes that stand for what is implemented here. A config may lack options, which have
# the default of diffusers: that of `_DEFAULTS`, or else the first value here.
_PRIOR = {
    "additional_embeddings": (4, 3), "time_embed_act_fn": ("silu",), "norm_in_type": (None,),
    "embedding_proj_norm_type": (None,), "encoder_hid_proj_type": ("linear",), "added_emb_type": ("prd",),
}  # fmt: skip
_UNET = {
    "center_input_sample": (False,), "flip_sin_to_cos": (True,), "freq_shift": (0,), "act_fn": ("silu", "swish"),
    "mid_block_scale_factor": (1,), "norm_eps": (1e-5,), "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,), "num_class_embeds": (None,), "resnet_time_scale_shift": ("default", "scale_shift"),
}  # fmt: skip
_DECODER = _UNET | {
    "in_channels": (3,), "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",), "class_embed_type": ("identity",),
    "only_cross_attention": (False,), "mid_block_only_cross_attention": (None, False), "cross_attention_norm": (None,),
    "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "addition_embed_type": (None,),
    "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1.0,), "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,), "time_cond_proj_dim": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "class_embeddings_concat": (False,), "num_attention_heads": (None,), "dual_cross_attention": (False,),
    "attention_type": ("default",),
}  # fmt: skip
_SUPER_RES = _UNET | {
    "in_channels": (6,), "mid_block_type": ("UNetMidBlock2D",), "add_attention": (False,), "class_embed_type": (None,),
}  # fmt: skip
_SCHEDULER = {"clip_sample": (True,), "beta_schedule": ("squaredcos_cap_v2",)}
_DEFAULTS = {
    "PriorTransformer": {
        "num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20, "embedding_dim": 768, "num_embeddings": 77,
        "additional_embeddings": 4,
    },
    "UNet2DConditionModel": {
        "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "cross_attention_dim": 1280,
        "attention_head_dim": 8, "mid_block_type": "UNetMidBlock2DCrossAttn", "class_embed_type": None,
        "resnet_time_scale_shift": "default",
    },
    "UNet2DModel": {
        "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "norm_num_groups": 32, "add_attention": True,
        "resnet_time_scale_shift": "default",
    },
    "UnCLIPTextProjModel": {"clip_extra_context_tokens": 4, "clip_embeddings_dim": 768},
    "UnCLIPScheduler": {
        "num_train_timesteps": 1000, "variance_type": "fixed_small_log", "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
    },
}  # fmt: skip
_PREDICTIONS = {"sample": "x0", "epsilon": "epsilon"}
_VARIANCES = {"fixed_small_log": False, "learned_range": True}


def open_directory(path: Path) -> UnclipCheckpoint | None:
    """Opens a directory of an UnCLIPPipeline. Returns None if it has no model_index.json.

    Raises LoadError for other pipelines, and for parts that differ from karlo's in more than their sizes.
    """
    if not (path / INDEX).is_file():
        return None
    pipeline = read_json(path / INDEX).get("_class_name")
    if pipeline != "UnCLIPPipeline":
        remedy = _OTHERS.get(pipeline, "open the directory of an UnCLIPPipeline, such as kakaobrain/karlo-v1-alpha")
        raise LoadError(f"{path} is a {pipeline}, which is not supported: {remedy}")
    decoder_config, text_proj, first, second = (
        _read_config(path / folder, folder) for folder in ("decoder", "text_proj", "super_res_first", "super_res_last")
    )
    prior, prior_diffusion = _open_prior(path / "prior", path / "prior_scheduler")
    schedulers = [_read_config(path / f"{stage}_scheduler", f"{stage}_scheduler") for stage in ("decoder", "super_res")]
    with convert_errors(path):
        decoder = _convert_decoder(decoder_config, text_proj, path)
        super_res = _convert_super_res(first, path / FOLDERS["super_res_first"])
        _convert_super_res(second | {"sample_size": first["sample_size"]}, path / FOLDERS["super_res_last"])
        for key in ("block_out_channels", "layers_per_block", "norm_num_groups", "resnet_time_scale_shift", "out_channels"):
            _require(second, {key: (first[key],)}, path / FOLDERS["super_res_last"])
        diffusions = [_convert_scheduler(scheduler, path) for scheduler in schedulers]
    for config, diffusion, folder in zip((decoder_config, first), diffusions, ("decoder", "super_res_first"), strict=True):
        if config["out_channels"] != output_channels(diffusion):
            raise LoadError(
                f"{path / folder}: out_channels = {config['out_channels']}, where its scheduler's variance_type needs "
                f"{output_channels(diffusion)}"
            )
    text = text_tower.open_directory(path / FOLDERS["text_encoder"], path / "tokenizer")
    tables = list_entries(prior, decoder, super_res)

    def read(part: str) -> dict[str, np.ndarray]:
        if part == "text_encoder":
            return text.read()
        weights = find_weights(path / FOLDERS[part])
        return from_peer(open_tensors(weights), tables[part], str(weights))

    return UnclipCheckpoint(str(path), text, prior, decoder, super_res, prior_diffusion, *diffusions, read)


def replace_prior(checkpoint: UnclipCheckpoint, path: Path) -> UnclipCheckpoint:
    """Replaces the prior by one for the same CLIP.

    Args:
      path: directory of a PriorTransformer (ECLIPSE's priors), or of a pipeline that has one in prior/, with
        prior_scheduler/ or scheduler/ (karlo's, Kandinsky 2.1's).

    Raises LoadError for other directories, and for embeddings of another size than the decoder's.
    """
    folder = path if not (path / INDEX).is_file() and (path / "config.json").is_file() else path / "prior"
    scheduler = path / "prior_scheduler"
    prior, diffusion = _open_prior(folder, scheduler if scheduler.is_dir() else path / "scheduler")
    weights, entries = find_weights(folder), list(_prior_entries(prior))

    def read(part: str) -> dict[str, np.ndarray]:
        return from_peer(open_tensors(weights), entries, str(weights)) if part == "prior" else checkpoint.read(part)

    name = f"{checkpoint.name} with the prior of {path}"
    return dataclasses.replace(checkpoint, name=name, prior=prior, prior_diffusion=diffusion, read=read)


# ---------------------------------------------------------------------------------------------------------------------
# Options from a config


def _read_config(folder: Path, part: str) -> dict[str, Any]:
    """Reads the config of a part, with its defaults. Raises LoadError for another class."""
    file = folder / ("scheduler_config.json" if part.endswith("_scheduler") else "config.json")
    config, name = read_json(file), _CLASSES[part][1]
    if config.get("_class_name") != name:
        raise LoadError(f"{file}: _class_name is {config.get('_class_name')!r}; karlo's is {name!r}")
    return _DEFAULTS[name] | config


def _require(config: Mapping, allowed: Mapping[str, Sequence], where: Path) -> None:
    """Raises LoadError for options that mean something that is not implemented."""
    for key, values in allowed.items():
        value = config.get(key, values[0])
        if value not in values:
            raise LoadError(
                f"{where}: {key} = {value!r}; only {' or '.join(map(repr, values))} is supported, as in karlo: other models "
                "of the same class (such as Shap-E) are not"
            )


def _open_prior(folder: Path, scheduler: Path) -> tuple[PriorOptions, Diffusion]:
    """Reads the options of a prior, and of its diffusion; a prior of one step has no scheduler."""
    with convert_errors(folder):
        options = _convert_prior(_read_config(folder, "prior"), folder)
        if not options.time_token:
            return options, Diffusion(prediction="x0")
        return options, _convert_scheduler(_read_config(scheduler, "prior_scheduler"), scheduler)


def _convert_prior(config: Mapping, folder: Path) -> PriorOptions:
    width, dim = config["num_attention_heads"] * config["attention_head_dim"], config["embedding_dim"]
    sizes = {"time_embed_dim": (None, width), "embedding_proj_dim": (None, dim), "clip_embed_dim": (None, dim)}
    _require(config, _PRIOR | sizes, folder)
    options = {
        "embed_dim": dim,
        "text_length": config["num_embeddings"],
        "width": width,
        "depth": config["num_layers"],
        "heads": config["num_attention_heads"],
        "time_token": config["additional_embeddings"] == 4,
    }
    return PriorOptions.parse(options, "prior")


def _convert_decoder(config: Mapping, text_proj: Mapping, path: Path) -> DecoderOptions:
    _require(config, _DECODER, path / "decoder")
    sizes = {"time_embed_dim": 4 * config["block_out_channels"][0], "cross_attention_dim": config["cross_attention_dim"]}
    _require(text_proj, {key: (value,) for key, value in sizes.items()}, path / "text_proj")
    options = {
        "attention": _attention_levels(config, path / "decoder"),
        "head_dim": config["attention_head_dim"],
        "embed_dim": text_proj["clip_embeddings_dim"],
        "context_dim": config["cross_attention_dim"],
        "image_tokens": text_proj["clip_extra_context_tokens"],
    }
    return DecoderOptions.parse(_convert_unet(config) | options, "decoder")


def _convert_super_res(config: Mapping, where: Path) -> UNetOptions:
    _require(config, _SUPER_RES, where)
    if levels := _attention_levels(config, where):
        raise LoadError(f"{where}: attention at the levels {levels}; super resolution has none in karlo")
    return UNetOptions.parse(_convert_unet(config), "super_res")


def _convert_unet(config: Mapping) -> dict[str, Any]:
    return {
        "size": config["sample_size"],
        "channels": tuple(config["block_out_channels"]),
        "blocks": config["layers_per_block"],
        "groups": config["norm_num_groups"],
        "scale_shift": config["resnet_time_scale_shift"] == "scale_shift",
    }


def _attention_levels(config: Mapping, where: Path) -> tuple[int, ...]:
    """Returns the levels with attention. Raises LoadError for unknown blocks, or if the way up has it elsewhere."""
    down, up = config["down_block_types"], list(reversed(config["up_block_types"]))
    for name in (*down, *up):
        if name not in _HAS_ATTENTION:
            raise LoadError(f"{where}: block type {name!r}; supported are {', '.join(_HAS_ATTENTION)}")
    levels, up_levels = (tuple(i for i, name in enumerate(names) if _HAS_ATTENTION[name]) for names in (down, up))
    if levels != up_levels or len(down) != len(up) or len(down) != len(config["block_out_channels"]):
        raise LoadError(f"{where}: down_block_types {down} are not mirrored by up_block_types {list(reversed(up))}")
    return levels


def _convert_scheduler(config: Mapping, path: Path) -> Diffusion:
    supported = {"prediction_type": tuple(_PREDICTIONS), "variance_type": tuple(_VARIANCES)}
    _require(config, _SCHEDULER | supported, path)
    options = {
        "timesteps": config["num_train_timesteps"],
        "prediction": _PREDICTIONS[config["prediction_type"]],
        "learned_variance": _VARIANCES[config["variance_type"]],
        "x0_range": config["clip_sample_range"],
    }
    return Diffusion.parse(options, "diffusion")


# ---------------------------------------------------------------------------------------------------------------------
# Parameter names


def list_entries(prior: PriorOptions, decoder: DecoderOptions, super_res: UNetOptions) -> dict[str, list[Entry]]:
    """Lists the parameters of all parts, except the text encoder, with their names in diffusers."""
    upsampler = list(_unet_entries(super_res))
    return {
        "prior": list(_prior_entries(prior)),
        "context": list(_context_entries(decoder)),
        "decoder": list(_unet_entries(decoder)),
        "super_res_first": upsampler,
        "super_res_last": upsampler,
    }


def _heads_entries(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """Yields the entries of a dense layer whose outputs are split in two axes, `heads` and the rest."""
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), "split_heads", heads)
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",), "heads_bias", heads)


def _time_entries() -> Iterator[Entry]:
    for index in (1, 2):
        yield from linear_entries(f"time_embedding/dense{index}", f"time_embedding.linear_{index}")


def _prior_entries(options: PriorOptions) -> Iterator[Entry]:
    if options.time_token:
        yield from _time_entries()
    yield from linear_entries("text_states", "encoder_hidden_states_proj")
    yield from linear_entries("text_embedding", "embedding_proj")
    yield from linear_entries("image_embedding", "proj_in")
    yield Entry("final_token", ("prd_embedding",), "row")
    yield Entry("positions", ("positional_embedding",), "rows")
    for index in range(options.depth):
        ours, theirs = f"transformer/block_{index}", f"transformer_blocks.{index}"
        qkv = [f"{theirs}.attn1.to_{part}" for part in "qkv"]
        yield from norm_entries(f"{ours}/norm1", f"{theirs}.norm1")
        yield Entry(f"{ours}/attention/qkv/kernel", tuple(f"{name}.weight" for name in qkv), "qkv", options.heads)
        yield Entry(f"{ours}/attention/qkv/bias", tuple(f"{name}.bias" for name in qkv), "qkv_bias", options.heads)
        yield from linear_entries(f"{ours}/attention/out", f"{theirs}.attn1.to_out.0", "merge_heads", options.heads)
        yield from norm_entries(f"{ours}/norm2", f"{theirs}.norm3")  # diffusers' norm2 is of cross-attention
        yield from linear_entries(f"{ours}/mlp_in", f"{theirs}.ff.net.0.proj")
        yield from linear_entries(f"{ours}/mlp_out", f"{theirs}.ff.net.2")
    yield from norm_entries("norm", "norm_out")
    yield from linear_entries("head", "proj_to_clip_embeddings")
    for name in ("mean", "std"):
        yield Entry(f"{STATISTICS}{name}", (f"clip_{name}",), "row")


def _context_entries(options: DecoderOptions) -> Iterator[Entry]:
    yield from linear_entries("text_embedding", "embedding_proj")
    yield from linear_entries("image_embedding", "clip_image_embeddings_project_to_time_embeddings")
    # The rows of the weight are channels by tokens.
    yield from _heads_entries("image_tokens", "clip_extra_context_tokens_proj", options.context_dim)
    yield from linear_entries("text_states", "encoder_hidden_states_proj")
    yield from norm_entries("text_norm", "text_encoder_hidden_states_norm")
    yield Entry("null_image", ("learned_classifier_free_guidance_embeddings",))


def _unet_entries(options: UNetOptions) -> Iterator[Entry]:
    def residual(ours: str, theirs: str, inputs: int, features: int) -> Iterator[Entry]:
        yield from norm_entries(f"{ours}/norm1", f"{theirs}.norm1")
        yield from linear_entries(f"{ours}/conv1", f"{theirs}.conv1", "conv")
        yield from linear_entries(f"{ours}/embedding", f"{theirs}.time_emb_proj")
        yield from norm_entries(f"{ours}/norm2", f"{theirs}.norm2")
        yield from linear_entries(f"{ours}/conv2", f"{theirs}.conv2", "conv")
        if inputs != features:
            yield from linear_entries(f"{ours}/shortcut", f"{theirs}.conv_shortcut", "conv")

    def attention(ours: str, theirs: str, features: int) -> Iterator[Entry]:
        heads = features // options.head_dim
        yield from norm_entries(f"{ours}/norm", f"{theirs}.group_norm")
        names = {"q": "to_q", "k": "to_k", "v": "to_v", "context_k": "add_k_proj", "context_v": "add_v_proj"}
        for name, their_name in names.items():
            yield from _heads_entries(f"{ours}/{name}", f"{theirs}.{their_name}", heads)
        yield from linear_entries(f"{ours}/out", f"{theirs}.to_out.0", "merge_heads", heads)

    def pair(ours: str, theirs: str, level: int, index: int, inputs: int) -> Iterator[Entry]:
        features = options.channels[level]
        yield from residual(f"{ours}_block{index}", f"{theirs}.resnets.{index}", inputs, features)
        if level in options.attention:
            yield from attention(f"{ours}_attention{index}", f"{theirs}.attentions.{index}", features)

    yield from _time_entries()
    yield from linear_entries("conv_in", "conv_in", "conv")
    last = len(options.channels) - 1
    width = options.channels[0]
    skips = [width]
    for level, features in enumerate(options.channels):
        theirs = f"down_blocks.{level}"
        for index in range(options.blocks):
            yield from pair(f"down{level}", theirs, level, index, width)
            width = features
            skips.append(width)
        if level != last:
            yield from residual(f"down{level}_resize", f"{theirs}.downsamplers.0", width, width)
            skips.append(width)
    for index in range(2):
        yield from residual(f"middle_block{index}", f"mid_block.resnets.{index}", width, width)
    if options.attention:
        yield from attention("middle_attention", "mid_block.attentions.0", width)
    for level in range(last, -1, -1):
        theirs = f"up_blocks.{last - level}"
        for index in range(options.blocks + 1):
            yield from pair(f"up{level}", theirs, level, index, width + skips.pop())
            width = options.channels[level]
        if level:
            yield from residual(f"up{level}_resize", f"{theirs}.upsamplers.0", width, width)
    yield from norm_entries("norm_out", "conv_norm_out")
    yield from linear_entries("conv_out", "conv_out", "conv")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def save_karlo(checkpoint: UnclipCheckpoint, directory: str | Path, *, licence: str | None = None) -> None:
    """Writes a directory that diffusers' UnCLIPPipeline opens, with the same pictures, part by part.

    A card, README.md, tells how to load them.

    Args:
      licence: licence of the weights by the hub's name, such as "apache-2.0", for the card; None: not stated.

    Raises ValueError if diffusers does not support the model, and FileExistsError if the directory is not empty.
    """
    directory = Path(directory)
    text, decoder, super_res = checkpoint.text, checkpoint.decoder, checkpoint.super_res
    diffusions = {
        "prior": checkpoint.prior_diffusion,
        "decoder": checkpoint.decoder_diffusion,
        "super_res": checkpoint.super_res_diffusion,
    }
    if not isinstance(text.tokenizer, Tokenizer):
        raise ValueError("UnCLIPPipeline has the tokenizer of CLIP: save_karlo cannot write this one")
    schedulers = {f"{stage}_scheduler": _export_scheduler(stage, x) for stage, x in diffusions.items()}
    upsampler = _export_unet(super_res, checkpoint.super_res_diffusion) | {"in_channels": 6, "add_attention": False}
    configs = {
        "prior": _export_prior(checkpoint.prior),
        "decoder": _export_decoder(decoder, checkpoint.decoder_diffusion),
        "text_proj": {
            "clip_embeddings_dim": decoder.embed_dim,
            "clip_extra_context_tokens": decoder.image_tokens,
            "cross_attention_dim": decoder.context_dim,
            "time_embed_dim": 4 * decoder.channels[0],
        },
        "super_res_first": upsampler,
        "super_res_last": upsampler | {"sample_size": None},
    }
    code = (card.DIFFUSERS, card.UNCLIP.code)
    text_of_card = model_card.make(card.UNCLIP, checkpoint.name, code=code, library="diffusers", licence=licence)
    if directory.is_dir() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds files already; name a new directory")
    tables = list_entries(checkpoint.prior, decoder, super_res)
    for part, table in tables.items():
        folder = directory / FOLDERS[part]
        folder.mkdir(parents=True)
        _write_config(folder / "config.json", FOLDERS[part], configs[FOLDERS[part]])
        weights = {name: np.array(x, np.float32, order="C") for name, x in to_peer(checkpoint.read(part), table).items()}
        safetensors.numpy.save_file(weights, folder / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
    for name, config in schedulers.items():
        (directory / name).mkdir()
        _write_config(directory / name / "scheduler_config.json", name, config)
    (directory / "tokenizer").mkdir()
    save_tokenizer(text.tokenizer, directory / "tokenizer")
    save_text_tower(text.options, text.read(), text.tokenizer, directory / FOLDERS["text_encoder"])
    model_card.write(directory, text_of_card)
    # Written last, so that a directory with an index is complete.
    write_json(directory / INDEX, {"_class_name": "UnCLIPPipeline"} | {name: list(x) for name, x in _CLASSES.items()})


def _write_config(file: Path, folder: str, config: Mapping[str, Any]) -> None:
    write_json(file, {"_class_name": _CLASSES[folder][1], **config})


def _export_prior(options: PriorOptions) -> dict[str, Any]:
    if not options.time_token:
        raise ValueError("the prior of UnCLIPPipeline has a timestep, this one has none: save_karlo cannot write it")
    return {
        "num_attention_heads": options.heads,
        "attention_head_dim": options.width // options.heads,
        "num_layers": options.depth,
        "embedding_dim": options.embed_dim,
        "num_embeddings": options.text_length,
        "additional_embeddings": 4,
    }


def _export_unet(options: UNetOptions, diffusion: Diffusion) -> dict[str, Any]:
    if options.patch != 1:
        raise ValueError(
            f"the U-Nets of UnCLIPPipeline have no patches, this one's are of {options.patch}: save_karlo cannot write it"
        )
    kinds = [("SimpleCrossAttn" if i in options.attention else "Resnet") for i in range(len(options.channels))]
    return {
        "sample_size": options.size,
        "in_channels": 3,
        "out_channels": output_channels(diffusion),
        "block_out_channels": list(options.channels),
        "layers_per_block": options.blocks,
        "norm_num_groups": options.groups,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if options.scale_shift else "default",
        "down_block_types": [f"{kind}{'Downsample' * (kind == 'Resnet') or 'Down'}Block2D" for kind in kinds],
        "up_block_types": [f"{kind}{'Upsample' * (kind == 'Resnet') or 'Up'}Block2D" for kind in reversed(kinds)],
    }


def _export_decoder(options: DecoderOptions, diffusion: Diffusion) -> dict[str, Any]:
    return _export_unet(options, diffusion) | {
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "attention_head_dim": options.head_dim,
        "cross_attention_dim": options.context_dim,
        "class_embed_type": "identity",
    }


def _export_scheduler(stage: str, diffusion: Diffusion) -> dict[str, Any]:
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    if diffusion.schedule != "cosine" or diffusion.prediction not in predictions:
        raise ValueError(
            f"UnCLIPScheduler has the cosine schedule and predictions {' and '.join(predictions)}; the {stage} has the "
            f"{diffusion.schedule} schedule and predicts {diffusion.prediction}: save_karlo cannot write it"
        )
    return {
        "num_train_timesteps": diffusion.timesteps,
        "variance_type": "learned_range" if diffusion.learned_variance else "fixed_small_log",
        "prediction_type": predictions[diffusion.prediction],
        "clip_sample": True,
        "clip_sample_range": diffusion.x0_range,
        "beta_schedule": "squaredcos_cap_v2",
    }
