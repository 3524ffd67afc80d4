"""A prior for inference: a class-conditional or unconditional second stage."""

from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights import hub
from vqgan_jax.pretrained.taming import find_file
from vqgan_jax.prior import taming
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint, open_run
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.generator import CodeGenerator


class Prior(CodeGenerator):
    """A second stage conditioned on classes, 0 to `classes - 1`, or None; created by `load`."""

    @property
    def classes(self) -> int:
        """Number of classes; 0 for images without labels."""
        return self.condition.classes


def load(path: str | Path, step: int | None = None, *, dtype: str | None = "auto") -> Prior:
    """Loads a prior and its VQGAN.

    Args:
      path: a run directory (averaged weights if the run has them), a `.ckpt` of a second stage of taming-transformers with
        its `.yaml` in the same folder (or that folder), or "hf:org/name" for a repository with these files.
      step: checkpoint step of a run directory; None for the newest readable checkpoint.
      dtype: precision of both stages, as in `vqgan_jax.load`.

    Raises LoadError for unknown formats, for damaged files, and if weights and configuration are inconsistent.
    """
    return open_checkpoint(path, step).load(Prior, dtype)


def open_checkpoint(path: str | Path, step: int | None = None) -> Stage2Checkpoint:
    """Opens the checkpoint at `path` (see `load`); weights of the transformer are read later. Raises LoadError."""
    path = hub.resolve(path, ("*.ckpt", "*.yaml", "*.yml"))
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
