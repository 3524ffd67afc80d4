"""Basic layers with logical axis names: dense, embedding, norms, activations.

`train_jax.sharding` maps the axis names to mesh axes: "embed" is the width of the residual stream, "mlp" and "heads" are
sharded by tensor parallelism, "norm" is replicated.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from nn_jax.float8 import float8_dot
from nn_jax.mixed_precision import dot


def quick_gelu(x: jax.Array) -> jax.Array:
    """Computes x * sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP (arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
}


DTYPES = {"float32": jnp.dtype("float32"), "bfloat16": jnp.dtype("bfloat16")}  # of computation


def with_axis_names(init: Callable, *axes: str) -> Callable:
    """Wraps an initialiser to add logical axis names to its parameter."""
    return nn.with_logical_partitioning(init, axes)


class Dense(nn.Module):
    """Dense layer from the last `inputs` axes of x to axes of sizes `features`. Parameters: `kernel` and `bias`.

    Linen's DenseGeneral initialises a flattened kernel, which cannot have names for the unflattened axes.

    Attributes:
      axes: logical names of the kernel's axes, inputs first.
      std: standard deviation of the normal initialisation of the kernel.
      inputs: number of contracted axes.
      out_dtype: dtype of the output; None: `dtype`. float32 avoids rounding of logits to bfloat16.
      float8: whether the product is one of float8 numbers; see `nn_jax.float8`. `out_dtype` must be None.
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    std: float
    dtype: DTypeLike
    inputs: int = 1
    bias: bool = True
    out_dtype: DTypeLike | None = None
    float8: bool = False

    def __call__(self, x):
        """Applies the layer; leading axes are kept."""
        return self._apply(x, *self._parameters(x))

    def unstacked(self, x) -> tuple[jax.Array, ...]:
        """Computes the output for each index of the first of `features` by a product of its own."""
        kernel, bias = self._parameters(x)
        kernels = jnp.moveaxis(kernel, self.inputs, 0)
        return tuple(self._apply(x, kernels[i], None if bias is None else bias[i]) for i in range(self.features[0]))

    @nn.compact
    def _parameters(self, x):
        """Returns the kernel, and the bias or None."""
        shape = (*x.shape[-self.inputs :], *self.features)
        kernel = self.param("kernel", with_axis_names(nn.initializers.normal(self.std), *self.axes), shape)
        if not self.bias:
            return kernel, None
        axes = ("norm" if axis == "embed" else axis for axis in self.axes[self.inputs :])
        return kernel, self.param("bias", with_axis_names(nn.initializers.zeros_init(), *axes), self.features)

    def _apply(self, x, kernel, bias):
        x = jnp.asarray(x, self.dtype)
        y = float8_dot(x, kernel, self.inputs) if self.float8 else dot(x, kernel, self.inputs, self.out_dtype)
        return y if bias is None else add_parameter(y, bias)


def add_parameter(x: jax.Array, parameter: ArrayLike) -> jax.Array:
    """Adds a bias or position embedding to the last axes of x and casts the sum to the dtype of x.

    The gradient of the parameter is accumulated in the dtype of the parameter.
    """
    expanded = jnp.expand_dims(parameter, tuple(range(x.ndim - jnp.ndim(parameter))))
    return (x + expanded).astype(x.dtype)


def embedding_lookup(table: ArrayLike, ids: ArrayLike, axis: str = "vocab") -> jax.Array:
    """Looks up the rows `ids` [...] of an embedding table [n, width]; returns [..., width].

    The width of the table is all-gathered first, as FSDP does for kernels. Otherwise the output would be sharded along
    width, and XLA would replicate the whole batch to reshard it along examples.

    Args:
      axis: logical name of the table's first axis.
    """
    return jnp.take(nn.with_logical_constraint(table, (axis, None)), ids, axis=0)


def layer_norm(eps: float, dtype, name: str | None) -> nn.LayerNorm:
    """Creates a LayerNorm with float32 statistics for any `dtype`, which computes the variance in two passes."""
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    return nn.LayerNorm(
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,  # E[x^2] - E[x]^2 is inaccurate for a large mean
        scale_init=with_axis_names(ones, "norm"),
        bias_init=with_axis_names(zeros, "norm"),
        name=name,
    )


def rms_norm(eps: float, dtype, name: str | None) -> nn.RMSNorm:
    """Creates an RMSNorm (arXiv 1910.07467) with float32 statistics for any `dtype`: without a mean and a bias."""
    return nn.RMSNorm(
        epsilon=eps, dtype=dtype, scale_init=with_axis_names(nn.initializers.ones_init(), "norm"), name=name
    )


NORMS: dict[str, Callable] = {"layer": layer_norm, "rms": rms_norm}


def group_norm(groups: int, dtype, name: str, eps: float = 1e-6) -> nn.GroupNorm:
    """Creates a GroupNorm that computes the variance in two passes, like `layer_norm`."""
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    return nn.GroupNorm(
        groups,
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=with_axis_names(ones, "norm"),
        bias_init=with_axis_names(zeros, "norm"),
        name=name,
    )


def l2_normalize(x: jax.Array) -> jax.Array:
    """Normalises vectors to unit L2 norm along the last axis, in float32. Zero vectors stay zero, with finite gradients."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
