"""Matrix products in mixed precision: bfloat16 products, gradients of the parameters summed in float32.

The gradient of a parameter is a sum over all examples, and so over the devices that hold them. Were a float32 kernel cast
to bfloat16 before the product, its gradient would be a bfloat16 array, and XLA would round each device's part before the
all-reduce. So the cast is a part of the product, and the all-reduce is one of float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

# Products of bfloat16 numbers accumulated in float32: what matrix units do with numbers that bfloat16 holds.
_BF16_PRODUCTS = lax.DotAlgorithmPreset.BF16_BF16_F32

# Rematerialisation: of what a function computes from its inputs, the backward pass keeps nothing but the inputs.
save_only_inputs = functools.partial(jax.checkpoint, prevent_cse=False)


def dot(x: jax.Array, kernel: ArrayLike, axes: int, out_dtype: DTypeLike | None = None) -> jax.Array:
    """Contracts the last `axes` axes of `x` [..., inputs] with the first `axes` of `kernel` [inputs, outputs].

    Args:
      kernel: of the dtype of `x`, and then this is `lax.dot_general`, or of a wider one: then it is cast to that of `x`,
        and its gradient is summed in its own dtype.
      out_dtype: of the result; None: that of `x`.
    """
    if x.dtype == kernel.dtype:
        return _dot(x, kernel, axes, out_dtype)
    return _mixed_dot(x, kernel, axes, jnp.dtype(out_dtype or x.dtype))


def _dot(x, kernel, axes: int, out_dtype, precision=None):
    contracting = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    return lax.dot_general(x, kernel, (contracting, ((), ())), precision=precision, preferred_element_type=out_dtype)


def _rounded_dot(x, kernel, axes: int, out_dtype):
    return _dot(x, kernel.astype(x.dtype), axes, out_dtype)


_mixed_dot = jax.custom_jvp(_rounded_dot, nondiff_argnums=(2, 3))


def _mixed_dot_jvp(axes, out_dtype, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents

    # The backward pass keeps x in bfloat16 and casts it to float32 anew.
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
    # Not `_mixed_dot`: a rematerialisation policy looks for dot_general, and sees no further than a custom_jvp.
    return _rounded_dot(x, kernel, axes, out_dtype), sum(terms[1:], terms[0])


_mixed_dot.defjvp(_mixed_dot_jvp, symbolic_zeros=True)
