"""Checkpoints of taming-transformers: a `.ckpt` with weights and a `.yaml` with the configuration.

Also of code derived from it, with the same kinds of files: latent diffusion, Kandinsky's MOVQ, Open-MAGVIT2 and IBQ.
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.tensors import Tensor, open_tensors
from vqgan_jax.model import LAYOUTS, Layout
from vqgan_jax.pretrained import magvit2
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors, read_config

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
FIRST_STAGE = "first_stage_model."  # prefix of the VQGAN's weights in the checkpoint of a second stage
_DISCRIMINATOR = "loss.discriminator.main."
# Ignored tensors of a checkpoint: networks of losses, counters, running averages.
IGNORED = (r"^loss\.", r"^colorize$", r"^quantize\.(embedding\.)?(cluster_size|embed_avg|used)$", r"^model_ema\.")
_WRAPPERS = ("_orig_mod", "module")  # prefixes of compiled and of data-parallel models
# Classes of first stages -> types of their quantisers.
_QUANTIZERS = {"GumbelVQ": "gumbel", "IBQ": "ibq"}
_QUANTIZERS |= dict.fromkeys(
    ("VQModel", "VQModelInterface", "VQNoDiscModel", "VQSegmentationModel", "EMAVQ", "MOVQ"), "nearest"
)
# Supported values of some options of taming's and latent diffusion's configurations.
_FIXED = {
    "double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True, "give_pre_end": False, "tanh_out": False,
    "attn_type": "vanilla", "use_linear_attn": False,
}  # fmt: skip

_DDCONFIG = _FIXED.keys() | {
    "ch", "ch_mult", "num_res_blocks", "resolution", "attn_resolutions", "z_channels", "dropout", "pdrop",
}  # fmt: skip


def find_file(path: Path) -> Path | None:
    """Returns the only checkpoint in a directory or its `checkpoints` folder, or None. Raises LoadError for several."""
    files = sorted([*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
    if len(files) > 1:
        raise LoadError(f"{path} holds several checkpoints: name one of {', '.join(str(f) for f in files[:4])}")
    return files[0] if files else None


def open_directory(path: Path) -> Checkpoint | None:
    """Opens the only checkpoint in a directory or its `checkpoints` folder; returns None without a checkpoint."""
    file = find_file(path)
    return open_file(file) if file else None


def open_file(path: Path) -> Checkpoint | None:
    """Opens a `.ckpt` file with its `.yaml` in the same folder or in `../configs`; returns None for other suffixes.

    From the checkpoint of a second stage, which contains both stages, the first stage is opened.
    """
    if path.suffix not in SUFFIXES:
        return None
    tensors = open_state_dict(path)
    tensors = extract_first_stage(tensors) or tensors
    if "encoder.conv_in.weight" not in tensors:
        raise LoadError(f"{path} holds no encoder.conv_in.weight: no VQGAN among its {len(tensors)} tensors")
    config = read_model_config(path)
    with convert_errors(path):
        config = config.get("params", {}).get("first_stage_config", config)
    return build_checkpoint(config, tensors, path)


def open_state_dict(path: Path) -> dict[str, Tensor]:
    """Opens the tensors of a Lightning checkpoint or a state dict, by parameter names without wrapper prefixes."""
    tensors = open_tensors(path)
    prefix = "state_dict."
    state = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return {".".join(part for part in n.split(".") if part not in _WRAPPERS): x for n, x in (state or tensors).items()}


def extract_first_stage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of the VQGAN in a second stage's checkpoint."""
    return {name.removeprefix(FIRST_STAGE): x for name, x in tensors.items() if name.startswith(FIRST_STAGE)}


def build_checkpoint(config: Mapping, tensors: Mapping, path: Path) -> Checkpoint:
    """Builds the checkpoint of a first stage from its configuration and tensors."""
    with convert_errors(path):
        model = convert_config(config, path)
        if _find_variant(str(config["target"]), path).is_averaged and config["params"].get("use_ema"):
            tensors = average_weights(tensors)

    def read() -> tuple[dict, str]:
        return {"params": unflatten(from_peer(tensors, build_entries(model), str(path), IGNORED), False)}, str(path)

    discriminator = find_discriminator(tensors, _DISCRIMINATOR, path)
    return Checkpoint(
        name=str(path), format="taming-transformers", model=model, read=read, discriminator=discriminator
    )


def average_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the moving averages of tensors that have them: under `model_ema.` by their names without dots."""
    return {name: tensors.get(f"model_ema.{name.replace('.', '')}", x) for name, x in tensors.items()}


def find_discriminator(tensors: Mapping, prefix: str, path: Path) -> tuple[Mapping, Callable[[], dict]] | None:
    """Finds the discriminator of names with `prefix`; returns its options and a function that reads its collections.

    Returns None if the checkpoint contains no discriminator, or a discriminator with activation norm (not supported).
    """
    first = tensors.get(f"{prefix}0.weight")
    layers = sum(f"{prefix}{3 * n}.running_mean" in tensors for n in range(1, 10))
    if first is None or len(first.shape) != 4 or not layers:
        return None
    table = [
        Entry("params/conv0/kernel", (f"{prefix}0.weight",), "conv"),
        Entry("params/conv0/bias", (f"{prefix}0.bias",)),
    ]
    for n in range(1, layers + 1):
        table.append(Entry(f"params/conv{n}/kernel", (f"{prefix}{3 * n - 1}.weight",), "conv"))
        for ours, theirs in (
            ("params/norm{}/scale", "weight"),
            ("params/norm{}/bias", "bias"),
            ("batch_stats/norm{}/mean", "running_mean"),
            ("batch_stats/norm{}/var", "running_var"),
        ):
            table.append(Entry(ours.format(n), (f"{prefix}{3 * n}.{theirs}",)))
    last = f"{prefix}{3 * layers + 2}"
    table += [
        Entry(f"params/conv{layers + 1}/kernel", (f"{last}.weight",), "conv"),
        Entry(f"params/conv{layers + 1}/bias", (f"{last}.bias",)),
    ]
    own = {name: x for name, x in tensors.items() if name.startswith(prefix)}
    options = {"channels": first.shape[0], "layers": layers, "norm": "batch"}
    return options, lambda: unflatten_dict(from_peer(own, table, str(path), (r"num_batches_tracked$",)), sep="/")


def _find_config_file(path: Path) -> Path:
    candidates = [
        path.with_suffix(".yaml"),
        path.with_suffix(".yml"),
        path.parent / "config.yaml",
        path.parent / "model.yaml",
    ]
    if file := next((file for file in candidates if file.is_file()), None):
        return file
    folders = (path.parent, path.parent.parent / "configs")
    files = [file for folder in folders for kind in ("*.yaml", "*.yml") for file in sorted(folder.glob(kind))]
    # A run writes two files at each start: Lightning's options, without a model, and the options of the project.
    if projects := [file for file in files if "project" in file.name]:
        return projects[-1]
    if len(files) != 1:
        listing = f"several ({', '.join(file.name for file in files[:4])})" if files else "no .yaml beside it"
        raise LoadError(f"{path} has {listing}: put the model's configuration there as {path.stem}.yaml")
    return files[0]


def read_model_config(path: Path) -> dict:
    """Reads the `model` section of the configuration that belongs to a checkpoint."""
    file = _find_config_file(path)
    config = read_config(file).get("model")
    if isinstance(config, dict) and "class_path" in config:  # the names of Lightning's command line
        config = {"target": config["class_path"], "params": config.get("init_args", {})}
    if not isinstance(config, dict) or not isinstance(config.get("params", {}), dict):
        raise LoadError(f"{file} describes no model of taming-transformers: it has no model with params")
    return config


def convert_config(config: Mapping, path: Path) -> dict:
    """Converts the `model` section of a taming configuration to `VQGANOptions`, as a dict."""
    params, target = config.get("params", {}), str(config.get("target", "?"))
    if "ddconfig" not in params:
        raise LoadError(f"{path}: its configuration is of {target}, which has no ddconfig: no first stage")
    dd, variant = params["ddconfig"], _find_variant(target, path)
    if unknown := dd.keys() - _DDCONFIG:
        known = ", ".join(sorted(_DDCONFIG))
        raise LoadError(f"{path}: ddconfig has {', '.join(sorted(unknown))}; what is understood: {known}")
    for key, value in _FIXED.items():
        if dd.get(key, value) != value and (key, dd[key]) != ("attn_type", "none"):
            raise LoadError(f"{path}: ddconfig.{key} = {reprlib.repr(dd[key])}; only {value} is supported")
    if params.get("remap") is not None:
        raise LoadError(f"{path}: remap = {reprlib.repr(params['remap'])}; remapped codes are not supported")
    if params.get("l2_normalize", False) is not False:
        raise LoadError(f"{path}: l2_normalize = {reprlib.repr(params['l2_normalize'])}; only False is supported")
    quantizer = {"type": variant.quantizer, "size": params["n_embed"], "dim": params["embed_dim"]}
    if variant.quantizer == "lfq":
        if params["n_embed"] != 2 ** params["embed_dim"]:
            raise LoadError(f"{path}: n_embed = {params['n_embed']}; of LFQ it must be 2 ** embed_dim")
        quantizer = {"type": "lfq", "bits": params["embed_dim"]}
    has_attention = variant.layout != "magvit2" and dd.get("attn_type") != "none"
    return {
        "layout": variant.layout,
        "channels": dd["ch"],
        "multipliers": tuple(dd["ch_mult"]),
        "blocks": dd["num_res_blocks"],
        "resolution": dd["resolution"],
        "attention": tuple(dd["attn_resolutions"]) if has_attention else (),
        "middle_attention": has_attention,
        "z_channels": dd["z_channels"],
        "quantizer": quantizer,
    }


class _Variant(NamedTuple):
    """What a class of taming's or of derived code means.

    Attributes:
      layout: see `vqgan_jax.model.LAYOUTS`.
      quantizer: type of the quantiser.
      is_averaged: whether inference uses the moving averages of the weights, if the configuration has them.
    """

    layout: str
    quantizer: str
    is_averaged: bool


def _find_variant(target: str, path: Path) -> _Variant:
    """Returns the variant of a class, such as "taming.models.vqgan.VQModel". Raises LoadError for unknown classes."""
    *_, module, name = ("", *target.split("."))
    if (module.startswith("lfqgan"), name) == (True, "VQModel"):
        return _Variant("magvit2", "lfq", True)
    quantizer = _QUANTIZERS.get(name)
    if quantizer is None or module.startswith("video"):
        raise LoadError(
            f"{path}: its configuration is of the unknown class {target}; known are {', '.join(_QUANTIZERS)}. If its codes "
            "are the nearest ones, set target to taming.models.vqgan.VQModel"
        )
    return _Variant("movq" if name == "MOVQ" else "taming", quantizer, module.startswith("ibqgan"))


def export_config(model: Mapping) -> dict:
    """Converts `VQGANOptions`, as a dict, to the `model` section of a taming configuration."""
    quantizer = model["quantizer"]
    name = "GumbelVQ" if quantizer["type"] == "gumbel" else "VQModel"
    dd = {
        "double_z": False,
        "z_channels": model["z_channels"],
        "resolution": model["resolution"],
        "in_channels": 3,
        "out_ch": 3,
        "ch": model["channels"],
        "ch_mult": list(model["multipliers"]),
        "num_res_blocks": model["blocks"],
        "attn_resolutions": list(model["attention"]),
        "dropout": 0.0,
    }
    params = {"embed_dim": quantizer["dim"], "n_embed": quantizer["size"], "ddconfig": dd}
    params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
    return {"target": f"taming.models.vqgan.{name}", "params": params}


def build_entries(model: Mapping) -> list[Entry]:
    """Returns the weight table, with the names of the layout's own code if its files have a configuration like taming's."""
    table, layout = [], find_layout(model)

    def conv(ours: str, theirs: str, bias: bool = True, kind: str = "conv") -> None:
        table.append(Entry(f"{ours}/kernel", (f"{theirs}.weight",), kind))
        if bias:
            table.append(Entry(f"{ours}/bias", (f"{theirs}.bias",)))

    def norm(ours: str, theirs: str) -> None:
        if layout.norm == "spatial" and ours.startswith("decoder/"):
            conv(f"{ours}/scale", f"{theirs}.conv_y")
            conv(f"{ours}/shift", f"{theirs}.conv_b")
            ours, theirs = f"{ours}/norm", f"{theirs}.norm_layer"
        table.extend([Entry(f"{ours}/scale", (f"{theirs}.weight",)), Entry(f"{ours}/bias", (f"{theirs}.bias",))])

    def residual(ours: str, theirs: str, has_shortcut: bool) -> None:
        for index in (1, 2):
            norm(f"{ours}/norm{index}", f"{theirs}.norm{index}")
            conv(f"{ours}/conv{index}", f"{theirs}.conv{index}", not layout.is_direct)
        if has_shortcut:
            conv(f"{ours}/shortcut", f"{theirs}.nin_shortcut", not layout.is_direct)

    def attention(ours: str, theirs: str) -> None:
        norm(f"{ours}/norm", f"{theirs}.norm")
        for name in "qkv":
            conv(f"{ours}/{name}", f"{theirs}.{name}")
        conv(f"{ours}/out", f"{theirs}.proj_out")

    for level in levels(model):
        theirs = f"{level.coder}.{level.direction}.{level.index}"
        ours = f"{level.coder}/{level.direction}{level.index}"
        if layout.norm == "adaptive" and level.direction == "up":
            conv(f"{ours}_norm/scale", f"{theirs}.norm.gamma", kind="linear_to_conv1x1")
            conv(f"{ours}_norm/shift", f"{theirs}.norm.beta", kind="linear_to_conv1x1")
        for block in range(level.blocks):
            residual(f"{ours}_block{block}", f"{theirs}.block.{block}", level.changes_channels and not block)
            if level.has_attention:
                attention(f"{ours}_attention{block}", f"{theirs}.attn.{block}")
        if level.resizes:
            conv(f"{ours}/conv", f"{theirs}.{level.direction}sample.conv")
    for coder in ("encoder", "decoder"):
        conv(f"{coder}/conv_in", f"{coder}.conv_in", coder == "decoder" or not layout.is_direct)
        for block in range(1, 1 + (model["blocks"] if layout.is_direct else 2)):
            residual(f"{coder}/mid_block{block}", f"{coder}.mid.block_{block}", False)
        if model.get("middle_attention", True):
            attention(f"{coder}/mid_attention", f"{coder}.mid.attn_1")
        norm(f"{coder}/norm_out", f"{coder}.norm_out")
        conv(f"{coder}/conv_out", f"{coder}.conv_out")
    if not layout.is_direct:
        conv("quant_conv", "quant_conv")
        conv("post_quant_conv", "post_quant_conv")
    table += _quantizer_entries(model)
    return magvit2.rename(table) if model.get("layout") == "magvit2" else table


def find_layout(model: Mapping) -> Layout:
    """Returns the layout of a model."""
    return LAYOUTS[model.get("layout", "taming")]


def _quantizer_entries(model: Mapping) -> list[Entry]:
    kind = model["quantizer"]["type"]
    if kind == "gumbel":
        return [
            Entry("quantizer/codebook", ("quantize.embed.weight",)),
            Entry("quantizer/proj/kernel", ("quantize.proj.weight",), "conv1x1_to_linear"),
            Entry("quantizer/proj/bias", ("quantize.proj.bias",)),
        ]
    return [] if kind == "lfq" else [Entry("quantizer/codebook", ("quantize.embedding.weight",))]


class Level(NamedTuple):
    """A resolution level of the encoder or the decoder.

    Attributes:
      direction: "down" or "up".
      index: 0 for the highest resolution.
      blocks: number of residual blocks.
      changes_channels: whether the first block changes the number of channels.
      resizes: whether the level ends with a downsampling or upsampling layer that has weights.
    """

    coder: str
    direction: str
    index: int
    blocks: int
    changes_channels: bool
    has_attention: bool
    resizes: bool


def levels(model: Mapping) -> list[Level]:
    """Returns the levels of encoder and decoder."""
    multipliers, last = tuple(model["multipliers"]), len(model["multipliers"]) - 1
    layout = find_layout(model)
    has_attention = [model["resolution"] >> level in tuple(model["attention"]) for level in range(last + 1)]
    above = (1, *multipliers)  # factors of the encoder's input channels
    below = (*multipliers[1:], multipliers[-1])  # factors of the decoder's input channels
    down = [
        Level(
            "encoder", "down", i, model["blocks"], above[i] != multipliers[i], has_attention[i],
            i < last and layout.downsample != "average",
        )
        for i in range(last + 1)
    ]  # fmt: skip
    blocks = model["blocks"] + (not layout.is_direct)
    up = [
        Level("decoder", "up", i, blocks, below[i] != multipliers[i], has_attention[i], i > 0) for i in range(last + 1)
    ]
    return down + up


def save(model: Mapping, weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a `.safetensors` state dict with taming's names, and a `.yaml` with the configuration."""
    import safetensors.numpy
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": export_config(model)}, sort_keys=False), "utf-8")
    arrays = {name: np.array(x, np.float32, order="C") for name, x in weights.items()}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt", "model": json.dumps(export_config(model))})
