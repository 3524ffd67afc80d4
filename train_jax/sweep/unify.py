"""Unification of traced functions that differ only in numbers: these numbers become inputs of one function.

    function, numbers = unify([jax.make_jaxpr(f)(x) for f in functions])
    jax.vmap(function, in_axes=(0, None))(numbers, flat_x)        # all functions in one program

Options of a run, such as a learning rate, a loss weight or a seed, end up as literals and constants of its traced training
step. So runs can share a program without any model knowing of it: whatever an option becomes (a rate, its inverse, the end
of a schedule), the traces are compared equation by equation, and the numbers that differ are what the option is.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Of functions with their own derivative only the function itself is evaluated: traces hold the derivatives that are used.
_OWN_DERIVATIVE = {"custom_jvp_call", "custom_vjp_call"}
# Operations whose functions may hold numbers: `_apply` rebuilds them.
_REBUILT = _OWN_DERIVATIVE | {
    "jit", "pjit", "closed_call", "core_call", "shard_map", "checkpoint", "remat", "remat2", "scan", "while", "cond",
}  # fmt: skip
_Place = tuple[Any, ...]  # path of a number: indices of equations, names of parameters, index of the operand


class Mismatch(ValueError):
    """Difference between traced functions that is not a number."""


def unify(functions: Sequence[ClosedJaxpr]) -> tuple[Callable, list[np.ndarray | jax.Array]]:
    """Unifies traced functions to one function of the numbers that differ.

    Args:
      functions: traced functions of the same inputs.

    Returns `(function, numbers)`. `function(numbers_of_one, inputs)` takes and returns lists of arrays and equals the i-th
    function if `numbers_of_one` are the i-th rows of `numbers`, whose arrays have a first axis of functions. Sharding
    constraints are left out: the functions must have been traced for one device.

    Raises Mismatch if the functions differ in more than numbers: in operations, shapes, dtypes, or branches of Python code.
    """
    numbers: dict[_Place, list] = {}
    _compare_closed(functions, (), numbers)
    places = list(numbers)
    first = functions[0]

    def function(values: Sequence, inputs: Sequence) -> list:
        return _evaluate(first.jaxpr, first.consts, (), dict(zip(places, values, strict=True)), inputs)

    return function, [_stack(values) for values in numbers.values()]


def _compare_closed(functions: Sequence[ClosedJaxpr], path: _Place, numbers: dict[_Place, list]) -> None:
    """Compares functions with constants, and adds the numbers that differ to `numbers`."""
    if len({len(function.consts) for function in functions}) > 1:
        raise Mismatch(f"the numbers of constants differ ({_describe(path)})")
    for index, constants in enumerate(zip(*(function.consts for function in functions), strict=True)):
        _compare_values(constants, (*path, "constant", index), numbers)
    _compare([function.jaxpr for function in functions], path, numbers)


def _compare(jaxprs: Sequence[Jaxpr], path: _Place, numbers: dict[_Place, list]) -> None:
    """Compares functions equation by equation, and adds the numbers that differ to `numbers`."""
    if all(jaxpr is jaxprs[0] for jaxpr in jaxprs):
        return
    if len({len(jaxpr.eqns) for jaxpr in jaxprs}) > 1:
        raise Mismatch(f"the numbers of operations differ ({_describe(path)})")
    names = [{} for _ in jaxprs]  # variable -> order of its definition
    for variables in ("constvars", "invars"):
        _define([getattr(jaxpr, variables) for jaxpr in jaxprs], names, path)
    for index, equations in enumerate(zip(*(jaxpr.eqns for jaxpr in jaxprs), strict=True)):
        place = (*path, index)
        kinds = {equation.primitive.name for equation in equations}
        if len(kinds) > 1:
            raise Mismatch(f"operations differ: {', '.join(sorted(kinds))} ({_describe(place)})")
        _compare_operands([equation.invars for equation in equations], names, place, numbers)
        _compare_parameters(equations, place, numbers)
        _define([equation.outvars for equation in equations], names, place)
    _compare_operands([jaxpr.outvars for jaxpr in jaxprs], names, (*path, "results"), numbers)


def _define(variables: Sequence[Sequence], names: list[dict], path: _Place) -> None:
    """Numbers newly defined variables, which must have the same shapes and dtypes."""
    for row in _zip_equal(variables, path):
        if len({(v.aval.shape, v.aval.dtype) if hasattr(v.aval, "shape") else v.aval for v in row}) > 1:
            raise Mismatch(f"shapes differ: {', '.join(str(v.aval) for v in row)} ({_describe(path)})")
        for variable, of_function in zip(row, names, strict=True):
            of_function[variable] = len(of_function)


def _compare_operands(operands: Sequence[Sequence], names: list[dict], path: _Place, numbers: dict) -> None:
    for index, row in enumerate(_zip_equal(operands, path)):
        if all(isinstance(operand, Literal) for operand in row):
            _compare_values([operand.val for operand in row], (*path, index), numbers)
        elif any(isinstance(operand, Literal) for operand in row) or (
            len({of_function[operand] for operand, of_function in zip(row, names, strict=True)}) > 1
        ):
            raise Mismatch(f"operands differ ({_describe(path)})")


def _compare_values(values: Sequence, place: _Place, numbers: dict[_Place, list]) -> None:
    """Compares literals or constants. Adds them to `numbers` if they differ."""
    if all(value is values[0] for value in values):
        return
    if len({(np.shape(value), _dtype(value)) for value in values}) > 1:
        raise Mismatch(f"shapes of constants differ ({_describe(place)})")
    first = _to_bytes(values[0])
    if any(_to_bytes(value) != first for value in values[1:]):
        numbers[place] = list(values)


def _compare_parameters(equations: Sequence, place: _Place, numbers: dict[_Place, list]) -> None:
    """Compares the parameters of an operation; parameters that are functions are compared as functions."""
    name = equations[0].primitive.name
    for key in {key: None for equation in equations for key in equation.params}:
        values = [equation.params.get(key) for equation in equations]
        functions = [list(_functions(value)) for value in values]
        if any(functions):
            for index, row in enumerate(_zip_equal(functions, place)):
                inner = (*place, key, index)
                if all(isinstance(function, ClosedJaxpr) for function in row):
                    _compare_closed(row, inner, numbers)
                else:
                    _compare(row, inner, numbers)
                if name not in _REBUILT and any(other[: len(inner)] == inner for other in numbers):
                    raise Mismatch(f"numbers inside of {name} differ, which cannot be its inputs ({_describe(place)})")
        elif name not in _OWN_DERIVATIVE and any(not _equal(value, values[0]) for value in values[1:]):
            raise Mismatch(f"{name} differs in {key}: {', '.join(map(str, values))} ({_describe(place)})")


def _evaluate(jaxpr: Jaxpr, consts: Sequence, path: _Place, numbers: Mapping[_Place, Any], inputs: Sequence) -> list:
    """Evaluates a function with other numbers at some places."""
    consts = [numbers.get((*path, "constant", index), constant) for index, constant in enumerate(consts)]
    environment = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(operand, place: _Place):
        if not isinstance(operand, Literal):
            return environment[operand]
        # As a plain array: a literal remembers the mesh of its trace, which may not be the mesh of this one.
        return numbers[place] if place in numbers else np.asarray(operand.val, operand.aval.dtype)

    for index, equation in enumerate(jaxpr.eqns):
        place = (*path, index)
        operands = [read(operand, (*place, position)) for position, operand in enumerate(equation.invars)]
        with jax.named_scope(str(equation.source_info.name_stack)):
            environment.update(zip(equation.outvars, _apply(equation, place, numbers, operands), strict=True))
    return [read(operand, (*path, "results", position)) for position, operand in enumerate(jaxpr.outvars)]


def _apply(equation, place: _Place, numbers: Mapping[_Place, Any], operands: list) -> list:
    """Applies one operation; operations that contain functions are rebuilt around `_evaluate`."""
    name, params = equation.primitive.name, equation.params

    def call(key: str, index: int = 0) -> Callable:
        function = list(_functions(params[key]))[index]
        jaxpr, consts = (function.jaxpr, function.consts) if isinstance(function, ClosedJaxpr) else (function, ())
        return lambda *inputs: _evaluate(jaxpr, consts, (*place, key, index), numbers, inputs)

    if name in ("sharding_constraint", "reshard"):
        return operands
    if name in ("jit", "pjit", "closed_call", "core_call"):
        return call("call_jaxpr" if "call_jaxpr" in params else "jaxpr")(*operands)
    if name in _OWN_DERIVATIVE:
        return call("call_jaxpr")(*operands)
    if name == "shard_map":
        return _name_axes(call("jaxpr"), params["mesh"].axis_names)(*operands)
    if name in ("checkpoint", "remat", "remat2"):
        return _rematerialise(equation, call("jaxpr"), operands)
    if name == "scan":
        # By their ranks, since versions of JAX name the counts differently: a loop's slices have lost an axis.
        inner = next(_functions(params["jaxpr"]))
        inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        count = sum(_rank(a) == _rank(b) for a, b in zip(equation.outvars, inner.outvars, strict=True))
        sliced = sum(_rank(a) > _rank(b) for a, b in zip(equation.invars, inner.invars, strict=True))
        consts, carry, xs = _split(operands, len(operands) - sliced - count, count)

        def body(carry, x):
            results = call("jaxpr")(*consts, *carry, *x)
            return results[:count], results[count:]

        carry, ys = jax.lax.scan(
            body, carry, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
        )
        return [*carry, *ys]
    if name == "while":
        of_condition, of_body, carry = _split(operands, params["cond_nconsts"], params["body_nconsts"])
        return jax.lax.while_loop(
            lambda carry: call("cond_jaxpr")(*of_condition, *carry)[0],
            lambda carry: call("body_jaxpr")(*of_body, *carry),
            carry,
        )
    if name == "cond":
        branches = [call("branches", index) for index in range(len(params["branches"]))]
        return jax.lax.switch(operands[0], branches, *operands[1:])
    params = {key: None if isinstance(value, jax.sharding.Sharding) else value for key, value in params.items()}
    results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(params))
    return results if equation.primitive.multiple_results else [results]


def _name_axes(function: Callable, names: Sequence[str]) -> Callable:
    """Gives `function`, which was mapped over a mesh of one device, the mesh's axes for its collectives, of size 1."""
    for name in names:
        mapped = jax.vmap(function, in_axes=None, axis_size=1, axis_name=name)
        function = lambda *inputs, mapped=mapped: [result[0] for result in mapped(*inputs)]  # noqa: E731
    return function


def _rematerialise(equation, function: Callable, operands: list) -> list:
    """Applies a function whose residuals are recomputed, with the parameters of the traced operation.

    `jax.checkpoint` would forget that its derivative has been taken, and the compiler would merge both computations.
    """
    closed = jax.make_jaxpr(function)(*operands)
    # Tracers that the function refers to, such as numbers, become constants of the new trace: operands of the operation.
    jaxpr = closed.jaxpr
    merged = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    return equation.primitive.bind(*closed.consts, *operands, **(equation.params | {"jaxpr": merged}))


def _functions(value) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yields the functions among the values of a parameter."""
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, ClosedJaxpr | Jaxpr):
            yield item


def _rank(variable) -> int:
    return len(variable.aval.shape)


def _split(operands: list, *sizes: int) -> list[list]:
    bounds = [0, *itertools.accumulate(sizes), len(operands)]
    return [operands[start:stop] for start, stop in itertools.pairwise(bounds)]


def _zip_equal(rows: Sequence[Sequence], path: _Place) -> Iterator[tuple]:
    if len({len(row) for row in rows}) > 1:
        raise Mismatch(f"the numbers of operands differ ({_describe(path)})")
    return zip(*rows, strict=True)


def _equal(a, b) -> bool:
    """Returns whether parameters of operations are equal. Arrays are compared by value."""
    if isinstance(a, np.ndarray | jax.Array) or isinstance(b, np.ndarray | jax.Array):
        return np.shape(a) == np.shape(b) and _dtype(a) == _dtype(b) and _to_bytes(a) == _to_bytes(b)
    return bool(a == b)


def _dtype(value):
    return value.dtype if hasattr(value, "dtype") else jax.numpy.result_type(value)


def _to_bytes(value) -> bytes:
    """Returns the content of an array, of a random key or of a number. NaN equals NaN."""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value, _dtype(value)).tobytes()


def _stack(values: list):
    """Stacks numbers of all functions along a new first axis."""
    if isinstance(values[0], jax.Array):
        return jax.numpy.stack(values)
    return np.stack([np.asarray(value, _dtype(value)) for value in values])


def _describe(path: _Place) -> str:
    """Describes a place in a function."""
    return " / ".join(str(part) for part in path) or "the function"
