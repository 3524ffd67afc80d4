"""Matrix products in mixed precision: bfloat16 products with parameter gradients accumulated in float32.

The gradient of a parameter is a sum over examples and devices. A cast of the float32 kernel to bfloat16 before the product
would give a bfloat16 gradient, rounded on each device before the all-reduce. So the cast is part of the product's
derivative rule, and the all-reduce is in float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

# bfloat16 products with float32 accumulation; exact for inputs that bfloat16 represents.
_BF16_PRODUCTS = lax.DotAlgorithmPreset.BF16_BF16_F32

# Rematerialisation that saves only the inputs of a function for the backward pass.
save_only_inputs = functools.partial(jax.checkpoint, prevent_cse=False)


def dot(x: jax.Array, kernel: ArrayLike, axes: int, out_dtype: DTypeLike | None = None) -> jax.Array:
    """Contracts the last `axes` axes of `x` [..., inputs] with the first `axes` of `kernel` [inputs, outputs].

    Args:
      kernel: array of the dtype of `x` or of a wider dtype. A wider kernel is cast to the dtype of `x`, and its gradient is
        accumulated in the dtype of the kernel.
      out_dtype: dtype of the output; None: that of `x`.
    """
    if x.dtype == kernel.dtype:
        return _dot(x, kernel, axes, out_dtype)
    return _mixed_dot(x, kernel, axes, jnp.dtype(out_dtype or x.dtype))


def _dot(x, kernel, axes: int, out_dtype, precision=None):
    """Contracts the last `axes` axes of `x` with the first `axes` of a kernel of the same dtype."""
    contracting = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    return lax.dot_general(x, kernel, (contracting, ((), ())), precision=precision, preferred_element_type=out_dtype)


def _rounded_dot(x, kernel, axes: int, out_dtype):
    """Contracts `x` with a kernel cast to the dtype of `x`."""
    return _dot(x, kernel.astype(x.dtype), axes, out_dtype)


_mixed_dot = jax.custom_jvp(_rounded_dot, nondiff_argnums=(2, 3))


def _mixed_dot_jvp(axes, out_dtype, primals, tangents):
    """Computes the JVP; the product with the kernel's tangent is in float32."""
    (x, kernel), (dx, dkernel) = primals, tangents

    # The backward pass saves x in bfloat16 and casts it to float32 again.
    @save_only_inputs
    def float32_dot(x, kernel):
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        return _dot(x, kernel, axes, jnp.float32, _BF16_PRODUCTS).astype(out_dtype)

    terms = []
    if type(dx) is not SymbolicZero:
        rounded = kernel.astype(x.dtype)
        # The transpose of a product with a float32 result multiplies a float32 gradient with the kernel.
        terms.append(_dot(dx, rounded, axes, out_dtype) if out_dtype == x.dtype else float32_dot(dx, rounded))
    if type(dkernel) is not SymbolicZero:
        terms.append(float32_dot(x, dkernel))
    # Not `_mixed_dot`: rematerialisation policies look for dot_general, which a custom_jvp hides.
    return _rounded_dot(x, kernel, axes, out_dtype), sum(terms[1:], terms[0])


_mixed_dot.defjvp(_mixed_dot_jvp, symbolic_zeros=True)
