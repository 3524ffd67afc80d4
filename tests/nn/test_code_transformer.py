"""The stream: causal, the same with a KV cache as without, with every option."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax.attention_patterns import assign_patterns, attention_mask
from nn_jax.code_transformer import CodeTransformer, TokenEmbedding, shapes, unroll_for_decoding
from nn_jax.layers import DTYPES

TOKENS, CODES, GRID, DEPTH = 30, 20, (3, 4), 3
LENGTH = GRID[0] * GRID[1]
CLASS = {"condition_length": 1, "predicts_condition": False}  # the others are conditions of six tokens, as texts are
TORUS = {"attention": ("row", "column", "torus"), "conv_window": 3}
ENCODER = {"encoder_depth": 2, "predicts_condition": False}
VARIANTS = [
    {},
    {"joint_vocabulary": True, "axial": False, "scan": False, "activation": "quick_gelu"},
    {"attention": ("row", "column", "row", "row"), "last_attention": "conv", "conv_window": 3},
    {"attention": ("column", "dense"), "scan": False, "remat": "full"},
    CLASS | {"axial": False},
    {"branch_norms": "sandwich", "gated": True, "activation": "silu", "embedding_norm": True},
    TORUS | {"shifted_patterns": True, "head_norm": True, "head_bias": True},
    CLASS | {"rotary": True, "axial": False, "norm": "rms", "kv_heads": 2, "heads": 4, "gated": True, "activation": "silu"},
    {"rotary": True, "axial": False, "attention": ("dense", "row")},
    ENCODER | {"branch_norms": "normformer", "gated": True, "bias": False, "embedding_norm": True, "padding": 3},
    ENCODER | {"scan": False, "attention": ("row", "dense"), "condition_length": 1},
]
STREAMS = [changes for changes in VARIANTS if "encoder_depth" not in changes]
BFLOAT16 = [changes | {"dtype": "bfloat16"} for changes in (VARIANTS[1], VARIANTS[2], VARIANTS[4])]


@functools.cache
def build(
    attention=("dense",),
    last_attention="",
    scan=True,
    remat="none",
    activation="gelu",
    dtype="float32",
    condition_length=6,
    branch_norms="none",
    gated=False,
    bias=True,
    norm="layer",
    kv_heads=0,
    **changes,
):
    """`(module, parameters, condition, codes)`: weights that are far from their small beginnings."""
    patterns, attention_index = assign_patterns(attention, last_attention, DEPTH)
    blocks = {"scan": scan, "remat": remat, "activation": activation}
    blocks |= {"branch_norms": branch_norms, "gated": gated, "bias": bias, "norm": norm, "kv_heads": kv_heads}
    blocks["attention_index"] = attention_index if len(patterns) > 1 else ()
    options = {
        "dropout": 0.0,
        "predicts_condition": True,
        "joint_vocabulary": False,
        "axial": True,
        "conv_window": 11,
        "heads": 2,
    }
    module = CodeTransformer(
        condition=TokenEmbedding(TOKENS, (1, condition_length), 16), num_codes=CODES, grid=GRID, width=16, depth=DEPTH,
        patterns=patterns, dtype=DTYPES[dtype], blocks=blocks, **(options | changes),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    condition, codes = rng.integers(0, TOKENS, (2, module.condition_length)), rng.integers(0, CODES, (2, LENGTH))
    condition, codes = jnp.asarray(condition, jnp.int32), jnp.asarray(codes, jnp.int32)

    def draw(path, shape):
        return float(path[-1].key == "scale") + 0.3 * rng.standard_normal(shape, np.float32)

    params = jax.tree.map_with_path(draw, shapes(module), is_leaf=lambda x: isinstance(x, tuple))
    return module, params, condition, codes


PROGRAMS = {}  # compiled; of modules with the same attributes one


def apply(module, params, *inputs, method: str = "__call__", capture: bool = False):
    """The outputs of a method; with `capture` also the output of the last norm."""
    key = repr(module), method
    if key not in PROGRAMS:
        options = {"capture_intermediates": lambda part, _: part.name == "norm", "mutable": ["intermediates"]}
        PROGRAMS[key] = jax.jit(
            lambda params, *inputs: module.apply({"params": params}, *inputs, method=method, **options)
        )
    outputs, state = PROGRAMS[key](params, *inputs)
    return (outputs, state) if capture else outputs


@pytest.mark.parametrize("changes", [*VARIANTS, *BFLOAT16])
def test_decoding_with_a_cache_equals_the_whole_stream(changes):
    """The prefix is the condition alone, or has the first codes, too; the cache of the others grows."""
    tolerance = 2e-2 if "dtype" in changes else 1e-5
    module, params, condition, codes = build(**changes)
    whole = np.asarray(apply(module, params, condition, codes)[1])[..., module.code_offset :]
    unrolled, params = unroll_for_decoding(module, params)
    for prefix in (0, 5):
        logits, prefixes = apply(unrolled, params, condition, codes[:, :prefix], method="prefill")
        prefixes = tuple((cache,) for cache in prefixes)
        caches = tuple(cache.grow(4) for cache in unrolled.bind({}).empty_caches(2))
        for index in range(prefix, LENGTH):
            expected = whole[:, index]
            np.testing.assert_allclose(logits, expected, atol=tolerance * np.abs(whole).max(), rtol=tolerance)
            if index - prefix == 4:  # two sizes: a cache may have just enough room, or more
                caches = tuple(cache.grow(LENGTH) for cache in caches)
            step = codes[:, index], jnp.int32(index), prefixes, caches
            logits, caches = apply(unrolled, params, *step, method="decode_step")


@pytest.mark.parametrize("changes", STREAMS)
def test_a_token_depends_on_exactly_what_its_masks_let_through(changes):
    """Logits that change with one token, against the masks multiplied through the blocks."""
    module, params, condition, codes = build(**changes)
    n = module.condition_length
    patterns = changes.get("attention", ("dense",))
    distinct, index = assign_patterns(patterns, changes.get("last_attention", ""), DEPTH)
    reach = np.eye(n + LENGTH, dtype=bool)
    for block in range(DEPTH):
        offset = int(changes.get("shifted_patterns", False))
        mask = attention_mask(distinct[index[block]], n - offset, GRID, changes.get("conv_window", 11))
        mask = np.pad(mask, (0, offset))  # the stream is longer by what patterns take for codes
        reach = (mask.astype(int) @ reach.astype(int)) > 0

    def logits(condition, codes):
        return [np.asarray(x) for x in apply(module, params, condition, codes) if x is not None]

    before = logits(condition, codes)
    for position in range(n + LENGTH - 1):
        t, c = condition, codes
        if position < n:
            t = t.at[:, position].set((t[:, position] + 1) % TOKENS)
        else:
            c = c.at[:, position - n].set((c[:, position - n] + 1) % CODES)
        pairs = zip(logits(t, c), before, strict=True)
        changed = np.concatenate([np.abs(a - b).max(axis=(0, 2)) > 1e-6 for a, b in pairs])
        # Output number i stands at position i of the stream.
        assert changed.tolist() == reach[: n + LENGTH - 1, position].tolist(), position


def test_codes_read_all_of_an_encoded_condition_but_its_padding():
    module, params, condition, codes = build(**VARIANTS[9])
    condition = jnp.asarray([[5, 7, 9, 3, 3, 3], [4, 8, 6, 11, 12, 3]], jnp.int32)
    before = apply(module, params, condition, codes)[1]
    other_padding = params | {"condition": params["condition"] | {"tokens": params["condition"]["tokens"].copy()}}
    other_padding["condition"]["tokens"][3] += 1
    np.testing.assert_array_equal(apply(module, other_padding, condition, codes)[1], before)
    for position in range(3):
        changed = apply(module, params, condition.at[:, position].add(1), codes)[1]
        assert (np.abs(changed - before).max(axis=2) > 1e-6).all()
    for position in range(LENGTH):
        changed = apply(module, params, condition, codes.at[:, position].set((codes[:, position] + 1) % CODES))[1]
        is_changed = np.abs(changed - before).max(axis=(0, 2)) > 1e-6
        assert is_changed.tolist() == [index > position for index in range(LENGTH)]


@pytest.mark.parametrize("changes", BFLOAT16)
def test_logits_of_bfloat16_are_float32_sums_of_its_products(changes):
    module, params, condition, codes = build(**changes)

    def product(state, name):
        (x,) = state["intermediates"]["norm"]["__call__"]
        assert x.dtype == jnp.bfloat16
        kernel = jnp.asarray(params[name]["kernel"], jnp.bfloat16)
        return np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)

    (condition_logits, code_logits), state = apply(module, params, condition, codes, capture=True)
    last = module.condition_length - 1
    checks = [(code_logits, "head", np.s_[:, last:])]
    if module.predicts_condition:
        checks.append((condition_logits, "head" if module.joint_vocabulary else "condition_head", np.s_[:, :last]))
    for logits, name, part in checks:
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, product(state, name)[part], rtol=1e-6, atol=1e-6 * np.abs(logits).max())
    unrolled, unstacked = unroll_for_decoding(module, params)

    def check(logits, state):
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, product(state, "head")[..., module.code_offset :], rtol=1e-6, atol=1e-5)

    (logits, caches), state = apply(unrolled, unstacked, condition, codes[:, :5], method="prefill", capture=True)
    check(logits, state)
    step = codes[:, 5], jnp.int32(5), tuple((c,) for c in caches), unrolled.bind({}).empty_caches(2)
    step = *step[:3], tuple(cache.grow(1) for cache in step[3])
    (logits, _), state = apply(unrolled, unstacked, *step, method="decode_step", capture=True)
    check(logits, state)


@pytest.mark.parametrize("changes", [VARIANTS[0], VARIANTS[2]])
def test_an_int8_cache_changes_logits_by_its_rounding(changes):
    """Keys and values of 8 bits have at most 1/254 of their largest component as error: a few times that in the logits."""
    module, params, condition, codes = build(**changes)
    whole = np.asarray(apply(module, params, condition, codes)[1])
    unrolled, params = unroll_for_decoding(module.clone(cache_dtype=jnp.int8), params)
    logits, prefixes = apply(unrolled, params, condition, codes[:, :3], method="prefill")
    np.testing.assert_allclose(logits, whole[:, 3], atol=1e-5 * np.abs(whole).max(), rtol=1e-5)
    prefixes = tuple((cache,) for cache in prefixes)
    caches, errors = tuple(cache.grow(LENGTH - 3) for cache in unrolled.bind({}).empty_caches(2)), []
    for cache in (*caches, *(prefix for (prefix,) in prefixes)):
        assert cache.keys.dtype == cache.values.dtype == jnp.int8 and cache.key_scales.dtype == jnp.float32
    for index in range(3, LENGTH - 1):
        step = codes[:, index], jnp.int32(index), prefixes, caches
        logits, caches = apply(unrolled, params, *step, method="decode_step")
        errors.append(np.abs(logits - whole[:, index + 1]))
    assert 0 < np.max(errors) < 5 / 254 * np.abs(whole).max() and np.mean(errors) < 1 / 254 * np.abs(whole).max()


def test_joint_logits_hold_condition_tokens_first():
    module, params, condition, codes = build(joint_vocabulary=True)
    condition_logits, code_logits = apply(module, params, condition, codes)
    assert condition_logits.shape == (2, 5, TOKENS + CODES) and code_logits.shape == (2, LENGTH, TOKENS + CODES)
    assert module.code_offset == TOKENS and "condition_head" not in params


def test_a_condition_that_is_not_predicted_has_neither_logits_nor_head():
    module, params, condition, codes = build(**CLASS)
    condition_logits, code_logits = apply(module, params, condition, codes)
    assert condition_logits is None and code_logits.shape == (2, LENGTH, CODES)
    assert module.code_offset == 0 and "condition_head" not in params


def test_a_position_is_its_row_and_its_column():
    module, params, condition, codes = build()
    learned = build(axial=False)[0]
    tables = dict(params["codes"])
    rows, columns = tables.pop("rows"), tables.pop("columns")
    tables["positions"] = (rows[:, None] + columns[None]).reshape(LENGTH, -1)
    pairs = zip(
        apply(learned, params | {"codes": tables}, condition, codes),
        apply(module, params, condition, codes),
        strict=True,
    )
    for logits, expected in pairs:
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_shapes_are_those_of_the_parameters():
    module, _, condition, codes = build(**VARIANTS[2])
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), condition, codes))["params"]
    assert shapes(module) == jax.tree.map(np.shape, params)
