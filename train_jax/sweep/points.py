"""Points of a sweep: which options its runs set, and to which values.

    make_points("clip/digits", grid={"optim.lr": [1e-3, 3e-4], "model.loss": ["softmax", "sigmoid"]}, seeds=3)

A point is a dict of options by dotted name. A config file may define its own points: `sweep()` yields such dicts. They are
combined with those of the grid and the seeds, filtered, and checked like any override.
"""

import ast
import dataclasses
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import config_file, hooks, optim
from train_jax.errors import ConfigError

_MAX_NAME = 120  # bytes of the name of a run directory; file systems allow 255
_SAFE = re.compile(r"[^\w.+,=()-]+")


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: name of its run directory, such as "lr=0.001,loss=softmax,seed=0".
      options: options that the sweep sets, by dotted name.
      config: config of the run, not resolved.
    """

    name: str
    options: Mapping[str, Any]
    config: ConfigDict


def make_points(
    config: str,
    *,
    overrides: Sequence[str] = (),
    machine: str = "",
    grid: Mapping[str, Sequence] | None = None,
    seeds: int = 1,
    where: str = "",
) -> list[Point]:
    """Makes the points of a sweep: those of the config's `sweep()` x the grid x the seeds.

    Args:
      config: config file or name.
      overrides: options of all runs, as `--config.NAME=VALUE`.
      machine: machine preset; empty: none.
      grid: dotted name -> values.
      seeds: number of random seeds, from `config.seed` upwards.
      where: condition on options, such as "not (optim.lr > 1e-3 and model.loss == 'sigmoid')"; empty: all points.

    Raises ConfigError for an option that does not exist, a value of the wrong type or out of range, a point that occurs
    twice, and if there is no point.
    """
    base = config_file.load(config)
    base = config_file.on_machine(base, machine) if machine else base
    base = config_file.override(base, overrides)
    if seeds < 1:
        raise ConfigError(f"--seeds={seeds}; it must be at least 1")
    if seeds > 1:
        grid = {**(grid or {})}
        if "seed" in grid:
            raise ConfigError("--seeds and --grid seed=… both set the seed: leave one out")
        first = config_lib.fill(base).seed
        grid["seed"] = list(range(first, first + seeds))
    options = [
        config_file.as_plain({**stated, **dict(zip(grid or {}, values, strict=True))})
        for stated in config_file.load_sweep(config)
        for values in itertools.product(*(grid or {}).values())
    ]
    # Names are of all points, so that a condition does not change them.
    names = name_points(options)
    # Points that the condition leaves out may have options that no run could have.
    kept = [
        (name, point)
        for name, point in zip(names, options, strict=True)
        if not where or evaluate_condition(where, config_lib.fill(config_file.set_options(base, point)))
    ]
    if not kept:
        raise ConfigError(f"--where {where!r} leaves none of {len(options)} points")
    return [Point(name, point, check(base, point)) for name, point in kept]


def check(base: ConfigDict, options: Mapping[str, Any]) -> ConfigDict:
    """Overlays a config with options by dotted name. Raises ConfigError for options that no run could have."""
    config = config_file.set_options(base, options)
    try:
        resolved = config_lib.resolve(config)
        optim.check_rules(resolved.optim, resolved.steps)
        hooks.import_classes(resolved.hooks)
    except ConfigError as error:
        stated = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ConfigError(f"{error} (at the point {stated})" if stated else str(error)) from error
    return config


def parse_grid(words: Iterable[str], config: ConfigDict) -> dict[str, list]:
    """Parses words `NAME=VALUE,VALUE,…` to dotted name -> values.

    Commas inside brackets or quotes belong to a value: `model.widths=(1,2),(3,4)`. Values are read as those of overrides.
    Raises ConfigError for another form, and for a name that occurs twice.
    """
    grid: dict[str, list] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.removeprefix("config.")
        if not equals or not name or not text:
            raise ConfigError(f"--grid {word}: a grid is written NAME=VALUE,VALUE,…, such as optim.lr=1e-3,3e-4")
        if name in grid:
            raise ConfigError(f"--grid {name} occurs twice: write all of its values behind one of them")
        default = config_file.option(config_lib.fill(config), name)
        grid[name] = [config_file.parse_value(value, default) for value in _split_values(text)]
        if len({repr(value) for value in grid[name]}) < len(grid[name]):
            raise ConfigError(f"--grid {word}: a value occurs twice")
    return grid


def _split_values(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            values.append("")
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        values[-1] += character
    return values


def name_points(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names points by their options, each by the shortest end of its name that is unique: "lr=0.001,seed=0".

    Raises ConfigError if two points have the same options.
    """
    options = list(dict.fromkeys(option for point in points for option in point))
    short = {option: _shorten(option, options) for option in options}
    names = [",".join(f"{short[option]}={_format_value(value)}" for option, value in point.items()) for point in points]
    names = [_SAFE.sub("-", name) or "run" for name in names]
    for name in names:
        if len(name.encode()) > _MAX_NAME:
            raise ConfigError(
                f"the name {name[:60]}… of a run is longer than {_MAX_NAME} bytes: set what all runs share by --config.…"
            )
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"{names.count(twice[0])} points have the name {twice[0]}: points must differ in their options")
    return names


def _shorten(option: str, options: Sequence[str]) -> str:
    parts = option.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in options) == 1)


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value).replace(" ", "")


_OPERATORS: dict[type, Callable] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b, ast.Add: operator.add,
    ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Mod: operator.mod, ast.Not: operator.not_,
    ast.USub: operator.neg,
}  # fmt: skip


def evaluate_condition(text: str, config: ConfigDict) -> bool:
    """Evaluates a condition on options by dotted name: comparisons, `and`, `or`, `not`, `in` and arithmetic.

    Raises ConfigError for anything else, and for an option that does not exist.
    """

    def evaluate(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return evaluate(body)
            case ast.Constant(value=value):
                return value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(evaluate(item) for item in items)
            case ast.Name() | ast.Attribute():
                return _read_option(ast.unparse(node), config)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(evaluate(value) for value in values)
            case ast.BoolOp(op=ast.Or(), values=values):
                return any(evaluate(value) for value in values)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](evaluate(operand))
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](evaluate(left), evaluate(right))
            case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _OPERATORS for op in ops):
                values = [evaluate(value) for value in (left, *comparators)]
                pairs = zip(ops, itertools.pairwise(values), strict=True)
                return all(_OPERATORS[type(op)](*pair) for op, pair in pairs)
        raise ConfigError(f"--where {text!r}: {ast.unparse(node)!r} is not a comparison of options")

    try:
        return bool(evaluate(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"--where {text!r}: {error}") from error


def _read_option(name: str, config: ConfigDict) -> Any:
    value: Any = config
    for key in name.split("."):
        if not isinstance(value, ConfigDict) or key not in value:
            raise ConfigError(f"--where: there is no option {name!r}; strings are quoted, as in model.loss == 'sigmoid'")
        value = value[key]
    return value
