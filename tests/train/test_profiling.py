"""Formulas for operations against XLA's own count of unrolled programs; the memory plan; peaks; traces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax.transformer import Transformer
from train_jax import profiling, sharding


def counted(function, *arguments):
    """XLA's count. It also counts additions, exponentials and so on, so it is a little above a formula."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_dense():
    x, w = jnp.ones((32, 64)), jnp.ones((64, 128))
    assert counted(jnp.matmul, x, w) == profiling.dense_flops(32, 64, 128)


def test_convolution():
    x, w = jnp.ones((1, 16, 16, 8)), jnp.ones((4, 4, 8, 32))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert counted(convolve, x, w) == profiling.conv_flops(4, 4, 4, 8, 32)


@pytest.mark.parametrize("backward", [False, True])
def test_transformer(backward):
    length, width, depth = 128, 128, 2
    module = Transformer(width, depth, heads=2, scan=False, activation="quick_gelu")
    x = jnp.ones((1, length, width))
    params = sharding.unbox(jax.eval_shape(module.init, jax.random.key(0), x))

    def forward(params, x):
        return jnp.sum(module.apply(params, x) ** 2)

    actual = counted(jax.grad(forward, argnums=(0, 1)) if backward else forward, params, x)
    formula = profiling.transformer_flops(length, width, depth) * (profiling.BACKWARD if backward else 1)
    assert formula <= actual <= 1.06 * formula


def test_memory_plan_of_a_donating_program():
    x = jnp.ones((256, 256))
    compiled = jax.jit(lambda x: jnp.sin(x) @ x, donate_argnums=0).lower(x).compile()
    plan = profiling.memory_plan(compiled)
    assert plan.arguments == plan.outputs == x.nbytes
    assert plan.total == plan.arguments + plan.outputs - plan.aliased + plan.temporaries + plan.code
    assert "total" in str(plan) and "MiB" in str(plan) and "peak" not in str(plan), "a CPU's compiler does not say"
    assert "peak" in str(dataclasses.replace(plan, peak=1))


def test_what_a_program_needs_counts_its_temporaries():
    x = jnp.ones((256, 256))
    compiled = jax.jit(lambda x, y: jnp.sin(x @ y) @ jnp.cos(y @ x)).lower(x, x).compile()
    plan = profiling.memory_plan(compiled)
    # At the last product: two arguments, its two factors and itself.
    assert plan.needed >= 5 * x.nbytes
    assert dataclasses.replace(plan, peak=7).needed == 7


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v4 lite", 138e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("Abacus 1", None),
    ],
)
def test_the_longest_name_that_fits_counts(kind, peak):
    assert profiling.peak_of_kind(kind) == peak


@pytest.mark.parametrize(
    ("kind", "bandwidth"),  # by the data sheets
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("TPU v5 lite", 0.819e12),
        ("TPU v5", 2.765e12),
        ("Abacus 1", None),
    ],
)
def test_bandwidths_of_memory(kind, bandwidth):
    assert profiling.bandwidth_of_kind(kind) == bandwidth


def test_fake_devices_share_the_cpus_peak():
    one, eight = profiling.peak_flops(jax.devices()[:1]), profiling.peak_flops(jax.devices())
    assert one == eight and 1e9 < one < 1e14


def test_mfu_is_useful_work_over_possible_work():
    assert profiling.mfu(flops=50.0, seconds=0.5, peak=200.0) == 0.5


def test_a_trace_is_written(tmp_path):
    with profiling.trace(tmp_path):
        np.asarray(jnp.ones((8, 8)) @ jnp.ones((8, 8)))
    assert list(tmp_path.glob("**/*.xplane.pb")) and list(tmp_path.glob("**/perfetto_trace.json.gz"))
