"""The grammar of prompts. A scene has a few parts, each with a weight and a stop:

    scenes  = scene {"^" scene}                     one after the other, a story
    scene   = part {"|" part}                       all at once
    part    = content [":" weight [":" stop]]
    content = text | "image=" path | "noise=" seed

A negative weight pushes away. Below its stop a part no longer pulls. `\\` before one of `| ^ : = \\` makes it a letter.
A colon between two digits of a text is refused: in "a clock at 12:30" it is a letter, in "route 66:0.5" it begins a weight.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from train_jax.errors import UserError, in_float32

_SPECIAL = "|^:=\\"
_CONTEXT = 20  # characters around a mistake that its message shows


class PromptError(UserError):
    """A prompt that is not of the grammar; the message names the character."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to paint towards, or away from.

    Attributes:
      content: a text, a path or a seed, by `kind`.
      weight: not 0; a negative one pushes away.
      stop: the signed distance below which it no longer pulls; -inf: never.
      kind: "text", "image" or "noise".
    """

    content: str
    weight: float = 1.0
    stop: float = -math.inf
    kind: str = "text"


Scene = tuple[Part, ...]


def parse(prompt: str) -> tuple[Scene, ...]:
    """Parses the scenes of a prompt. PromptError points at the character; TypeError for a value that is no text."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt = {prompt!r}; it must be one text")
    field = (list(_letters(prompt)), len(prompt))
    return tuple(tuple(_part(prompt, part) for part in _split(scene, "|")) for scene in _split(field, "^"))


def single(prompt: str) -> Scene:
    """Parses a prompt of one scene. Raises PromptError for a prompt of several."""
    scenes = parse(prompt)
    if len(scenes) > 1:
        position = next(i for i, letter, special in _letters(prompt) if special and letter == "^")
        _refuse(prompt, position, "starts another scene, and one picture shows one: paint stories with animate (--frames)")
    return scenes[0]


_Letter = tuple[int, str, bool]  # position in the prompt, letter, whether it is special in the grammar
_Field = tuple[list[_Letter], int]  # letters, and the position of the end


def _letters(prompt: str) -> Iterator[_Letter]:
    position = 0
    while position < len(prompt):
        letter, start = prompt[position], position
        if letter == "\\":
            position += 1
            if position == len(prompt) or prompt[position] not in _SPECIAL:
                _refuse(prompt, start, f"a backslash stands before one of {' '.join(_SPECIAL)}; write \\\\ for itself")
            yield start, prompt[position], False
        else:
            yield start, letter, letter in _SPECIAL
        position += 1


def _split(field: _Field, separator: str) -> list[_Field]:
    """Splits a field at its special letters `separator`."""
    letters, end = field
    fields, current = [], []
    for letter in letters:
        if letter[2] and letter[1] == separator:
            fields.append((current, letter[0]))
            current = []
        else:
            current.append(letter)
    return [*fields, (current, end)]


def _part(prompt: str, field: _Field) -> Part:
    fields = _split(field, ":")
    content, kind = _content(prompt, *fields[0])
    if kind == "text" and len(fields) > 1:
        _refuse_clock_time(prompt, fields[0][1])
    if len(fields) > 3:
        _refuse(prompt, fields[2][1], r"a part is text:weight:stop, with no third colon; write \: for a colon of the text")
    weight = _number(prompt, *fields[1], "weight") if len(fields) > 1 else 1.0
    if weight == 0:
        _refuse(prompt, _start(*fields[1]), "weight 0 says nothing: leave the part out")
    stop = _number(prompt, *fields[2], "stop") if len(fields) > 2 else -math.inf
    # Half a squared angle lies between 0 and pi^2 / 2, and pushing away counts below 0.
    limit = 0.0 if weight < 0 else math.pi**2 / 2
    if stop >= limit:
        reason = f"with stop {stop:g} a part of weight {weight:g} never pulls; it must be below {limit:.3g}"
        _refuse(prompt, _start(*fields[2]), reason)
    return Part(content, weight, stop, kind)


def _refuse_clock_time(prompt: str, colon: int) -> None:
    """PromptError where the colon at this position has a digit on either side."""
    before, after = re.search(r"\d*$", prompt[:colon]).group(), re.match(r"\d*", prompt[colon + 1 :]).group()
    if before and after:
        reason = rf"is {after} a weight? Write {before} :{after} if it is, {before}\:{after} if it is a part of the text"
        _refuse(prompt, colon, reason)


def _content(prompt: str, letters: list[_Letter], end: int) -> tuple[str, str]:
    text = "".join(letter for _, letter, _ in letters).strip()
    if not text:
        _refuse(prompt, end, "a text is missing before it")
    equals = next((i for i, (_, letter, special) in enumerate(letters) if special and letter == "="), None)
    if equals is None:
        return text, "text"
    kind = "".join(letter for _, letter, _ in letters[:equals]).strip()
    value = "".join(letter for _, letter, _ in letters[equals + 1 :]).strip()
    if kind not in ("image", "noise"):
        _refuse(prompt, letters[equals][0], rf"image=PATH and noise=SEED are known, not {kind!r}=; write \= in a text")
    if not value:
        _refuse(prompt, end, f"{kind}= needs a value")
    if kind == "noise" and not (value.isascii() and value.isdigit()):
        _refuse(prompt, letters[equals][0], f"the seed of noise is a whole number, not {value!r}")
    return value, kind


def _number(prompt: str, letters: list[_Letter], end: int, name: str) -> float:
    text = "".join(letter for _, letter, _ in letters).strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not in_float32(value):
        _refuse(prompt, _start(letters, end), rf"{text!r} is no {name}, a number; write \: for a colon of the text")
    return value


def _start(letters: list[_Letter], end: int) -> int:
    """The position of a field's first letter that is no space."""
    return next((position for position, letter, _ in letters if not letter.isspace()), end)


def _refuse(prompt: str, position: int, reason: str):
    """Raises PromptError that points at the character."""
    before, after = prompt[max(0, position - _CONTEXT) : position], prompt[position : position + _CONTEXT]
    context = f"{before!r} and before {after!r}" if after else f"{before!r}, at the end"
    raise PromptError(f"prompt, character {position + 1} (after {context}): {reason}")
