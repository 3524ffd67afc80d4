"""The prompt grammar. A scene consists of parts, each with a weight and a stop:

    scenes  = scene {"^" scene}                     a sequence of scenes, for animations
    scene   = part {"|" part}                       parts of one image
    part    = content [":" weight [":" stop]]
    content = text | "image=" path | "noise=" seed

A negative weight maximises the distance to the part. Below its stop a part has no gradient. `\\` escapes the special
characters `| ^ : = \\`. A colon between two digits of a text is an error, because it is ambiguous: it belongs to the
text in "a clock at 12:30", and precedes a weight in "route 66:0.5".
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from train_jax.errors import UserError, in_float32

_SPECIAL = "|^:=\\"
_CONTEXT = 20  # characters around an error that its message shows


class PromptError(UserError):
    """Syntax error of a prompt. The message names the position of the character."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A target of the painting: a text, an image or a noise vector.

    Attributes:
      content: the text, the path or the seed, depending on `kind`.
      weight: weight of the distance to the target, not 0. A negative weight maximises the distance.
      stop: signed distance below which the part has no gradient; -inf: no stop.
      kind: "text", "image" or "noise".
    """

    content: str
    weight: float = 1.0
    stop: float = -math.inf
    kind: str = "text"


Scene = tuple[Part, ...]


def parse(prompt: str) -> tuple[Scene, ...]:
    """Parses a prompt to scenes.

    Raises PromptError with the position of an error, and TypeError if the prompt is not a string.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt = {prompt!r}; it must be a string")
    field = (list(_tokenize(prompt)), len(prompt))
    return tuple(tuple(_parse_part(prompt, part) for part in _split_at(scene, "|")) for scene in _split_at(field, "^"))


def parse_scene(prompt: str) -> Scene:
    """Parses a prompt of a single scene. Raises PromptError for several scenes."""
    scenes = parse(prompt)
    if len(scenes) > 1:
        position = next(i for i, character, is_special in _tokenize(prompt) if is_special and character == "^")
        _raise_at(prompt, position, "starts another scene, and an image has one: use animate (--frames) for several")
    return scenes[0]


_Character = tuple[int, str, bool]  # position in the prompt, character, whether it is special in the grammar
_Field = tuple[list[_Character], int]  # characters of the field, position of its end


def _tokenize(prompt: str) -> Iterator[_Character]:
    """Yields the characters of a prompt, with escapes resolved."""
    position = 0
    while position < len(prompt):
        character, start = prompt[position], position
        if character == "\\":
            position += 1
            if position == len(prompt) or prompt[position] not in _SPECIAL:
                _raise_at(prompt, start, f"a backslash escapes one of {' '.join(_SPECIAL)}; write \\\\ for a backslash")
            yield start, prompt[position], False
        else:
            yield start, character, character in _SPECIAL
        position += 1


def _split_at(field: _Field, separator: str) -> list[_Field]:
    """Splits a field at the special characters `separator`."""
    characters, end = field
    fields, current = [], []
    for character in characters:
        if character[2] and character[1] == separator:
            fields.append((current, character[0]))
            current = []
        else:
            current.append(character)
    return [*fields, (current, end)]


def _parse_part(prompt: str, field: _Field) -> Part:
    """Parses `content [":" weight [":" stop]]`."""
    fields = _split_at(field, ":")
    content, kind = _parse_content(prompt, *fields[0])
    if kind == "text" and len(fields) > 1:
        _check_clock_time(prompt, fields[0][1])
    if len(fields) > 3:
        _raise_at(
            prompt, fields[2][1], r"a part is text:weight:stop, with no third colon; write \: for a colon of the text"
        )
    weight = _parse_number(prompt, *fields[1], "weight") if len(fields) > 1 else 1.0
    if weight == 0:
        _raise_at(prompt, _first_position(*fields[1]), "a part of weight 0 has no effect: leave it out")
    stop = _parse_number(prompt, *fields[2], "stop") if len(fields) > 2 else -math.inf
    # The distance, half a squared angle, is in [0, pi^2 / 2]; the signed distance has the sign of the weight.
    limit = 0.0 if weight < 0 else math.pi**2 / 2
    if stop >= limit:
        reason = f"with stop {stop:g} a part of weight {weight:g} never has a gradient; it must be below {limit:.3g}"
        _raise_at(prompt, _first_position(*fields[2]), reason)
    return Part(content, weight, stop, kind)


def _check_clock_time(prompt: str, colon: int) -> None:
    """Raises PromptError if the colon at this position is between two digits."""
    before, after = re.search(r"\d*$", prompt[:colon]).group(), re.match(r"\d*", prompt[colon + 1 :]).group()
    if before and after:
        reason = rf"is {after} a weight? Write {before} :{after} if it is, {before}\:{after} if it belongs to the text"
        _raise_at(prompt, colon, reason)


def _parse_content(prompt: str, characters: list[_Character], end: int) -> tuple[str, str]:
    """Parses the content of a part. Returns the content and its kind."""
    text = "".join(character for _, character, _ in characters).strip()
    if not text:
        _raise_at(prompt, end, "a text is missing before it")
    equals = next(
        (i for i, (_, character, is_special) in enumerate(characters) if is_special and character == "="), None
    )
    if equals is None:
        return text, "text"
    kind = "".join(character for _, character, _ in characters[:equals]).strip()
    value = "".join(character for _, character, _ in characters[equals + 1 :]).strip()
    if kind not in ("image", "noise"):
        _raise_at(prompt, characters[equals][0], rf"use image=PATH or noise=SEED, not {kind!r}=; write \= in a text")
    if not value:
        _raise_at(prompt, end, f"{kind}= needs a value")
    if kind == "noise" and not (value.isascii() and value.isdigit()):
        _raise_at(prompt, characters[equals][0], f"the seed of noise must be an integer of 0 or more, not {value!r}")
    return value, kind


def _parse_number(prompt: str, characters: list[_Character], end: int, field: str) -> float:
    """Parses the field "weight" or "stop" of a prompt `text:weight:stop`."""
    text = "".join(character for _, character, _ in characters).strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not in_float32(value):
        reason = rf"{text!r} is not a {field} (a number); to keep a colon in the text, write \:"
        _raise_at(prompt, _first_position(characters, end), reason)
    return value


def _first_position(characters: list[_Character], end: int) -> int:
    """Returns the position of the first character of a field that is not a space."""
    return next((position for position, character, _ in characters if not character.isspace()), end)


def _raise_at(prompt: str, position: int, reason: str):
    """Raises PromptError with the position of the character and its context."""
    before, after = prompt[max(0, position - _CONTEXT) : position], prompt[position : position + _CONTEXT]
    context = f"{before!r} and before {after!r}" if after else f"{before!r}, at the end"
    raise PromptError(f"prompt, character {position + 1} (after {context}): {reason}")
