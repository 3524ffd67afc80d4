"""Small layers with named axes: dense, convolution, norms, activations. What `transformer` and the stems are made of.

Axis names are read by `train_jax.sharding`: "embed" is the width of the residual stream, "mlp" and "heads" what tensor
parallelism splits, "norm" a vector too small to split.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from nn_jax.convolve import convolve
from nn_jax.product import product


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with (arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
}


DTYPES = {"float32": jnp.dtype("float32"), "bfloat16": jnp.dtype("bfloat16")}  # of computation


def named(init: Callable, *axes: str) -> Callable:
    """An initialiser whose parameter carries these logical axis names."""
    return nn.with_logical_partitioning(init, axes)


class Dense(nn.Module):
    """A linear map from the last `inputs` axes of x to axes of sizes `features`; parameters `kernel` and `bias`.

    (Linen's DenseGeneral initialises a flattened kernel, which cannot carry the names of its unflattened axes.)

    Attributes:
      axes: names of the kernel's axes, inputs first.
      std: of the normal distribution the kernel is drawn from.
      out_dtype: of the result, None: `dtype`. Logits are float32: sums of bfloat16 products, not rounded to bfloat16.
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    std: float
    dtype: DTypeLike
    inputs: int = 1
    bias: bool = True
    out_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x):
        shape = (*x.shape[-self.inputs :], *self.features)
        kernel = self.param("kernel", named(nn.initializers.normal(self.std), *self.axes), shape)
        y = product(jnp.asarray(x, self.dtype), kernel, self.inputs, self.out_dtype)
        if not self.bias:
            return y
        names = ("norm" if axis == "embed" else axis for axis in self.axes[self.inputs :])
        return add(y, self.param("bias", named(nn.initializers.zeros_init(), *names), self.features))


def add(x: jax.Array, term: ArrayLike) -> jax.Array:
    """x plus a parameter for its last axes, in the dtype of x; the parameter's gradient is summed in its own dtype."""
    wide = jnp.expand_dims(term, tuple(range(x.ndim - jnp.ndim(term))))
    return (x + wide).astype(x.dtype)


def embed(table: ArrayLike, ids: ArrayLike, axis: str = "vocab") -> jax.Array:
    """The rows `ids` [...] of an embedding table [n, width]: [..., width]. `axis` is the name of the table's first axis.

    The table is first gathered over the devices that share its width, as a kernel is before its product. Looked up in
    parts, rows would come out split by width, and the whole batch be replicated in order to be split by examples again.
    """
    return jnp.take(nn.with_logical_constraint(table, (axis, None)), ids, axis=0)


class Conv(nn.Module):
    """A convolution [b, h, w, c] -> [b, h2, w2, features]; parameters `kernel` and `bias`.

    Attributes:
      window: side of the kernel.
      padding: zeros on every side, or "SAME" or "VALID".
      out_dtype: see `Dense`.
    """

    features: int
    window: int
    stride: int
    padding: int | str
    dtype: DTypeLike
    kernel_init: Callable
    bias_init: Callable
    bias: bool = True
    out_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.window, self.window, x.shape[-1], self.features))
        padding = self.padding if isinstance(self.padding, str) else ((self.padding,) * 2,) * 2
        y = convolve(jnp.asarray(x, self.dtype), kernel, (self.stride, self.stride), padding, self.out_dtype)
        return add(y, self.param("bias", self.bias_init, (self.features,))) if self.bias else y


def conv(
    features: int,
    kernel: int,
    stride: int,
    *,
    axes: tuple[str, str],
    std: float | None,
    dtype,
    name: str | None,
    bias: bool,
    padding: int | None = None,
    out_dtype: DTypeLike | None = None,
) -> Conv:
    """A convolution with `kernel` x `kernel` windows.

    `padding`: zeros on every side; None: what keeps the size (divided by the stride), and none for strides that equal
    the window. `std`: of the normal distribution the kernel is drawn from; None: He's.
    """
    init = nn.initializers.he_normal() if std is None else nn.initializers.normal(std)
    if padding is None:
        padding = "VALID" if kernel == stride else "SAME"
    return Conv(
        features,
        kernel,
        stride,
        padding,
        dtype,
        kernel_init=named(init, "patch", "patch", *axes),
        bias_init=named(nn.initializers.zeros_init(), "norm"),
        bias=bias,
        out_dtype=out_dtype,
        name=name,
    )


def layer_norm(eps: float, dtype, name: str | None) -> nn.LayerNorm:
    """Statistics are computed in float32 whatever `dtype` is, and the variance from differences to the mean."""
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    return nn.LayerNorm(
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses its digits beside a large mean
        scale_init=named(ones, "norm"),
        bias_init=named(zeros, "norm"),
        name=name,
    )


def group_norm(groups: int, dtype, name: str) -> nn.GroupNorm:
    """Statistics as those of `layer_norm`."""
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    return nn.GroupNorm(
        groups,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=named(ones, "norm"),
        bias_init=named(zeros, "norm"),
        name=name,
    )


def normalize(x: jax.Array) -> jax.Array:
    """Vectors of unit norm along the last axis, in float32; a zero vector stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
