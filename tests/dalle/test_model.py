"""The stream: causal, the same with a cache as without, with every option."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax import attention, model
from train_jax.errors import ConfigError

TEXT_SIZE, SIZE, GRID = 30, 20, (3, 4)
SMALL = {"text_length": 6, "width": 16, "depth": 3, "heads": 2, "dropout": 0.0}
VARIANTS = [
    {},
    {"vocabulary": "joint", "positions": "learned", "scan": False, "activation": "quick_gelu"},
    {"attention": ("row", "column", "row", "row"), "last_attention": "conv", "kernel": 3},
    {"attention": ("column", "dense"), "scan": False, "remat": "full"},
]


def build(**changes):
    """`(module, variables, text, codes)`: weights that are far from their small beginnings."""
    options = model.defaults()
    options.update(SMALL | changes)
    module = model.build(options, TEXT_SIZE, SIZE, GRID)
    rng = np.random.default_rng(0)
    text, codes = rng.integers(0, TEXT_SIZE, (2, 6)), rng.integers(0, SIZE, (2, 12))
    text, codes = jnp.asarray(text, jnp.int32), jnp.asarray(codes, jnp.int32)
    variables = nn.unbox(module.init(jax.random.key(0), text, codes))
    variables = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), variables)
    return module, variables, text, codes


BFLOAT16 = [changes | {"dtype": "bfloat16"} for changes in (VARIANTS[1], VARIANTS[2])]


@pytest.mark.parametrize("changes", [*VARIANTS, *BFLOAT16])
def test_code_by_code_with_a_cache_is_the_whole_stream(changes):
    tolerance = 2e-2 if "dtype" in changes else 1e-5
    module, variables, text, codes = build(**changes)
    whole = np.asarray(module.apply(variables, text, codes)[1])[..., module.first_code :]
    plain, params = model.for_sampling(module, variables["params"])
    step = jax.jit(lambda c, i, cache: plain.apply({"params": params}, c, i, cache, method="step"))
    logits, cache = plain.apply({"params": params}, text, method="begin")
    for place in range(12):
        np.testing.assert_allclose(logits, whole[:, place], atol=tolerance * np.abs(whole).max(), rtol=tolerance)
        logits, cache = step(codes[:, place], jnp.int32(place), cache)


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_token_knows_what_its_masks_let_through_and_nothing_else(changes):
    """What changes when one token does, against the masks multiplied through the blocks."""
    module, variables, text, codes = build(**changes)
    n, length = 6, 12

    outputs = jax.jit(lambda text, codes: module.apply(variables, text, codes))
    patterns, kinds = attention.kinds(
        changes.get("attention", ("dense",)), changes.get("last_attention", ""), SMALL["depth"]
    )
    reach = np.eye(n + length, dtype=bool)
    for kind in kinds:
        mask = attention.mask(patterns[kind], n, *GRID, changes.get("kernel", 11))
        reach = (mask.astype(int) @ reach.astype(int)) > 0
    before = [np.asarray(x) for x in outputs(text, codes)]
    for place in range(n + length - 1):
        t = text.at[:, place].set((text[:, place] + 1) % TEXT_SIZE) if place < n else text
        c = codes if place < n else codes.at[:, place - n].set((codes[:, place - n] + 1) % SIZE)
        after = [np.asarray(x) for x in outputs(t, c)]
        changed = np.concatenate([np.abs(a - b).max(axis=(0, 2)) > 1e-6 for a, b in zip(after, before, strict=True)])
        # Output number i stands at place i of the stream.
        assert changed.tolist() == reach[: n + length - 1, place].tolist(), place


@pytest.mark.parametrize("changes", BFLOAT16)
def test_logits_of_bfloat16_are_float32_sums_of_its_products(changes):
    module, variables, text, codes = build(**changes)
    params = {"params": variables["params"]}
    options = {"capture_intermediates": lambda part, _: part.name == "norm", "mutable": ["intermediates"]}

    def product(state, name):
        (x,) = state["intermediates"]["norm"]["__call__"]
        assert x.dtype == jnp.bfloat16
        kernel = jnp.asarray(variables["params"][name]["kernel"], jnp.bfloat16)
        return np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)

    (text_logits, code_logits), state = module.apply(params, text, codes, **options)
    heads = ("head", "head") if module.vocabulary == "joint" else ("text_head", "head")
    for found, name, part in ((text_logits, heads[0], np.s_[:, :5]), (code_logits, heads[1], np.s_[:, 5:])):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, product(state, name)[part], rtol=1e-6, atol=1e-6 * np.abs(found).max())
    plain, unrolled = model.for_sampling(module, variables["params"])
    (found, cache), state = plain.apply({"params": unrolled}, text, method="begin", **options)
    np.testing.assert_allclose(found, product(state, "head")[..., module.first_code :], rtol=1e-6, atol=1e-5)
    (found, _), state = plain.apply({"params": unrolled}, codes[:, 0], jnp.int32(0), cache, method="step", **options)
    np.testing.assert_allclose(found, product(state, "head")[..., module.first_code :], rtol=1e-6, atol=1e-5)


def test_joint_logits_hold_text_first():
    module, variables, text, codes = build(vocabulary="joint")
    text_logits, code_logits = module.apply(variables, text, codes)
    assert text_logits.shape == (2, 5, TEXT_SIZE + SIZE) and code_logits.shape == (2, 12, TEXT_SIZE + SIZE)
    assert module.first_code == TEXT_SIZE and "text_head" not in variables["params"]


def test_a_place_is_its_row_and_its_column():
    module, variables, text, codes = build(depth=1)
    tables = variables["params"]
    learned = build(depth=1, positions="learned")[0]
    params = {k: x for k, x in tables.items() if k not in ("rows", "columns")}
    params["positions"] = (tables["rows"][:, None] + tables["columns"][None]).reshape(12, -1)
    for found, wanted in zip(
        learned.apply({"params": params}, text, codes), module.apply(variables, text, codes), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 15}, "config.model.width = 15; it must be a multiple of model.heads"),
        ({"text_length": 1}, "text_length = 1; it must be at least 2"),
        ({"attention": ("row", "diagonal")}, "attention = .*diagonal.*one or more of dense, row, column, conv"),
        ({"last_attention": "all"}, "last_attention = 'all'"),
        ({"kernel": 4}, "kernel = 4; it must be odd"),
        ({"vocabulary": "both"}, "vocabulary = 'both'; it must be one of separate, joint"),
        ({"positions": "sinusoidal"}, "positions = 'sinusoidal'; it must be one of axial, learned"),
        ({"dropout": 1.0}, "dropout"),
        ({"activation": "tanh"}, "activation"),
        ({"remat": "all"}, "remat"),
        ({"dtype": "float16"}, "dtype"),
        ({"heads": 0}, "heads"),
        ({"depth": 0}, "depth"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message):
    options = model.defaults()
    options.update(SMALL | changes)
    with pytest.raises(ConfigError, match=message):
        model.build(options, TEXT_SIZE, SIZE, GRID)
