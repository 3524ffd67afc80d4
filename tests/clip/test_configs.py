"""The configs of published models have as many parameters as the peers' own code counts."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import model
from clip_jax.options import CLIPCompute
from clip_jax.pretrained.checkpoint import abstract_variables
from train_jax import config as config_lib
from train_jax import config_file, optim, sharding
from train_jax.weights.layout import unflatten

CONFIGS = config_file.FOLDER / "clip"
# Counted with transformers 4.57 (CLIPModel, SiglipModel) and openai/CLIP (RN50).
PARAMETERS = {
    "vit_b32": 151_277_313,
    "vit_b16": 149_620_737,
    "vit_l14": 427_616_513,
    "siglip_b16": 203_155_970,
    "rn50": 102_007_137,
}


# MiB of residuals for the backward pass of one pair.
RESIDUALS = {"vit_b32": 17, "vit_b16": 42, "vit_l14": 17, "siglip_b16": 45, "rn50": 59}
GIB = 2**30


@functools.cache
def build(name: str):
    """Config, module and abstract variables of a published model."""
    config = config_lib.resolve(config_file.load(f"clip/{name}"))
    text, compute = config.model.text, CLIPCompute.parse(config.compute, "compute")
    module = model.build(config.model, text.vocab_size, text.vocab_size - 1, compute)
    return config, module, dict(abstract_variables(module))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    _, _, variables = build(name)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]
    documented = _docstring(name).split(" parameters.")[0].split()[-1]
    assert PARAMETERS[name] == int(documented.replace(",", ""))


def residual_bytes(name: str) -> float:
    """Counts the bytes of one pair that the backward pass of both towers reads, weights left out."""
    config, module, variables = build(name)
    params, statistics = variables["params"], {key: x for key, x in variables.items() if key != "params"}
    pairs = 13  # a prime number that divides no other dimension: residuals without it are weights
    pixels = jax.ShapeDtypeStruct((pairs, config.model.image.size, config.model.image.size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((pairs, config.model.text.context_length), jnp.int32)

    def backward(params, statistics, pixels, ids):
        def towers(params):
            variables, rngs = {"params": params, **statistics}, {"dropout": jax.random.key(0)}
            return module.apply(variables, pixels, ids, False, mutable=list(statistics), rngs=rngs)[0]

        return jax.vjp(towers, params)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, params, statistics, pixels, ids))
    assert not any(n % pairs == 0 for leaf in jax.tree.leaves(variables) for n in leaf.shape)
    of_pairs = [leaf for leaf in residuals if any(n % pairs == 0 for n in leaf.shape)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in of_pairs) / pairs


@pytest.mark.parametrize("name", PARAMETERS)
def test_residuals_of_the_backward_pass_fit_any_number_of_devices(name):
    config, pair = build(name)[0], residual_bytes(name)
    assert pair < RESIDUALS[name] * 2**20
    assert re.search(rf"keeps?\s+{RESIDUALS[name]} MiB", _docstring(name))
    if name == "rn50":  # batch norm needs the global batch: the docstring says how much memory that takes
        return
    for devices in (1, 8, 32, 128, 256):
        rows = config.data.batch_size // devices
        assert rows / sharding.parts_of(rows, config.compute.micro_batch) * pair < 6 * GIB


def _docstring(name: str) -> str:
    return (CONFIGS / f"{name}.py").read_text().split('"""')[1]


def test_siglip_decays_as_big_vision_does():
    """big_vision's chain (big_vision/optax.py, `make`): Adam, lr, add_decayed_weights(wd) on kernels, the schedule, -1."""
    config = config_lib.resolve(config_file.load("clip/siglip_b16"))
    names = ("vision/positions", "vision/transformer/blocks/mlp_in/kernel", "text/tokens/embedding", "logit_bias")
    names += ("vision/transformer/blocks/norm1/scale", "vision/transformer/blocks/mlp_in/bias")
    rng = np.random.default_rng(0)
    params = {"clip": unflatten({name: rng.normal(size=3).astype(np.float32) for name in names}, False)}
    grads = jax.tree.map(lambda x: rng.normal(size=3).astype(np.float32), params)
    axes = {sharding.path_name(path): (None,) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    config.optim.update({"schedule": "constant", "warmup_steps": 0, "clip": 0.0})
    ours = optim.make(config.optim, params, config.steps, axes).tx
    kernels = jax.tree_util.tree_map_with_path(lambda path, _: sharding.path_name(path).endswith("/kernel"), params)
    theirs = optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=config.optim.args.get("eps", 1e-8)),
        optax.scale(1e-3),
        optax.add_decayed_weights(1e-4, kernels),
        optax.scale(-1.0),
    )
    moved = [tx.update(grads, tx.init(params), params)[0] for tx in (ours, theirs)]
    for mine, peer in zip(*map(jax.tree.leaves, moved), strict=True):
        np.testing.assert_allclose(mine, peer, rtol=1e-5)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_is_complete_and_its_docstring_tells_how_to_run_it(path):
    config_lib.fill(config_file.load(path))
    assert f"train-jax --config=configs/clip/{path.name} --workdir=" in _docstring(path.stem)
