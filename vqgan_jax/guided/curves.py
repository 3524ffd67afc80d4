"""Numbers that change in time: constants, keyframes, and arithmetic expressions.

    curve      = number | keyframes | expression
    keyframes  = "(" frame ":" number {"," frame ":" number} ")"     linear between them, constant before and after
    expression = arithmetic of numbers, NAMES and FUNCTIONS by + - * / % ** and parentheses, such as 1.02+0.01*sin(t)

An expression is parsed by `ast` and evaluated node by node: nothing but the arithmetic listed here can be written.
"""

import ast
import dataclasses
import itertools
import math
import operator
import re

import numpy as np

from train_jax.errors import UserError, in_float32

NAMES = {"t": "seconds", "n": "frames", "sound": "loudness in [0, 1]", "pi": "3.14…"}
FUNCTIONS = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "exp": math.exp, "log": math.log, "sqrt": math.sqrt,
    "abs": abs, "floor": math.floor, "ceil": math.ceil, "min": min, "max": max,
}  # fmt: skip
_SEVERAL = ("min", "max")  # functions of two numbers or more; all others have one
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod, ast.Pow: operator.pow, ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
_MOST_CHARACTERS = 200
_STEP = "[0-9]{1,7}"
_CONTEXT = 20  # characters from an error on that its message shows
_ALLOWED = (
    f"allowed are numbers, {', '.join(NAMES)}, + - * / % **, parentheses, and the functions {', '.join(FUNCTIONS)}"
)


class CurveError(UserError):
    """Error of a curve: of its syntax, with the position of the character, or of its value at a frame."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A number that depends on the frame.

    Attributes:
      text: the curve as the user wrote it.
      keyframes: pairs (frame, number); (): the curve is an expression.
      tree: the expression.
    """

    text: str
    keyframes: tuple[tuple[int, float], ...] = ()
    tree: ast.expr | None = None

    @property
    def names(self) -> frozenset[str]:
        """Names of `NAMES` in the expression."""
        nodes = [] if self.tree is None else ast.walk(self.tree)
        return frozenset(NAMES) & {node.id for node in nodes if isinstance(node, ast.Name)}

    def at(self, frame: int, fps: float | int, sound: float | int = 0) -> float:
        """Computes the number at a frame, counted from 0, of which `fps` are a second.

        Raises CurveError where it is not a finite number, such as 1/0.
        """
        if self.keyframes:
            return float(np.interp(frame, *zip(*self.keyframes, strict=True)))
        try:
            value = _evaluate(self.tree, {"t": frame / fps, "n": float(frame), "sound": float(sound), "pi": math.pi})
        except (ArithmeticError, ValueError) as error:
            raise CurveError(f"{self.text!r} has no value at frame {frame}: {error}") from error
        if not math.isfinite(value):
            raise CurveError(f"{self.text!r} is {value} at frame {frame}; it must be finite")
        return float(value)


def parse(text: str) -> Curve:
    """Parses keyframes or an expression. Raises CurveError with the position of an error and what is allowed."""
    if text.strip().startswith("(") and ":" in text:
        try:
            return Curve(text, parse_keyframes(text.strip()))
        except ValueError as error:
            raise CurveError(str(error)) from error
    for position, character in enumerate(text):
        if not (character.isascii() and character.isprintable()):
            _raise_at(text, position, f"{character!r} is not allowed")
    if len(text) > _MOST_CHARACTERS:
        _raise_at(text, _MOST_CHARACTERS, f"an expression has at most {_MOST_CHARACTERS} characters")
    stripped = text.lstrip()
    try:
        tree = ast.parse(stripped, mode="eval").body
    except SyntaxError as error:
        position = len(text) - len(stripped) + error.offset - 1 if error.offset else len(text)
        _raise_at(text, position, "this is not arithmetic")
    _check(text, len(text) - len(stripped), tree)
    return Curve(text, tree=tree)


def parse_keyframes(text: str) -> tuple[tuple[int, float], ...]:
    """Parses `(step:number, step:number)`. Raises ValueError for other texts, and for steps that do not increase."""
    pairs = [re.fullmatch(rf"\s*({_STEP})\s*:([^:]+)", pair) for pair in text[1:-1].split(",")]
    try:
        keyframes = tuple((int(pair[1]), float(pair[2])) for pair in pairs if pair)
    except ValueError:
        keyframes = ()
    is_complete = text.endswith(")") and len(keyframes) == len(pairs)
    if not is_complete or not all(in_float32(number) for _, number in keyframes):
        raise ValueError(f"{text!r} are not keyframes; write (step:number, step:number), such as (0:1, 100:0)")
    steps = [step for step, _ in keyframes]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"the steps of keyframes must increase, not {', '.join(map(str, steps))}")
    return keyframes


def _check(text: str, start: int, node: ast.expr) -> None:
    """Raises CurveError for a node that is not arithmetic. `start` is the position of the expression in the text."""
    position = start + node.col_offset
    if isinstance(node, ast.Constant):
        if type(node.value) not in (int, float) or not in_float32(node.value):
            _raise_at(text, position, f"{node.value!r} is not a number of float32")
    elif isinstance(node, ast.Name):
        if node.id not in NAMES:
            _raise_at(text, position, f"{node.id!r} is not a name")
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        _check(text, start, node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _check(text, start, node.left)
        _check(text, start, node.right)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name, count = node.func.id, len(node.args)
        if name not in FUNCTIONS:
            _raise_at(text, position, f"{name!r} is not a function")
        if node.keywords or (count < 2 if name in _SEVERAL else count != 1):
            _raise_at(text, position, f"{name} takes {'two numbers or more' if name in _SEVERAL else 'one number'}")
        for argument in node.args:
            _check(text, start, argument)
    else:
        _raise_at(text, position, f"{ast.unparse(node)!r} is not arithmetic")


def _evaluate(node: ast.expr, values: dict[str, float]) -> float:
    """Evaluates a checked expression in floating point, in which powers of powers overflow at once."""
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_evaluate(node.operand, values))
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, values), _evaluate(node.right, values)
        value = _OPERATORS[type(node.op)](left, right)
        if isinstance(value, complex):
            raise ValueError(f"{left:g} ** {right:g} is not real")
        return value
    return float(FUNCTIONS[node.func.id](*(_evaluate(argument, values) for argument in node.args)))


def _raise_at(text: str, position: int, reason: str):
    """Raises CurveError with the position of the character and what is allowed."""
    rest = text[position : position + _CONTEXT]
    place = f"character {position + 1} ({f'at {rest!r}' if rest else 'at the end'})"
    raise CurveError(f"{text!r}, {place}: {reason}; {_ALLOWED}")
