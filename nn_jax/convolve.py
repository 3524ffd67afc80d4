"""A convolution whose gradients are exact on many devices and fast in a CPU's loops.

A float32 kernel meets a bfloat16 input as bfloat16. The kernel's gradient is a sum over all examples, and so over devices:
it is summed in the kernel's dtype (see `nn_jax.product`).

JAX tells the gradient with respect to the input by dimension numbers that swap the kernel's channels. XLA's CPU compiler
puts such numbers in order in a program's outermost computation only; in the body of a `scan` it falls back on loops that
are five times as slow. So on a CPU the tangent is told with swapped channels, and its transpose, the gradient, is in order.
Elsewhere all is as `lax` has it, which the compilers of GPUs and TPUs know.
"""


import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

from nn_jax.product import keeping_inputs

_ORDER = ("NHWC", "HWIO", "NHWC")
_SWAPPED = ("NHWC", "HWOI", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]
_Strides = tuple[int, int]


def convolve(
    x: jax.Array, kernel: ArrayLike, strides: _Strides, padding: str | _Pads, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """`lax.conv_general_dilated` of x [b, h, w, c] and a kernel [kh, kw, c, d], which is rounded to the dtype of x.

    padding: zeros before and after rows and columns, or "SAME" or "VALID". out_dtype: of the result; None: that of x.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    return _convolved(x, kernel, strides, padding, jnp.dtype(out_dtype or x.dtype))


def _applied(x, kernel, strides: _Strides, padding: _Pads, out_dtype, order=_ORDER):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=order, preferred_element_type=out_dtype
    )


def _rounded(x, kernel, strides: _Strides, padding: _Pads, out_dtype):
    return _applied(x, jnp.asarray(kernel, x.dtype), strides, padding, out_dtype)


_convolved = jax.custom_jvp(_rounded, nondiff_argnums=(2, 3, 4))


def _tangent(strides, padding, out_dtype, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents

    @keeping_inputs
    def wide(x, kernel):
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        return _applied(x, kernel, strides, padding, jnp.float32).astype(out_dtype)

    terms = []
    if type(dx) is not SymbolicZero:

        def swapped(dx, kernel):
            return _applied(dx, kernel.swapaxes(2, 3), strides, padding, out_dtype, _SWAPPED)

        def in_order(dx, kernel):
            return _applied(dx, kernel, strides, padding, out_dtype)

        # The transpose of a product multiplies numbers of one dtype: that of its result.
        dx, short = dx.astype(out_dtype), kernel.astype(x.dtype).astype(out_dtype)
        if strides == (1, 1):
            terms.append(lax.platform_dependent(dx, short, cpu=swapped, default=in_order))
        else:
            terms.append(in_order(dx, short))
    if type(dkernel) is not SymbolicZero:
        same = x.dtype == kernel.dtype
        terms.append(_applied(x, dkernel, strides, padding, out_dtype) if same else wide(x, dkernel))
    # As in `nn_jax.product`: what a rematerialisation policy may see.
    return _rounded(x, kernel, strides, padding, out_dtype), sum(terms[1:], terms[0])


_convolved.defjvp(_tangent, symbolic_zeros=True)
