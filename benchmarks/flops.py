"""FLOPs of a traced program, counted where no closed form exists."""

import functools
import math
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def count_flops(jaxpr: Any) -> float:
    """Counts FLOPs of matrix products and convolutions of a (closed) jaxpr, with the largest branch and all loop iterations.

    Zeros between input elements of a convolution (`lhs_dilation`) are not counted; zeros of the padding are counted.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        output = equation.outvars[0].aval.size if equation.outvars else 0
        if name in ("dot_general", "mixed_dot_general"):
            summed, _ = parameters["dimension_numbers"][0]
            total += 2 * output * math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
        elif name == "conv_general_dilated":
            shape, order = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec
            window = math.prod(shape[axis] for axis in order[1:])
            total += 2 * output * window / math.prod(parameters["lhs_dilation"])
        else:
            inner = [count_flops(part) for part in jaxprs_in_params(parameters)]
            total += max(inner, default=0) if name == "cond" else sum(inner) * parameters.get("length", 1)
    return total


def count_forward_flops(model: Any, method: str, shape: tuple[int, ...], dtype: Any) -> float:
    """Counts FLOPs of a method of a loaded model (with `module` and `variables`) on an array."""
    apply = functools.partial(model.module.apply, method=method)
    return count_flops(jax.make_jaxpr(apply)(model.variables, jax.ShapeDtypeStruct(shape, dtype)))
