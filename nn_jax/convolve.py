"""A convolution whose gradient is fast in a CPU's loops, too. What `flax.linen.Conv` calls in place of `lax`'s own.

JAX tells the gradient with respect to the input by dimension numbers that swap the kernel's channels. XLA's CPU compiler
puts such numbers in order in a program's outermost computation only; in the body of a `scan` it falls back on loops that
are five times as slow. So on a CPU the tangent is told with swapped channels, and its transpose, the gradient, is in order.
Elsewhere all is as `lax` has it, which the compilers of GPUs and TPUs know.
"""

import functools

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

_ORDER = ("NHWC", "HWIO", "NHWC")
_SWAPPED = ("NHWC", "HWOI", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x, kernel, strides, padding, *, dimension_numbers, lhs_dilation=(1, 1), rhs_dilation=(1, 1), feature_group_count=1,
    precision=None,
):  # fmt: skip
    """`lax.conv_general_dilated` of [b, h, w, c] and [kh, kw, c, d]; without strides, dilation and groups by `_plain`."""
    if feature_group_count != 1 or any(step != 1 for step in (*strides, *lhs_dilation, *rhs_dilation)):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            precision=precision,
        )  # fmt: skip
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _plain(x, kernel, tuple((int(low), int(high)) for low, high in padding), precision)


def _applied(x, kernel, padding: _Pads, precision, order=_ORDER):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=order, precision=precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _plain(x, kernel, padding: _Pads, precision):
    return _applied(x, kernel, padding, precision)


def _tangent(padding, precision, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if type(dx) is not SymbolicZero:
        terms.append(
            lax.platform_dependent(
                dx,
                kernel,
                cpu=lambda dx, kernel: _applied(dx, kernel.swapaxes(2, 3), padding, precision, _SWAPPED),
                default=lambda dx, kernel: _applied(dx, kernel, padding, precision),
            )
        )
    if type(dkernel) is not SymbolicZero:
        terms.append(_applied(x, dkernel, padding, precision))
    return _plain(x, kernel, padding, precision), sum(terms[1:], terms[0])


_plain.defjvp(_tangent, symbolic_zeros=True)
