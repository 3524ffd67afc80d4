"""taming-transformers' checkpoints: a `.ckpt` and the `.yaml` that describes it."""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, nested
from train_jax.weights.tensors import Tensor, open_tensors
from vqgan_jax.pretrained.checkpoint import Checkpoint, describing, read_config

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
FIRST_STAGE = "first_stage_model."  # in front of a VQGAN's names in the file of a second stage
# What else a checkpoint carries: losses with their networks, counters, running averages.
_JUDGE = "loss.discriminator.main."
_IGNORED = (r"^loss\.", r"^colorize$", r"^quantize\.(embedding\.)?(cluster_size|embed_avg|used)$", r"^model_ema\.")
_WRAPPERS = ("_orig_mod", "module")  # parts of names: of compiled models, of those trained on several devices
# Of what taming's and latent diffusion's configurations may say, the one value that is built here.
_FIXED = {
    "double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True, "give_pre_end": False, "tanh_out": False,
    "attn_type": "vanilla", "use_linear_attn": False,
}  # fmt: skip


def find_file(path: Path) -> Path | None:
    """The one checkpoint in a folder (or in its `checkpoints`); None if there is none."""
    files = sorted([*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
    if len(files) > 1:
        raise LoadError(f"{path} holds several checkpoints: name one of {', '.join(str(f) for f in files[:4])}")
    return files[0] if files else None


def open_directory(path: Path) -> Checkpoint | None:
    """The one checkpoint in a folder (or in its `checkpoints`); None if there is none."""
    file = find_file(path)
    return open_file(file) if file else None


def open_file(path: Path) -> Checkpoint | None:
    """A `.ckpt` file with its `.yaml` beside it or in `../configs`; None if it is no such file.

    Of a second stage, which holds both, the first stage.
    """
    if path.suffix not in SUFFIXES:
        return None
    tensors = open_state(path)
    tensors = first_stage(tensors) or tensors
    if "encoder.conv_in.weight" not in tensors:
        raise LoadError(f"{path} holds no encoder.conv_in.weight: no VQGAN among its {len(tensors)} tensors")
    config = read_model(path)
    with describing(path):
        config = config.get("params", {}).get("first_stage_config", config)
    return checkpoint(config, tensors, path)


def open_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a model, by the names that the model gives them, out of Lightning's checkpoint or a bare state dict."""
    tensors = open_tensors(path)
    prefix = "state_dict."
    inside = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return {".".join(part for part in n.split(".") if part not in _WRAPPERS): x for n, x in (inside or tensors).items()}


def first_stage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VQGAN's tensors among those of a second stage."""
    return {name.removeprefix(FIRST_STAGE): x for name, x in tensors.items() if name.startswith(FIRST_STAGE)}


def checkpoint(config: Mapping, tensors: Mapping, path: Path) -> Checkpoint:
    """A first stage of this configuration whose tensors have their own names."""
    with describing(path):
        model = options(config, path)

    def read() -> tuple[dict, str]:
        return {"params": nested(from_peer(tensors, entries(model), str(path), _IGNORED), False)}, str(path)

    judge = _discriminator(tensors, path)
    return Checkpoint(name=str(path), kind="taming-transformers", model=model, read=read, discriminator=judge)


def _discriminator(tensors: Mapping, path: Path) -> tuple[Mapping, Callable[[], dict]] | None:
    """The second player that training left in a checkpoint: convolutions, and batch norms after all but the first and last.

    None where there is none, or one with activation norm instead, which is not built here.
    """
    first = tensors.get(f"{_JUDGE}0.weight")
    layers = sum(f"{_JUDGE}{3 * n}.running_mean" in tensors for n in range(1, 10))
    if first is None or len(first.shape) != 4 or not layers:
        return None
    found = [
        Entry("params/conv0/kernel", (f"{_JUDGE}0.weight",), "conv"),
        Entry("params/conv0/bias", (f"{_JUDGE}0.bias",)),
    ]
    for n in range(1, layers + 1):
        found.append(Entry(f"params/conv{n}/kernel", (f"{_JUDGE}{3 * n - 1}.weight",), "conv"))
        for ours, theirs in (
            ("params/norm{}/scale", "weight"),
            ("params/norm{}/bias", "bias"),
            ("batch_stats/norm{}/mean", "running_mean"),
            ("batch_stats/norm{}/var", "running_var"),
        ):
            found.append(Entry(ours.format(n), (f"{_JUDGE}{3 * n}.{theirs}",)))
    last = f"{_JUDGE}{3 * layers + 2}"
    found += [
        Entry(f"params/conv{layers + 1}/kernel", (f"{last}.weight",), "conv"),
        Entry(f"params/conv{layers + 1}/bias", (f"{last}.bias",)),
    ]
    own = {name: x for name, x in tensors.items() if name.startswith(_JUDGE)}
    options = {"channels": first.shape[0], "layers": layers, "norm": "batch"}
    return options, lambda: unflatten_dict(from_peer(own, found, str(path), (r"num_batches_tracked$",)), sep="/")


def _config_file(path: Path) -> Path:
    near = [
        path.with_suffix(".yaml"),
        path.with_suffix(".yml"),
        path.parent / "config.yaml",
        path.parent / "model.yaml",
    ]
    if file := next((file for file in near if file.is_file()), None):
        return file
    folders = (path.parent, path.parent.parent / "configs")
    files = [file for folder in folders for kind in ("*.yaml", "*.yml") for file in sorted(folder.glob(kind))]
    # A run writes Lightning's own options, which name no model, and its project's, again each time it is resumed.
    if projects := [file for file in files if "project" in file.name]:
        return projects[-1]
    if len(files) != 1:
        some = f"several ({', '.join(file.name for file in files[:4])})" if files else "no .yaml beside it"
        raise LoadError(f"{path} has {some}: put the one that says what the model is there as {path.stem}.yaml")
    return files[0]


def read_model(path: Path) -> dict:
    """The `model` part of the configuration that lies beside a checkpoint."""
    file = _config_file(path)
    config = read_config(file).get("model")
    if not isinstance(config, dict) or not isinstance(config.get("params", {}), dict):
        raise LoadError(f"{file} describes no model of taming-transformers: it has no model with params")
    return config


def options(config: Mapping, where: Path) -> dict:
    """Our options out of the `model` part of a taming configuration."""
    params, target = config.get("params", {}), str(config.get("target", "?"))
    if "ddconfig" not in params:
        raise LoadError(f"{where}: its configuration is of {target}, which has no ddconfig: no first stage")
    dd = params["ddconfig"]
    for key, value in _FIXED.items():
        if dd.get(key, value) != value:
            raise LoadError(f"{where}: ddconfig.{key} = {reprlib.repr(dd[key])}; only {value} is built here")
    if params.get("remap") is not None:
        raise LoadError(f"{where}: remap = {reprlib.repr(params['remap'])}; codes with other numbers are not built here")
    gumbel = target.endswith("GumbelVQ")
    quantizer = {"type": "gumbel" if gumbel else "nearest", "size": params["n_embed"], "dim": params["embed_dim"]}
    return {
        "channels": dd["ch"],
        "multipliers": tuple(dd["ch_mult"]),
        "blocks": dd["num_res_blocks"],
        "resolution": dd["resolution"],
        "attention": tuple(dd["attn_resolutions"]),
        "z_channels": dd["z_channels"],
        "quantizer": quantizer,
    }


def config(model: Mapping) -> dict:
    """The `model` part of a taming configuration, for our options."""
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


def entries(model: Mapping) -> list[Entry]:
    """The table of names."""
    found = []

    def conv(ours: str, theirs: str) -> None:
        found.extend(
            [Entry(f"{ours}/kernel", (f"{theirs}.weight",), "conv"), Entry(f"{ours}/bias", (f"{theirs}.bias",))]
        )

    def norm(ours: str, theirs: str) -> None:
        found.extend([Entry(f"{ours}/scale", (f"{theirs}.weight",)), Entry(f"{ours}/bias", (f"{theirs}.bias",))])

    def residual(ours: str, theirs: str, changes: bool) -> None:
        for number in (1, 2):
            norm(f"{ours}/norm{number}", f"{theirs}.norm{number}")
            conv(f"{ours}/conv{number}", f"{theirs}.conv{number}")
        if changes:
            conv(f"{ours}/shortcut", f"{theirs}.nin_shortcut")

    def attention(ours: str, theirs: str) -> None:
        norm(f"{ours}/norm", f"{theirs}.norm")
        for name in "qkv":
            conv(f"{ours}/{name}", f"{theirs}.{name}")
        conv(f"{ours}/out", f"{theirs}.proj_out")

    for level in levels(model):
        p, q = f"{level.coder}.{level.way}.{level.number}", f"{level.coder}/{level.way}{level.number}"
        for number in range(level.blocks):
            residual(f"{q}_block{number}", f"{p}.block.{number}", level.changes and not number)
            if level.attends:
                attention(f"{q}_attention{number}", f"{p}.attn.{number}")
        if level.resizes:
            conv(f"{q}/conv", f"{p}.{level.way}sample.conv")
    for coder in ("encoder", "decoder"):
        conv(f"{coder}/conv_in", f"{coder}.conv_in")
        residual(f"{coder}/mid_block1", f"{coder}.mid.block_1", False)
        if model.get("middle_attention", True):
            attention(f"{coder}/mid_attention", f"{coder}.mid.attn_1")
        residual(f"{coder}/mid_block2", f"{coder}.mid.block_2", False)
        norm(f"{coder}/norm_out", f"{coder}.norm_out")
        conv(f"{coder}/conv_out", f"{coder}.conv_out")
    conv("quant_conv", "quant_conv")
    conv("post_quant_conv", "post_quant_conv")
    return found + _quantizer(model)


def _quantizer(model: Mapping) -> list[Entry]:
    if model["quantizer"]["type"] == "gumbel":
        return [
            Entry("quantizer/codebook", ("quantize.embed.weight",)),
            Entry("quantizer/proj/kernel", ("quantize.proj.weight",), "one_by_one"),
            Entry("quantizer/proj/bias", ("quantize.proj.bias",)),
        ]
    return [Entry("quantizer/codebook", ("quantize.embedding.weight",))]


class Level:
    """A level of a coder: `changes` if its first block changes the number of channels."""

    def __init__(self, coder, way, number, blocks, changes, attends, resizes):
        self.coder, self.way, self.number, self.blocks = coder, way, number, blocks
        self.changes, self.attends, self.resizes = changes, attends, resizes


def levels(model: Mapping) -> list[Level]:
    """All levels of both coders, numbered from the highest resolution."""
    multipliers, last = tuple(model["multipliers"]), len(model["multipliers"]) - 1
    attends = [model["resolution"] >> level in tuple(model["attention"]) for level in range(last + 1)]
    before = (1, *multipliers)  # channels come down from the level above
    after = (*multipliers[1:], multipliers[-1])  # and up from the one below
    down = [
        Level("encoder", "down", i, model["blocks"], before[i] != multipliers[i], attends[i], i < last)
        for i in range(last + 1)
    ]
    up = [
        Level("decoder", "up", i, model["blocks"] + 1, after[i] != multipliers[i], attends[i], i > 0)
        for i in range(last + 1)
    ]
    return down + up


def save(model: Mapping, weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a `.safetensors` with taming's names under `state_dict`'s, and its `.yaml`."""
    import safetensors.numpy
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": config(model)}, sort_keys=False), "utf-8")
    arrays = {name: np.array(x, np.float32, order="C") for name, x in weights.items()}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt", "model": json.dumps(config(model))})
