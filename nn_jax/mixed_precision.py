"""Matrix products in mixed precision: bfloat16 products with parameter gradients accumulated in float32.

The gradient of a parameter is a sum over examples and devices. A cast of the float32 kernel to bfloat16 before the product
would give a bfloat16 gradient, rounded on each device before the all-reduce. So the cast is part of the product's
derivative rule, and the all-reduce is in float32.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike, DTypeLike

# Rematerialisation that saves only the inputs of a function for the backward pass.
save_only_inputs = functools.partial(jax.checkpoint, prevent_cse=False)


def dot(x: jax.Array, kernel: ArrayLike, axes: int, out_dtype: DTypeLike | None = None) -> jax.Array:
    """Contracts the last `axes` axes of `x` [..., inputs] with the first `axes` of `kernel` [inputs, outputs].

    Args:
      kernel: array of the dtype of `x` or of a wider dtype. A wider kernel is rounded to the dtype of `x`; its gradient
        is accumulated in the dtype of the kernel.
      out_dtype: dtype of the output; None: that of `x`.
    """
    dimensions = ((tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))), ((), ()))
    if x.dtype == kernel.dtype and out_dtype in (None, x.dtype):
        return lax.dot_general(x, kernel, dimensions)
    return mixed_dot_general(x, jnp.asarray(kernel), dimensions, x.dtype, out_dtype or x.dtype)


_ROUNDED = ("kernel", "tokens")


def round_weights(variables: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Casts kernels and tables of token embeddings to the dtype of the products, where they are (NumPy arrays on the host).

    `dot` and `convolve` would round kernels to this dtype at each call. Other parameters keep their dtype: they are small,
    and norms, biases, positions and distances to the codes of a quantiser are computed in float32.
    """

    def cast(path, x):
        names = [str(getattr(key, "key", key)) for key in path]
        is_rounded = names[-1] in _ROUNDED and "quantizer" not in names
        return x.astype(dtype) if is_rounded and x.dtype != dtype else x

    return jax.tree_util.tree_map_with_path(cast, dict(variables))


def mixed_dot_general(a: jax.Array, b: jax.Array, dimension_numbers: tuple, dtype: DTypeLike, out_dtype: DTypeLike):
    """Computes `lax.dot_general` of `a` and `b` rounded to `dtype`, with float32 sums and the result in `out_dtype`.

    Only the derivative differs from rounding and multiplying: the cotangent of an operand is again such a product, in the
    dtype of the operand before rounding. So a float32 kernel gets a float32 gradient from a product of bfloat16 numbers,
    which matrix units multiply at full rate. (The transpose of a product of rounded numbers would round the gradient, and
    for the transpose of a product in float32, XLA writes float32 copies of both operands to memory.) The cotangent of a
    result wider than `dtype` is not rounded.
    """
    (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
    numbers = tuple(tuple(map(tuple, pair)) for pair in ((contract_a, contract_b), (batch_a, batch_b)))
    return mixed_dot_general_p.bind(
        a, b, dimension_numbers=numbers, dtype=jnp.dtype(dtype), out_dtype=jnp.dtype(out_dtype)
    )


mixed_dot_general_p = Primitive("mixed_dot_general")


def _evaluate(a, b, *, dimension_numbers, dtype, out_dtype):
    def product(a, b):
        return lax.dot_general(a, b, dimension_numbers, preferred_element_type=out_dtype)

    def on_cpu(a, b):  # XLA's CPU compiler supports no product of bfloat16 numbers with a float32 result
        return product(*(_round(x, dtype).astype(out_dtype) for x in (a, b)))

    a, b = a.astype(dtype), b.astype(dtype)
    return product(a, b) if dtype == out_dtype else lax.platform_dependent(a, b, cpu=on_cpu, default=product)


def _round(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rounds to the precision of `dtype` in the dtype of `x`. XLA may leave out a cast to bfloat16 and back."""
    bits = jnp.finfo(dtype)
    return lax.reduce_precision(x, bits.nexp, bits.nmant)


def _abstract_result(a, b, *, dimension_numbers, dtype, out_dtype):
    del dtype
    (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
    kept_a, kept_b = _kept(a.ndim, contract_a, batch_a), _kept(b.ndim, contract_b, batch_b)
    return jax.core.ShapedArray([a.shape[i] for i in (*batch_a, *kept_a)] + [b.shape[i] for i in kept_b], out_dtype)


def _transpose_first(cotangent, a, b, *, dimension_numbers, dtype, out_dtype, swap: bool = False):
    """Computes the cotangent of `a`, the first operand, or with `swap` the second."""
    if dtype != out_dtype:  # logits or embeddings, whose few numbers decide the direction of all gradients
        b, dtype = _round(b, dtype).astype(out_dtype), out_dtype
    (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
    kept_a, kept_b = _kept(a.aval.ndim, contract_a, batch_a), _kept(b.ndim, contract_b, batch_b)
    first, second = (kept_b, kept_a) if swap else (kept_a, kept_b)  # axes of the result: batch, first, second
    batch = tuple(range(len(batch_a)))
    of_b = range(len(batch), len(batch) + len(first)) if swap else range(len(batch) + len(first), cotangent.ndim)
    dimensions = ((tuple(of_b), kept_b), (batch, batch_b))
    product = mixed_dot_general(cotangent, b, dimensions, dtype, a.aval.dtype)  # axes: batch, kept of a, contracted of b
    contracted = tuple(np.take(contract_a, np.argsort(contract_b)).astype(int)) if contract_a else ()
    return lax.transpose(product, np.argsort((*batch_a, *kept_a, *contracted)))


def _transpose_second(cotangent, a, b, *, dimension_numbers, **options):
    (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
    swapped = ((contract_b, contract_a), (batch_b, batch_a))
    return _transpose_first(cotangent, b, a, dimension_numbers=swapped, swap=True, **options)


def _kept(ndim: int, *used: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in {i for axes in used for i in axes})


def _batch(operands, axes, *, dimension_numbers, **options):
    (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
    is_batched = [axis is not None for axis in axes]
    a, b = (jnp.moveaxis(x, axis, 0) if axis is not None else x for x, axis in zip(operands, axes, strict=True))
    contract_a, batch_a = (tuple(i + is_batched[0] for i in x) for x in (contract_a, batch_a))
    contract_b, batch_b = (tuple(i + is_batched[1] for i in x) for x in (contract_b, batch_b))
    if all(is_batched):
        batch_a, batch_b, axis = (0, *batch_a), (0, *batch_b), 0
    else:  # an axis of one operand alone is the first of those it keeps
        axis = len(batch_a) if is_batched[0] else a.ndim - len(contract_a)
    return mixed_dot_general(a, b, ((contract_a, contract_b), (batch_a, batch_b)), **options), axis


mixed_dot_general_p.def_impl(jax.jit(_evaluate, static_argnames=("dimension_numbers", "dtype", "out_dtype")))
mixed_dot_general_p.def_abstract_eval(_abstract_result)
mlir.register_lowering(mixed_dot_general_p, mlir.lower_fun(_evaluate, multiple_results=False))
ad.defbilinear(mixed_dot_general_p, _transpose_first, _transpose_second)
batching.primitive_batchers[mixed_dot_general_p] = _batch
