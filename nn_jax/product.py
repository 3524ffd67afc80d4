"""Matrix products of activations with parameters in mixed precision: bfloat16 products, gradients summed in float32.

The gradient of a parameter is a sum over all examples, and so over the devices that hold them. Were a float32 kernel rounded
to bfloat16 before the product, its gradient would be one of bfloat16, and XLA would round the part of every device before it
adds them up. So the rounding is a part of the product, and the sum is one of float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

# Products of bfloat16 numbers, summed in float32: what matrix units do with numbers that bfloat16 holds.
_SHORT = lax.DotAlgorithmPreset.BF16_BF16_F32


# Of what a function computes from its inputs alone, nothing is kept for the backward pass but the inputs.
keeping_inputs = functools.partial(jax.checkpoint, prevent_cse=False)


def product(x: jax.Array, kernel: ArrayLike, axes: int, out_dtype: DTypeLike | None = None) -> jax.Array:
    """The product of x [..., inputs] and a kernel [inputs, outputs] over `axes` axes, in the dtype of x.

    The kernel's dtype is that of x, and then all is `lax.dot_general`'s own, or a wider one. out_dtype: of the result; None:
    that of x.
    """
    if x.dtype == kernel.dtype:
        return _dot(x, kernel, axes, out_dtype)
    return _mixed(x, kernel, axes, jnp.dtype(out_dtype or x.dtype))


def _dot(x, kernel, axes: int, out_dtype, precision=None):
    summed = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    return lax.dot_general(x, kernel, (summed, ((), ())), precision=precision, preferred_element_type=out_dtype)


def _rounded(x, kernel, axes: int, out_dtype):
    return _dot(x, kernel.astype(x.dtype), axes, out_dtype)


_mixed = jax.custom_jvp(_rounded, nondiff_argnums=(2, 3))


def _tangent(axes, out_dtype, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents

    # The backward pass keeps x in bfloat16 and widens it anew.
    @keeping_inputs
    def wide(x, kernel):
        return _dot(x.astype(jnp.float32), kernel.astype(jnp.float32), axes, jnp.float32, _SHORT).astype(out_dtype)

    terms = []
    if type(dx) is not SymbolicZero:
        short = kernel.astype(x.dtype)
        # The transpose of a product with a float32 result multiplies a float32 gradient with the kernel.
        terms.append(_dot(dx, short, axes, out_dtype) if out_dtype == x.dtype else wide(dx, short))
    if type(dkernel) is not SymbolicZero:
        terms.append(wide(x, dkernel))
    # The product itself, so that a rematerialisation policy sees it (`_mixed` would be opaque to it).
    return _rounded(x, kernel, axes, out_dtype), sum(terms[1:], terms[0])


_mixed.defjvp(_tangent, symbolic_zeros=True)
