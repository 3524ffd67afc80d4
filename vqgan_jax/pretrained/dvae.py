"""Checkpoints of OpenAI's discrete VAE: directories with `encoder.pkl` and `decoder.pkl`, pickled PyTorch modules.

Only tensors are read (see `train_jax.weights.tensors`); the pickled classes are not imported.
"""

from collections.abc import Mapping
from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.tensors import Tensor, open_tensors
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors


def open_directory(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a directory; returns None if the directory lacks one of the files."""
    files = {coder: path / f"{coder}.pkl" for coder in ("encoder", "decoder")}
    if not all(file.is_file() for file in files.values()):
        return None
    tensors = {}
    for coder, file in files.items():
        for name, tensor in open_tensors(file).items():
            tensors[f"{coder}.{name.replace('_modules.', '').replace('_parameters.', '')}"] = tensor
    with convert_errors(path):
        model = _infer_config(tensors, path)

    def read() -> tuple[dict, str]:
        return {"params": unflatten(from_peer(tensors, build_entries(model), str(path)), False)}, str(path)

    return Checkpoint(name=str(path), format="OpenAI's dVAE", model=model, read=read)


def _infer_config(tensors: Mapping[str, Tensor], path: Path) -> dict:
    """Infers `VQGANOptions`, as a dict, from tensor shapes."""
    try:
        first, last = tensors["encoder.blocks.input.w"].shape, tensors["encoder.blocks.output.conv.w"].shape
        n_init = tensors["decoder.blocks.input.w"].shape[0]
    except KeyError as error:
        raise LoadError(f"{path} holds no dVAE: no tensor {error} among its {len(tensors)}") from error
    blocks = {name.split(".")[3] for name in tensors if name.startswith("encoder.blocks.group_1.block_")}
    return {
        "architecture": "dvae",
        "channels": first[0],
        "blocks": len(blocks),
        "z_channels": n_init,
        "resolution": 256,
        "quantizer": {"type": "gumbel", "size": last[0], "dim": last[0]},
    }


def build_entries(model: Mapping) -> list[Entry]:
    """Returns the weight table."""
    table = []

    def conv(ours: str, theirs: str) -> None:
        table.extend([Entry(f"{ours}/kernel", (f"{theirs}.w",), "conv"), Entry(f"{ours}/bias", (f"{theirs}.b",))])

    width = model["channels"]
    widths = {"encoder": [width << g for g in range(4)], "decoder": [width << g for g in (3, 2, 1, 0)]}
    for coder, inputs in (("encoder", width), ("decoder", model["z_channels"])):
        conv(f"{coder}/conv_in", f"{coder}.blocks.input")
        for group in range(4):
            for index in range(model["blocks"]):
                ours, theirs = (
                    f"{coder}/group{group}_block{index}",
                    f"{coder}.blocks.group_{group + 1}.block_{index + 1}",
                )
                for part in (1, 2, 3, 4):
                    conv(f"{ours}/conv{part}", f"{theirs}.res_path.conv_{part}")
                if inputs != widths[coder][group]:
                    conv(f"{ours}/shortcut", f"{theirs}.id_path")
                inputs = widths[coder][group]
        conv(f"{coder}/conv_out", f"{coder}.blocks.output.conv")
    return table
