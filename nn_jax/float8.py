"""Matrix products of float8 numbers, scaled by the largest value of each operand (arXiv 2209.05433, sections 3 and 4).

Activations and kernels are rounded to e4m3, gradients to e5m2. NVIDIA GPUs from Hopper on multiply float8 numbers at twice
the rate of bfloat16; other devices multiply the same numbers after a cast.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike


def round_to_float8(x: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Rounds an array to float8. Returns it and the float32 scale with which it is multiplied.

    The largest absolute value becomes the largest number of `dtype`, so nothing overflows.
    """
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    scale = jnp.maximum(largest / float(jnp.finfo(dtype).max), jnp.finfo(jnp.float32).tiny)
    return (x.astype(jnp.float32) / scale).astype(dtype), scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def float8_dot(x: jax.Array, kernel: ArrayLike, axes: int) -> jax.Array:
    """Contracts the last `axes` axes of `x` [..., inputs] with the first `axes` of `kernel` [inputs, outputs] in float8.

    The result has the dtype of `x`. The kernel's gradient is summed in float32. It has no forward-mode derivative.
    """
    return _forward(x, kernel, axes)[0]


def _multiply(a, b, dimensions, out_dtype):
    """Multiplies float8 arrays with float32 sums, and scales the result."""
    (a, scale_a), (b, scale_b) = a, b
    product = lax.dot_general(a, b, (dimensions, ((), ())), preferred_element_type=jnp.float32)
    return (product * (scale_a * scale_b)).astype(out_dtype)


def _forward(x, kernel, axes):
    rounded = round_to_float8(x, jnp.float8_e4m3fn), round_to_float8(jnp.asarray(kernel), jnp.float8_e4m3fn)
    dimensions = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    # An array of no elements carries the dtype of the kernel.
    return _multiply(*rounded, dimensions, x.dtype), (*rounded, jnp.zeros((0,), kernel.dtype))


def _backward(axes, residuals, gradient):
    x, kernel, like_kernel = residuals
    rows, dtype = x[0].ndim - axes, gradient.dtype
    gradient = round_to_float8(gradient, jnp.float8_e5m2)
    outputs = tuple(range(rows, gradient[0].ndim)), tuple(range(axes, kernel[0].ndim))
    d_x = _multiply(gradient, kernel, outputs, dtype)
    d_kernel = _multiply(x, gradient, (tuple(range(rows)),) * 2, like_kernel.dtype)
    return d_x, d_kernel


float8_dot.defvjp(_forward, _backward)
