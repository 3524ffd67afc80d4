"""The first stage of weights that come without one."""

from pathlib import Path

from train_jax.errors import LoadError
from vqgan_jax.pretrained import open_checkpoint
from vqgan_jax.pretrained.checkpoint import Checkpoint

FOLDER = "vqgan"  # beside the weights of a transformer


def open_first_stage(path: Path, vqgan: str | Path | None, usual: str, num_codes: int, config: str) -> Checkpoint:
    """Opens the VQGAN of the codes of a transformer.

    Args:
      path: directory of the transformer, which may have the VQGAN in the folder `vqgan`.
      vqgan: path of the VQGAN, in a format of `vqgan_jax.load`; None: that folder.
      usual: the VQGAN that the published weights were trained with, for messages.
      num_codes: number of codes that the transformer's configuration states.
      config: the option that states it, for messages.

    Raises LoadError if there is none, or if it has another number of codes.
    """
    folder = path / FOLDER
    if vqgan is None and not folder.is_dir():
        raise LoadError(
            f"{path} has a transformer, but no VQGAN that decodes its codes. Put it into {folder}, or name it: "
            f"load(…, vqgan=…), --vqgan …. Published weights were trained with {usual}"
        )
    first_stage = open_checkpoint(folder if vqgan is None else vqgan)
    size = first_stage.module().quantizer.size
    if size != num_codes:
        raise LoadError(f"{first_stage.name} is a VQGAN of {size} codes, but {path} has {config} = {num_codes}")
    return first_stage
