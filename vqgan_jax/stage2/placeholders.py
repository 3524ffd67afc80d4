"""Placeholder for the first stage of a second stage's config (see `train_jax.placeholders`)."""

from pathlib import Path

from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file
from vqgan_jax import model, vqgan
from vqgan_jax.placeholders import random_weights
from vqgan_jax.pretrained.checkpoint import abstract_variables
from vqgan_jax.stage2.checkpoint import VQGAN


def write_first_stage(config: ConfigDict, folder: Path) -> vqgan.Vqgan:
    """Writes the first stage of a second stage's config into a run directory, and returns it.

    `config.vqgan.path` names a model, or the shipped config of one, such as "vqgan/f16_16384": then the weights are random,
    and where codes are cached the model is narrow, as only its number of codes and its factor matter. Raises ConfigError
    for any other path.
    """
    shipped = config_file.find_placeholder(config.vqgan.path, "vqgan_jax.task", "config.vqgan.path")
    if shipped is None:
        first_stage = vqgan.load(config.vqgan.path, dtype=None)
    else:
        first_stage = _assemble_random(shipped, is_narrow=config.codes.cached)
    (folder / VQGAN).write_bytes(vqgan.to_bytes(first_stage))
    return first_stage


def _assemble_random(config: ConfigDict, is_narrow: bool) -> vqgan.Vqgan:
    if is_narrow:
        config.model.update({"channels": 32, "blocks": 1, "attention": ()})
    options = config_lib.resolve(config).model
    return vqgan.Vqgan.assemble(options, random_weights(abstract_variables(model.build(options))), "placeholder")
