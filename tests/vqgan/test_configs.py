"""The configs of published models have the published models' parameters, and every config is complete."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax import config as config_lib
from train_jax import config_file
from train_jax.compute import Compute
from vqgan_jax import discriminator, model
from vqgan_jax.pretrained.checkpoint import abstract_variables

CONFIGS = config_file.FOLDER / "vqgan"
# Parameters and tensors of taming-transformers' published generators; of the others what its layers come to.
PARAMETERS = {"f16_1024": (72_141_699, 343), "f16_16384": (76_073_859, 343), "f8_gumbel": (68_995_971, 301)}


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    path = CONFIGS / f"{name}.py"
    options = config_lib.resolve(config_file.load(path)).model
    params = abstract_variables(model.build(options))["params"]
    assert (count(params), len(jax.tree.leaves(params))) == PARAMETERS[name]
    assert f"{PARAMETERS[name][0]:,} parameters" in path.read_text()


def test_the_discriminator_of_taming_has_2_765_633_parameters():
    options = discriminator.DiscriminatorOptions.defaults()
    options.norm = "batch"
    module = discriminator.build(options, Compute())
    variables = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 64, 64, 3))), jax.random.key(0))
    assert count(variables["params"]) == 2_765_633


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_is_complete_and_its_docstring_tells_how_to_run_it(path):
    config_lib.fill(config_file.load(path))
    assert f"train-jax --config=configs/vqgan/{path.name} --workdir=" in path.read_text().split('"""')[1]
