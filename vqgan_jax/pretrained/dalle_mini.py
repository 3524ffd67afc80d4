"""Checkpoints of dalle-mini's VQGAN in Flax: directories with `config.json` and `flax_model.msgpack`.

The model uses pixels in [0, 1].
"""

from collections.abc import Mapping
from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.msgpack import read_arrays
from train_jax.weights.transformers_config import find_unknown
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors, read_config

WEIGHTS = "flax_model.msgpack"
_FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True, "give_pre_end": False}
_OPTIONS = {
    "ch", "ch_mult", "num_res_blocks", "num_resolutions", "resolution", "attn_resolutions", "z_channels", "n_embed",
    "embed_dim", "dropout",
}  # fmt: skip


def open_directory(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a directory; returns None if the directory lacks the two files."""
    if not ((path / "config.json").is_file() and (path / WEIGHTS).is_file()):
        return None
    with convert_errors(path):
        model = convert_config(read_config(path / "config.json"), path)

    def read() -> tuple[dict, str]:
        tensors = read_arrays(path / WEIGHTS)
        return {"params": unflatten(from_peer(tensors, build_entries(model), str(path)), False)}, str(path)

    return Checkpoint(name=str(path), format="dalle-mini", model=model, read=read)


def convert_config(config: Mapping, path: Path) -> dict:
    """Converts a configuration of dalle-mini to `VQGANOptions`, as a dict."""
    if "ch_mult" not in config:
        raise LoadError(
            f"{path}: config.json describes no VQGAN of dalle-mini (no ch_mult; model_type "
            f"{config.get('model_type', '?')!r}). dalle_jax.load opens dalle-mini's transformer"
        )
    if unknown := find_unknown(config, _OPTIONS | _FIXED.keys()):
        raise LoadError(f"{path}: config.json has {', '.join(unknown)}, which dalle-mini's VQGAN has not")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise LoadError(f"{path}: {key} = {config[key]}; only {value} is supported")
    return {
        "channels": config["ch"],
        "multipliers": tuple(config["ch_mult"]),
        "blocks": config["num_res_blocks"],
        "resolution": config["resolution"],
        "attention": tuple(config["attn_resolutions"]),
        "z_channels": config["z_channels"],
        "pixels": "unit",
        "quantizer": {"type": "nearest", "size": config["n_embed"], "dim": config["embed_dim"]},
    }


def build_entries(model: Mapping) -> list[Entry]:
    """Returns the weight table: taming's names in Flax's notation, without changes of layout."""
    return [Entry(entry.ours, (_flax_name(entry),)) for entry in taming.build_entries(model)]


def _flax_name(entry: Entry) -> str:
    (theirs,) = entry.theirs
    module, _ = theirs.rsplit(".", 1)
    leaf = entry.ours.rsplit("/", 1)[1]
    if theirs == "quantize.embedding.weight":
        return "quantize.embedding.embedding"
    parts, renamed = module.split("."), []
    for part in parts:
        # down.0.block.1 -> down_0.block_1
        if part.isdigit():
            renamed[-1] += f"_{part}"
        else:
            renamed.append(part)
    return ".".join([*renamed, leaf])
