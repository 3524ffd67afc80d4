"""Checkpoints of LlamaGen's VQ (arXiv 2406.06525): a `.pt` with weights and without a configuration.

Layers are taming's under other names. Options are derived from the shapes of the tensors. What shapes do not tell is the
same in all of LlamaGen's models: 32 groups, attention at the lowest resolution, codes of unit norm, images of 256 pixels.
"""

from collections.abc import Mapping
from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights import wrappers
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors

_ANCHOR = "encoder.conv_blocks.0.res.0.conv1.weight"
_RESOLUTION = 256
_IGNORED = (r"^quantize\.codebook_used$",)  # the last codes of the training


def open_file(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a file; returns None for other files."""
    if path.suffix not in taming.SUFFIXES:
        return None
    tensors = open_tensors(path)
    if not wrappers.holds(tensors, _ANCHOR):
        return None
    weights = wrappers.unwrap(tensors, _ANCHOR, str(path))
    with convert_errors(path):
        model = infer_options(weights, path)

    def read() -> tuple[dict, str]:
        return {"params": unflatten(from_peer(weights, build_entries(model), str(path), _IGNORED), False)}, str(path)

    discriminator = taming.find_discriminator(tensors, "discriminator.main.", path)
    return Checkpoint(name=str(path), format="LlamaGen", model=model, read=read, discriminator=discriminator)


def infer_options(tensors: Mapping, path: Path) -> dict:
    """Derives `VQGANOptions`, as a dict, from the shapes of the tensors."""

    def count(pattern: str) -> int:
        return next(i for i in range(len(tensors)) if pattern.format(i) not in tensors)

    channels, levels = tensors["encoder.conv_in.weight"].shape[0], count("encoder.conv_blocks.{}.res.0.conv1.weight")
    widths = [tensors[f"encoder.conv_blocks.{level}.res.0.conv1.weight"].shape[0] for level in range(levels)]
    if any(width % channels for width in widths):
        raise LoadError(f"{path}: the widths of the levels, {widths}, must be multiples of the first layer's {channels}")
    size, dim = tensors["quantize.embedding.weight"].shape
    return {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": count("encoder.conv_blocks.0.res.{}.conv1.weight"),
        "resolution": _RESOLUTION,
        "attention": (_RESOLUTION >> levels - 1,),
        "z_channels": tensors["encoder.conv_out.weight"].shape[0],
        "quantizer": {"type": "nearest", "size": size, "dim": dim, "unit": True},
    }


def build_entries(model: Mapping) -> list[Entry]:
    """Returns the weight table: taming's table with LlamaGen's names."""
    last = len(model["multipliers"]) - 1
    return [
        Entry(entry.ours, tuple(_rename(name, last) for name in entry.theirs), entry.kind)
        for entry in taming.build_entries(model)
    ]


def _rename(name: str, last: int) -> str:
    coder, *parts = name.split(".")
    if parts[0] in ("down", "up"):
        direction, level, part, *tail = parts
        index = int(level) if direction == "down" else last - int(level)
        parts = ["conv_blocks", str(index), "res" if part == "block" else part, *tail]
    elif parts[0] == "mid":
        parts[1] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[parts[1]]
    return ".".join([coder, *parts])
