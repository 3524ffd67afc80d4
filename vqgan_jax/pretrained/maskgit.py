"""Checkpoints of MaskGIT's tokenizer (arXiv 2202.04200): a file of Flax's msgpack without a configuration.

Options are derived from the shapes of the arrays. What shapes do not tell is that of the published models: 32 groups, and
images of 256 pixels in [0, 1]. Layers are numbered in the order of their use.
"""

from collections.abc import Mapping
from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.msgpack import read_arrays
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors

_START = b"\x81\xa6params"  # a map whose only key is params
_LAYERS = {"norm1": "GroupNorm_0", "norm2": "GroupNorm_1", "conv1": "Conv_0", "conv2": "Conv_1", "nin_shortcut": "Conv_2"}
_RESOLUTION = 256


def open_file(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a file; returns None for other files."""
    with path.open("rb") as file:
        if file.read(len(_START)) != _START:
            return None
    arrays = {name.removeprefix("params."): x for name, x in read_arrays(path).items()}
    with convert_errors(path):
        model = infer_options(arrays, path)

    def read() -> tuple[dict, str]:
        return {"params": unflatten(from_peer(arrays, build_entries(model), str(path)), False)}, str(path)

    return Checkpoint(name=str(path), format="MaskGIT", model=model, read=read)


def infer_options(arrays: Mapping, path: Path) -> dict:
    """Derives `VQGANOptions`, as a dict, from the shapes of the arrays."""

    def count(pattern: str) -> int:
        return next(i for i in range(len(arrays) + 1) if pattern.format(i) not in arrays)

    channels = arrays["encoder.Conv_0.kernel"].shape[-1]
    levels, blocks = count("decoder.Conv_{}.kernel") - 1, count("encoder.ResBlock_{}.Conv_0.kernel")
    if levels < 1 or blocks % (levels + 1):
        raise LoadError(f"{path}: {blocks} residual blocks cannot be divided over {levels} levels and the bottleneck")
    blocks //= levels + 1
    widths = [arrays[f"encoder.ResBlock_{level * blocks}.Conv_0.kernel"].shape[-1] for level in range(levels)]
    if any(width % channels for width in widths):
        raise LoadError(f"{path}: the widths of the levels, {widths}, must be multiples of the first layer's {channels}")
    size, dim = arrays["quantizer.codebook"].shape
    return {
        "layout": "maskgit",
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": blocks,
        "resolution": _RESOLUTION,
        "attention": (),
        "middle_attention": False,
        "pixels": "unit",
        "z_channels": dim,
        "quantizer": {"type": "nearest", "size": size, "dim": dim},
    }


def build_entries(model: Mapping) -> list[Entry]:
    """Returns the weight table: taming's table with numbers as names, and without changes of layout."""

    def rename(entry: Entry) -> str:
        layer, leaf = _rename(entry.theirs[0], model), entry.ours.rsplit("/", 1)[1]
        return f"{layer}.{leaf}"

    return [Entry(entry.ours, (rename(entry),)) for entry in taming.build_entries(model)]


def _rename(name: str, model: Mapping) -> str:
    """Returns the name of the layer of one of taming's tensors."""
    blocks, levels = model["blocks"], len(model["multipliers"])
    coder, part, *middle, _ = name.split(".")
    if coder == "quantize":
        return "quantizer"
    if part in ("down", "up"):
        level, kind, *rest = middle
        order = int(level) if part == "down" else levels - int(level)
        if kind == "upsample":
            return f"{coder}.Conv_{order}"
        index, layer = order * blocks + int(rest[0]), rest[1]
    elif part == "mid":
        index, layer = int(middle[0].removeprefix("block_")) - 1, middle[1]
        index += levels * blocks if coder == "encoder" else 0
    else:
        last = 1 if coder == "encoder" else levels
        return f"{coder}." + {"conv_in": "Conv_0", "norm_out": "GroupNorm_0", "conv_out": f"Conv_{last}"}[part]
    return f"{coder}.ResBlock_{index}.{_LAYERS[layer]}"
