"""The configs of published models have as many parameters as the peers' own code counts."""

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
from train_jax.weights.layout import nested

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
RESIDUALS = {"vit_b32": 17, "vit_b16": 42, "vit_l14": 17, "siglip_b16": 45, "rn50": 181}
GIB = 2**30


def options(name):
    return config_lib.resolve(config_file.load(f"clip/{name}")).model


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    config = options(name)
    module = model.build(config, config.text.vocab_size, config.text.vocab_size - 1)
    leaves = jax.tree.leaves(abstract_variables(module)["params"])
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == PARAMETERS[name]
    assert PARAMETERS[name] == int("".join(c for c in _documented_parameters(name) if c.isdigit()))


def _documented_parameters(name: str) -> str:
    """The number of parameters in the config's docstring."""
    text = (CONFIGS / f"{name}.py").read_text()
    return text.split(" parameters.")[0].split()[-1]


def residual_bytes(config, pairs: int) -> int:
    """Counts the bytes of the residuals of both towers' backward pass, weights included."""
    m, compute = config.model, CLIPCompute.parse(config.compute, "compute")
    module = model.build(m, m.text.vocab_size, m.text.vocab_size - 1, compute)
    variables = dict(abstract_variables(module))
    params = variables.pop("params")
    pixels = jax.ShapeDtypeStruct((pairs, m.image.size, m.image.size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((pairs, m.text.context_length), jnp.int32)

    def backward(params, variables, pixels, ids):
        def towers(params):
            rngs = {"dropout": jax.random.key(0)}
            return module.apply({"params": params, **variables}, pixels, ids, False, mutable=list(variables), rngs=rngs)[0]

        return jax.vjp(towers, params)[1]

    kept = jax.eval_shape(backward, params, variables, pixels, ids)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("name", PARAMETERS)
def test_residuals_of_the_backward_pass_fit_any_number_of_devices(name):
    config = config_lib.resolve(config_file.load(f"clip/{name}"))
    pair = (residual_bytes(config, 8) - residual_bytes(config, 4)) / 4  # without the weights
    assert pair < RESIDUALS[name] * 2**20
    assert re.search(rf"keeps?\s+{RESIDUALS[name]} MiB", _docstring(name))
    if name == "rn50":  # batch norm sees the whole batch at once: the docstring says what that takes
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
    params = {"clip": nested({name: rng.normal(size=3).astype(np.float32) for name in names}, False)}
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
