"""The grammar of prompts. What a painter is told is a few parts, each with a weight and a stop:

    scenes  = scene {"^" scene}                     one after the other, a story
    scene   = part {"|" part}                       all at once
    part    = what [":" weight [":" stop]]
    what    = text | "image=" path | "noise=" seed

A negative weight pushes away. Below its stop a part no longer pulls. `\\` before one of `| ^ : = \\` makes it a letter.
A colon between two digits of a text is refused: in "a clock at 12:30" it is a letter, in "route 66:0.5" it begins a weight.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from train_jax.errors import UserError, in_float32

_SPECIAL = "|^:=\\"
_SHOWN = 20  # characters around a mistake that its message shows


class PromptError(UserError):
    """A prompt that is not of the grammar; the message names the character."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to paint towards, or away from.

    Attributes:
      kind: "text", "image" (`what` is a path) or "noise" (`what` is a seed).
      weight: not 0; a negative one pushes away.
      stop: the signed distance below which it no longer pulls; -inf: never.
    """

    what: str
    weight: float = 1.0
    stop: float = -math.inf
    kind: str = "text"


Scene = tuple[Part, ...]


def parse(prompt: str) -> tuple[Scene, ...]:
    """The scenes of a prompt. Raises PromptError that points at the character, TypeError for what is no text."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt = {prompt!r}; it must be one text")
    whole = (list(_letters(prompt)), len(prompt))
    return tuple(tuple(_part(prompt, part) for part in _split(scene, "|")) for scene in _split(whole, "^"))


def single(prompt: str) -> Scene:
    """The only scene of a prompt. Raises PromptError for one of several."""
    scenes = parse(prompt)
    if len(scenes) > 1:
        place = next(i for i, letter, special in _letters(prompt) if special and letter == "^")
        _refuse(prompt, place, "starts another scene, and one picture shows one: paint stories with animate (--frames)")
    return scenes[0]


_Letter = tuple[int, str, bool]  # place in the prompt, the letter, whether it has a meaning in the grammar
_Field = tuple[list[_Letter], int]  # and the place where it ends


def _letters(prompt: str) -> Iterator[_Letter]:
    place = 0
    while place < len(prompt):
        letter, start = prompt[place], place
        if letter == "\\":
            place += 1
            if place == len(prompt) or prompt[place] not in _SPECIAL:
                _refuse(prompt, start, f"a backslash stands before one of {' '.join(_SPECIAL)}; write \\\\ for itself")
            yield start, prompt[place], False
        else:
            yield start, letter, letter in _SPECIAL
        place += 1


def _split(field: _Field, mark: str) -> list[_Field]:
    """The fields between marks."""
    letters, end = field
    found, begun = [], []
    for item in letters:
        if item[2] and item[1] == mark:
            found.append((begun, item[0]))
            begun = []
        else:
            begun.append(item)
    return [*found, (begun, end)]


def _part(prompt: str, field: _Field) -> Part:
    fields = _split(field, ":")
    what, kind = _what(prompt, *fields[0])
    if kind == "text" and len(fields) > 1:
        _refuse_clock_time(prompt, fields[0][1])
    if len(fields) > 3:
        _refuse(prompt, fields[2][1], r"a part is text:weight:stop, with no third colon; write \: for a colon of the text")
    weight = _number(prompt, *fields[1], "weight") if len(fields) > 1 else 1.0
    if weight == 0:
        _refuse(prompt, _start(*fields[1]), "weight 0 says nothing: leave the part out")
    stop = _number(prompt, *fields[2], "stop") if len(fields) > 2 else -math.inf
    # Half a squared angle lies between 0 and pi^2 / 2, and pushing away counts below 0.
    most = 0.0 if weight < 0 else math.pi**2 / 2
    if stop >= most:
        why = f"with stop {stop:g} a part of weight {weight:g} never pulls; it must be below {most:.3g}"
        _refuse(prompt, _start(*fields[2]), why)
    return Part(what, weight, stop, kind)


def _refuse_clock_time(prompt: str, colon: int) -> None:
    """PromptError where the colon at this place has a digit on either side."""
    before, after = re.search(r"\d*$", prompt[:colon]).group(), re.match(r"\d*", prompt[colon + 1 :]).group()
    if before and after:
        why = rf"is {after} a weight? Write {before} :{after} if it is, {before}\:{after} if it is a part of the text"
        _refuse(prompt, colon, why)


def _what(prompt: str, letters: list[_Letter], end: int) -> tuple[str, str]:
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
    """Where a field's first letter that is no space stands."""
    return next((place for place, letter, _ in letters if not letter.isspace()), end)


def _refuse(prompt: str, place: int, why: str):
    before, after = prompt[max(0, place - _SHOWN) : place], prompt[place : place + _SHOWN]
    here = f"{before!r} and before {after!r}" if after else f"{before!r}, at the end"
    raise PromptError(f"prompt, character {place + 1} (after {here}): {why}")
