"""A convolution whose gradients are exact on many devices and fast in a CPU's loops.

The input's dtype is the product's: a float32 kernel meets a bfloat16 input as bfloat16. The kernel's gradient is a sum over
all examples, and so over devices: it is summed in the kernel's dtype (see `nn_jax.product`).

JAX tells the gradient with respect to the input by dimension numbers that swap the kernel's channels. XLA's CPU compiler
puts such numbers in order in a program's outermost computation only; in the body of a `scan` it falls back on loops that
are five times as slow. So on a CPU the tangent is told with swapped channels, and its transpose, the gradient, is in order.
Elsewhere all is as `lax` has it, which the compilers of GPUs and TPUs know.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

_ORDER = ("NHWC", "HWIO", "NHWC")
_SWAPPED = ("NHWC", "HWOI", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]
_Strides = tuple[int, int]


def convolve(x: jax.Array, kernel: ArrayLike, strides: _Strides, padding: str | _Pads) -> jax.Array:
    """`lax.conv_general_dilated` of x [b, h, w, c] and a kernel [kh, kw, c, d], in the dtype of x.

    padding: zeros before and after rows and columns, or "SAME" or "VALID".
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolved(x, kernel, strides, tuple((int(low), int(high)) for low, high in padding))


def _applied(x, kernel, strides: _Strides, padding: _Pads, order=_ORDER):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=order)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolved(x, kernel, strides: _Strides, padding: _Pads):
    return _applied(x, jnp.asarray(kernel, x.dtype), strides, padding)


def _tangent(strides, padding, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if type(dx) is not SymbolicZero:

        def swapped(dx, kernel):
            return _applied(dx, kernel.swapaxes(2, 3), strides, padding, _SWAPPED)

        def in_order(dx, kernel):
            return _applied(dx, kernel, strides, padding)

        short = kernel.astype(x.dtype)
        if strides == (1, 1):
            terms.append(lax.platform_dependent(dx, short, cpu=swapped, default=in_order))
        else:
            terms.append(in_order(dx, short))
    if type(dkernel) is not SymbolicZero:
        terms.append(_applied(x.astype(kernel.dtype), dkernel, strides, padding).astype(x.dtype))
    return _convolved(x, kernel, strides, padding), sum(terms[1:], terms[0])


_convolved.defjvp(_tangent, symbolic_zeros=True)
