"""A prior for inference: a class-conditional or unconditional second stage."""

from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights import hub
from vqgan_jax.pretrained.taming import find_file
from vqgan_jax.prior import llamagen, taming
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint, open_run
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.generator import CodeGenerator


class Prior(CodeGenerator):
    """A second stage conditioned on classes, 0 to `classes - 1`, or None, or on maps; created by `load`."""

    @property
    def classes(self) -> int:
        """Number of classes; 0 for images without labels."""
        return getattr(self.condition, "classes", 0)


def load(
    path: str | Path, step: int | None = None, *, dtype: str | None = "auto", vqgan: str | Path | None = None
) -> Prior:
    """Loads a prior and its VQGAN.

    Args:
      path: a run directory (averaged weights if the run has them), a `.ckpt` of a second stage of taming-transformers with
        its `.yaml` in the same folder (or that folder), "hf:org/name" for a repository with these files, or a directory of a
        class-conditional LlamaGen (see `vqgan_jax.prior.llamagen`).
      step: checkpoint step of a run directory; None for the newest readable checkpoint.
      dtype: precision of both stages, as in `vqgan_jax.load`.
      vqgan: VQGAN of weights that come without one, as LlamaGen's do, in a format of `vqgan_jax.load`; None: the folder
        `vqgan` in `path`.

    Raises LoadError for unknown formats, for damaged files, and if weights and configuration are inconsistent.
    """
    return open_checkpoint(path, step, vqgan).load(Prior, dtype)


def open_checkpoint(path: str | Path, step: int | None = None, vqgan: str | Path | None = None) -> Stage2Checkpoint:
    """Opens the checkpoint at `path` (see `load`); weights of the transformer are read later. Raises LoadError."""
    path = hub.resolve(path, ("*.ckpt", "*.yaml", "*.yml"))
    if path.is_dir() and (checkpoint := llamagen.open_directory(path, vqgan)):
        return checkpoint
    if vqgan is not None:
        raise LoadError(f"{path} contains the VQGAN of its codes: leave out the VQGAN {str(vqgan)!r}")
    if file := path if path.is_file() else find_file(path):
        checkpoint = taming.open_file(file)
        if checkpoint is None:
            raise LoadError(f"{file} is no second stage: neither a run directory nor taming's Net2NetTransformer")
        return checkpoint

    def build_condition(config: dict, options: PriorOptions) -> ClassCondition:
        return options.condition(config["condition_dropout"])

    names = {"task": "vqgan_jax.prior.task", "what": "a second stage"}
    checkpoint = open_run(path, step, **names, options=PriorOptions, condition=build_condition)
    if checkpoint is None:
        raise LoadError(f"{path} is no run directory: it has no config.json with a task")
    return checkpoint
