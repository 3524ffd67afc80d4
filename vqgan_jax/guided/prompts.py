"""The prompt grammar. A scene consists of parts, each with a weight and a stop:

    scenes    = scene {"^" scene}                     a sequence of scenes, for animations
    scene     = part {"|" part}                       parts of one image
    part      = content {":" field}
    content   = text | "image=" path | "noise=" seed | "direction=" path
    field     = weight | stop | "place=" place | "mask=" path | "from=" step | "until=" step
    weight    = number | keyframes | "(" expression ")"   the first field without a name, stop is the second
    keyframes = "(" step ":" number {"," step ":" number} ")"
    place     = a name in PLACES | left "," top "," right "," bottom

A negative weight maximises the distance to the part. Below its stop a part has no gradient. Between keyframes the weight is
linear in steps, before the first and after the last it is theirs; it is 0 before the step `from` and from the step `until`
on. In animations it may be an expression of `guided.curves`, such as `(0.5+sound)`. A part with a place, a box in fractions
of the sides, or with a mask, an image that is white where the part sees the picture, has no gradient elsewhere.

`\\` escapes the special characters `| ^ : = \\`. A colon between two digits of a text is an error, because it is ambiguous:
it belongs to the text in "a clock at 12:30", and precedes a weight in "route 66:0.5".
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from train_jax.errors import UserError, in_float32
from vqgan_jax.guided import curves

# Boxes (left, top, right, bottom) by name, in fractions of the sides.
PLACES = {
    "left half": (0.0, 0.0, 0.5, 1.0), "right half": (0.5, 0.0, 1.0, 1.0),
    "top half": (0.0, 0.0, 1.0, 0.5), "bottom half": (0.0, 0.5, 1.0, 1.0),
    "left": (0.0, 0.0, 1 / 3, 1.0), "right": (2 / 3, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 1 / 3), "bottom": (0.0, 2 / 3, 1.0, 1.0),
    "top left": (0.0, 0.0, 0.5, 0.5), "top right": (0.5, 0.0, 1.0, 0.5),
    "bottom left": (0.0, 0.5, 0.5, 1.0), "bottom right": (0.5, 0.5, 1.0, 1.0),
    "centre": (0.25, 0.25, 0.75, 0.75),
}  # fmt: skip
_FIELDS = ("place", "mask", "from", "until")
_STEP = "[0-9]{1,7}"
_SPECIAL = "|^:=\\"
_CONTEXT = 20  # characters around an error that its message shows


class PromptError(UserError):
    """Syntax error of a prompt. The message names the position of the character."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A target of the painting: a text, an image, a noise vector or a direction of embeddings.

    Attributes:
      content: the text, the path or the seed, depending on `kind`.
      weight: weight of the distance to the target, not 0, or the largest of the keyframes. A negative weight maximises the
        distance.
      stop: signed distance below which the part has no gradient; -inf: no stop.
      kind: "text", "image", "noise" or "direction".
      keyframes: pairs (step, weight) between which the weight is linear; (): it is constant.
      start, end: first step of the part, and the step after its last; None: the last of the painting.
      place: box (left, top, right, bottom) that the part sees, in fractions of the sides; None: the whole picture.
      mask: path of the image that is white where the part sees the picture.
      expression: weight at each frame of an animation, in the grammar of `guided.curves`; "": it is `weight`.
    """

    content: str
    weight: float = 1.0
    stop: float = -math.inf
    kind: str = "text"
    keyframes: tuple[tuple[int, float], ...] = ()
    start: int = 0
    end: int | None = None
    place: tuple[float, float, float, float] | None = None
    mask: str | None = None
    expression: str = ""

    @property
    def files(self) -> list[str]:
        """Paths of the files that the part names."""
        return ([self.content] if self.kind in ("image", "direction") else []) + ([] if self.mask is None else [self.mask])

    @property
    def is_timed(self) -> bool:
        """Whether the weight depends on the step."""
        return bool(self.keyframes) or self.start > 0 or self.end is not None


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
    for part in scenes[0]:
        if part.expression:
            reason = "changes by frames, and an image has none: write keyframes (step:weight), or use animate (--frames)"
            raise PromptError(f"the weight {part.expression} of {part.content!r} {reason}")
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
    """Parses `content {":" field}`."""
    (content, *fields) = _join_keyframes(_split_at(field, ":"))
    text, kind = _parse_content(prompt, *content)
    if kind == "text" and fields:
        _check_clock_time(prompt, content[1])
    named = _parse_named_fields(prompt, [field for field in fields if _find_equals(field[0]) is not None])
    fields = [field for field in fields if _find_equals(field[0]) is None]
    if len(fields) > 2:
        _raise_at(
            prompt, fields[1][1], r"a part is text:weight:stop, with no third colon; write \: for a colon of the text"
        )
    in_time = _to_text(fields[0][0]) if fields and _to_text(fields[0][0]).startswith("(") else ""
    keyframes = _parse_curve(prompt, *fields[0]).keyframes if in_time else ()
    expression = "" if keyframes else in_time
    weight = max(weight for _, weight in keyframes) if keyframes else 1.0
    if fields and not in_time:
        weight = _parse_number(prompt, *fields[0], "weight")
    if weight == 0 and not any(weight for _, weight in keyframes):
        _raise_at(prompt, _first_position(*fields[0]), "a part of weight 0 has no effect: leave it out")
    stop = _parse_number(prompt, *fields[1], "stop") if len(fields) > 1 else -math.inf
    # The distance, half a squared angle, is in [0, pi^2 / 2]; the signed distance has the sign of the weight.
    limit = 0.0 if weight <= 0 else math.pi**2 / 2
    if stop >= limit:
        reason = f"with stop {stop:g} a part of weight {weight:g} never has a gradient; it must be below {limit:.3g}"
        _raise_at(prompt, _first_position(*fields[1]), reason)
    return Part(text, weight, stop, kind, keyframes, expression=expression, **named)


def _join_keyframes(fields: list[_Field]) -> list[_Field]:
    """Joins the fields that the colons of keyframes in parentheses have split."""
    joined: list[_Field] = []
    for characters, end in fields:
        if len(joined) > 1 and _to_text(joined[-1][0]).startswith("(") and ")" not in _to_text(joined[-1][0]):
            before, colon = joined.pop()
            characters = [*before, (colon, ":", True), *characters]
        joined.append((characters, end))
    return joined


def _parse_curve(prompt: str, characters: list[_Character], end: int) -> curves.Curve:
    """Parses keyframes `(step:weight, step:weight)`, or an expression. Raises PromptError for other texts."""
    try:
        return curves.parse(_to_text(characters))
    except curves.CurveError as error:
        _raise_at(prompt, _first_position(characters, end), str(error))


def _parse_named_fields(prompt: str, fields: list[_Field]) -> dict[str, Any]:
    """Parses the fields `name=value` of a part to the attributes of `Part`."""
    named: dict[str, Any] = {}
    for characters, end in fields:
        equals = _find_equals(characters)
        name, value = _to_text(characters[:equals]), _to_text(characters[equals + 1 :])
        position = _first_position(characters, end)
        if name not in _FIELDS:
            _raise_at(prompt, position, rf"use {', '.join(_FIELDS)}, not {name!r}=; write \: for a colon of the text")
        if not value:
            _raise_at(prompt, end, f"{name}= needs a value")
        attribute = {"from": "start", "until": "end"}.get(name, name)
        if attribute in named or {"place", "mask"} <= {name, *named}:
            _raise_at(prompt, position, f"a part has one {'place or mask' if name in ('place', 'mask') else name}=")
        if name in ("from", "until") and not re.fullmatch(_STEP, value):
            _raise_at(prompt, position, f"{name}= needs a step, an integer of 0 or more, not {value!r}")
        named[attribute] = int(value) if name in ("from", "until") else value
        if name == "place":
            named[attribute] = _parse_place(prompt, position, value)
        if named.get("end") is not None and named["end"] <= named.get("start", 0):
            _raise_at(prompt, position, f"until={named['end']} must be after from={named.get('start', 0)}")
    return named


def _parse_place(prompt: str, position: int, text: str) -> tuple[float, float, float, float]:
    """Parses the name of a place, or `left,top,right,bottom`."""
    if text in PLACES:
        return PLACES[text]
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        left = top = right = bottom = math.nan
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        allowed = f"{', '.join(PLACES)}, or left,top,right,bottom in [0, 1] such as 0.1,0.2,0.5,0.6"
        _raise_at(prompt, position, f"{text!r} is not a place: it must be {allowed}")
    return left, top, right, bottom


def _check_clock_time(prompt: str, colon: int) -> None:
    """Raises PromptError if the colon at this position is between two digits."""
    before, after = re.search(r"\d*$", prompt[:colon]).group(), re.match(r"\d*", prompt[colon + 1 :]).group()
    if before and after:
        reason = rf"is {after} a weight? Write {before} :{after} if it is, {before}\:{after} if it belongs to the text"
        _raise_at(prompt, colon, reason)


def _parse_content(prompt: str, characters: list[_Character], end: int) -> tuple[str, str]:
    """Parses the content of a part. Returns the content and its kind."""
    text = _to_text(characters)
    if not text:
        _raise_at(prompt, end, "a text is missing before it")
    equals = _find_equals(characters)
    if equals is None:
        return text, "text"
    kind, value = _to_text(characters[:equals]), _to_text(characters[equals + 1 :])
    if kind not in ("image", "noise", "direction"):
        reason = rf"use image=PATH, noise=SEED or direction=PATH, not {kind!r}=; write \= in a text"
        _raise_at(prompt, characters[equals][0], reason)
    if not value:
        _raise_at(prompt, end, f"{kind}= needs a value")
    if kind == "noise" and not (value.isascii() and value.isdigit()):
        _raise_at(prompt, characters[equals][0], f"the seed of noise must be an integer of 0 or more, not {value!r}")
    return value, kind


def _parse_number(prompt: str, characters: list[_Character], end: int, field: str) -> float:
    """Parses the field "weight" or "stop" of a prompt `text:weight:stop`."""
    text = _to_text(characters)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not in_float32(value):
        reason = rf"{text!r} is not a {field} (a number); to keep a colon in the text, write \:"
        _raise_at(prompt, _first_position(characters, end), reason)
    return value


def _to_text(characters: list[_Character]) -> str:
    return "".join(character for _, character, _ in characters).strip()


def _find_equals(characters: list[_Character]) -> int | None:
    """Returns the index of the first special `=`."""
    return next((i for i, (_, character, is_special) in enumerate(characters) if is_special and character == "="), None)


def _first_position(characters: list[_Character], end: int) -> int:
    """Returns the position of the first character of a field that is not a space."""
    return next((position for position, character, _ in characters if not character.isspace()), end)


def _raise_at(prompt: str, position: int, reason: str):
    """Raises PromptError with the position of the character and its context."""
    before, after = prompt[max(0, position - _CONTEXT) : position], prompt[position : position + _CONTEXT]
    context = f"{before!r} and before {after!r}" if after else f"{before!r}, at the end"
    raise PromptError(f"prompt, character {position + 1} (after {context}): {reason}")
