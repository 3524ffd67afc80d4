"""Scenes of one or two coloured shapes: sampling, captions, and the truth of captions.

Coordinates are relative to the side of the image, with x to the right and y downwards.
"""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
SIZES = ("small", "medium", "large")
RADII = (7.5 / 64, 10.5 / 64, 13.5 / 64)  # mean radius of each size; samples vary by 4 %
COLUMNS, ROWS = ("left", "", "right"), ("top", "", "bottom")
POSITIONS = tuple(f"{row} {column}".strip() or "center" for row in ROWS for column in COLUMNS)
RELATIONS = ("above", "below", "left of", "right of")
_OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_ATTRIBUTES = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}

# Pairs that occur only in the split `novel`: one pair in eight, each colour once and each shape at least once.
NOVEL = tuple((colour, SHAPES[(3 * index + 1) % len(SHAPES)]) for index, colour in enumerate(COLOURS))
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
LABEL_NAMES = tuple(f"{colour} {shape}" for colour, shape in PAIRS)

_PREFIXES = ("a photo of ", "a picture of ", "a drawing of ")


@dataclasses.dataclass(frozen=True)
class Object:
    """Object of a scene: colour, shape, centre, radius of its enclosing circle, and rotation angle in radians."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float = 0.0

    @property
    def size(self) -> str:
        """Name of the nearest size."""
        return SIZES[int(np.argmin([abs(self.radius - radius) for radius in RADII]))]

    @property
    def position(self) -> str:
        """Name of the cell of a 3 x 3 grid that contains the centre."""
        column, row = (min(max(int(3 * value), 0), 2) for value in (self.x, self.y))
        return POSITIONS[3 * row + column]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Scene of one or two objects on a plain or noisy background."""

    objects: tuple[Object, ...]
    background: str = "plain"  # or "noisy"

    def to_json(self) -> str:
        """Formats the scene as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """Parses a scene from JSON."""
        fields = json.loads(text)
        return cls(tuple(Object(**o) for o in fields["objects"]), fields["background"])

    @property
    def label(self) -> int:
        """Index of colour and shape in LABEL_NAMES, or -1 for a scene of two objects."""
        first = self.objects[0]
        return PAIRS.index((first.colour, first.shape)) if len(self.objects) == 1 else -1


def relation(a: Object, b: Object) -> str:
    """Returns the relation of a to b ("above", …) along the axis with the larger distance."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dy) >= abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def sample(rng: np.random.Generator, novel: bool) -> Scene:
    """Samples a random scene, with one object in 60 % of all scenes, else two.

    If `novel`, the first object is a pair of NOVEL; otherwise no object is.
    """
    background = ("plain", "noisy")[rng.integers(2)]
    allowed = NOVEL if novel else tuple(pair for pair in PAIRS if pair not in NOVEL)
    first = _object(rng, allowed)
    if rng.random() < 0.6:
        x, y = (16 + 16 * rng.integers(3, size=2) + rng.uniform(-2, 2, 2)) / 64
        return Scene((_inside(first, x, y),), background)
    second = _object(rng, PAIRS if novel else allowed)
    near, far = (15.5 + rng.uniform(-0.5, 0.5)) / 64, (48.5 + rng.uniform(-0.5, 0.5)) / 64
    across = rng.uniform(20, 44, 2) / 64
    if rng.integers(2):
        near, far = far, near
    if rng.integers(2):
        return Scene((_inside(first, near, across[0]), _inside(second, far, across[1])), background)
    return Scene((_inside(first, across[0], near), _inside(second, across[1], far)), background)


def _object(rng: np.random.Generator, pairs) -> Object:
    """Samples an object with a colour and shape of `pairs`."""
    colour, shape = pairs[rng.integers(len(pairs))]
    radius = RADII[rng.integers(len(RADII))] * rng.uniform(0.96, 1.04)
    return Object(colour, shape, 0.5, 0.5, radius, rng.uniform(-0.2, 0.2))


def _inside(o: Object, x: float, y: float) -> Object:
    """Moves an object to (x, y), clipped so that the object is inside the image."""
    margin = o.radius + 1 / 64
    return dataclasses.replace(o, x=float(np.clip(x, margin, 1 - margin)), y=float(np.clip(y, margin, 1 - margin)))


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Writes eight true captions of a scene. A fifth of them start with a prefix such as "a photo of"."""
    a = scene.objects[0]
    if len(scene.objects) == 1:
        texts = [
            f"{noun_phrase(a, 'size colour shape')} in the {a.position}",
            noun_phrase(a, "size colour shape"),
            f"{noun_phrase(a, 'colour shape')} in the {a.position}",
            noun_phrase(a, "colour shape"),
            noun_phrase(a, "size shape"),
            noun_phrase(a, "shape"),
            noun_phrase(a, "colour"),
            f"{noun_phrase(a, 'colour')} in the {a.position}",
        ]
    else:
        b = scene.objects[1]
        texts = [
            f"{noun_phrase(a, 'size colour shape')} {relation(a, b)} {noun_phrase(b, 'size colour shape')}",
            f"{noun_phrase(b, 'size colour shape')} {relation(b, a)} {noun_phrase(a, 'size colour shape')}",
            f"{noun_phrase(a, 'colour shape')} {relation(a, b)} {noun_phrase(b, 'colour shape')}",
            f"{noun_phrase(a, 'shape')} {relation(a, b)} {noun_phrase(b, 'shape')}",
            f"{noun_phrase(b, 'colour')} {relation(b, a)} {noun_phrase(a, 'colour')}",
            noun_phrase(a, "size colour shape"),
            noun_phrase(b, "colour shape"),
            noun_phrase((a, b)[rng.integers(2)], ("shape", "colour")[rng.integers(2)]),
        ]
    return [_PREFIXES[rng.integers(len(_PREFIXES))] + text if rng.random() < 0.2 else text for text in texts]


def noun_phrase(o: Object, words: str) -> str:
    """Formats a noun phrase of an object from the given attributes."""
    return _format_noun({word: getattr(o, word) for word in words.split()})


def _format_noun(attributes: Mapping[str, str]) -> str:
    """Formats a noun phrase from attributes, in the order size, colour, shape."""
    text = " ".join(attributes.values())
    if "shape" not in attributes:
        return f"something {text}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


_NOUN = (
    rf"(?:(?:an?|the)\s+)?(?:something\b)?\s*(?:(?P<size{{0}}>{'|'.join(SIZES)})\b)?\s*"
    rf"(?:(?P<colour{{0}}>{'|'.join(COLOURS)})\b)?\s*(?:(?P<shape{{0}}>{'|'.join(SHAPES)})\b)?"
)
_CAPTION = re.compile(
    rf"(?:{'|'.join(_PREFIXES)})?{_NOUN.format(0)}"
    rf"(?:\s+in the (?P<position>{'|'.join(sorted(POSITIONS, key=len, reverse=True))})"
    rf"|\s+(?P<relation>{'|'.join(RELATIONS)})\s+{_NOUN.format(1)})?\s*\.?"
)


def is_true(caption: str, scene: Scene) -> bool:
    """Returns whether a caption is true of an object, or a pair of objects, of the scene.

    Raises ValueError for a caption outside the grammar.
    """
    return _is_shown(*_parse(caption), scene)


def judge(caption: str, scene: Scene) -> dict[str, bool]:
    """Compares the parts of a caption with a scene; only the parts that the caption names are returned.

    Parts:
      correct: `is_true`.
      count: there are as many objects as the caption names.
      colours, shapes, sizes: the scene has all that the caption names, whichever objects have them.
      binding: the scene has objects with the named colours and shapes together, if the caption names both.
      relation, position: those that fit the caption best, by the number of right attributes, are where it says; False if
        none is right.

    Raises ValueError for a caption outside the grammar.
    """
    nouns, place = _parse(caption)
    parts = {"correct": is_true(caption, scene), "count": len(scene.objects) == len(nouns)}
    for name, attribute in (("colours", "colour"), ("shapes", "shape"), ("sizes", "size")):
        named = collections.Counter(noun[attribute] for noun in nouns if attribute in noun)
        if named:
            parts[name] = named <= collections.Counter(getattr(o, attribute) for o in scene.objects)
    bound = [(noun["colour"], noun["shape"]) for noun in nouns if {"colour", "shape"} <= set(noun)]
    if bound:
        parts["binding"] = collections.Counter(bound) <= collections.Counter((o.colour, o.shape) for o in scene.objects)
    if place:
        choices = list(itertools.permutations(scene.objects, len(nouns)))
        right = [sum(_count_right(o, noun) for o, noun in zip(x, nouns, strict=True)) for x in choices]
        name = "relation" if len(nouns) == 2 else "position"
        best = [x for x, count in zip(choices, right, strict=True) if count == max(right) > 0]
        parts[name] = any(_is_at(x, place) for x in best)
    return parts


def corrupt(caption: str, scene: Scene, rng: np.random.Generator) -> str:
    """Changes a true caption a little, so that it is false of the scene: a hard negative.

    One attribute, position or relation becomes another, or two objects exchange an attribute (as in arXiv 2210.01936).
    Raises ValueError for a caption outside the grammar.
    """
    nouns, place = _parse(caption)
    prefix = next((x for x in _PREFIXES if caption.startswith(x)), "")
    shared = [key for key in _ATTRIBUTES if all(key in noun for noun in nouns)] if len(nouns) == 2 else []
    kinds = [(index, key) for index, noun in enumerate(nouns) for key in noun]
    kinds += [("exchange", key) for key in shared] + [("place", "")] * bool(place)
    while True:  # most changes make a caption false
        which, key = kinds[rng.integers(len(kinds))]
        changed, at = [dict(noun) for noun in nouns], place
        if which == "place":
            at = _OPPOSITE[place] if len(nouns) == 2 else POSITIONS[rng.integers(len(POSITIONS))]
        elif which == "exchange":
            changed[0][key], changed[1][key] = nouns[1][key], nouns[0][key]
        else:
            changed[which][key] = _ATTRIBUTES[key][rng.integers(len(_ATTRIBUTES[key]))]
        if not _is_shown(changed, at, scene):
            phrases = [_format_noun(noun) for noun in changed]
            return prefix + (f" {at} ".join(phrases) if len(phrases) == 2 else phrases[0] + f" in the {at}" * bool(at))


def _parse(caption: str) -> tuple[list[dict[str, str]], str]:
    """Parses a caption to the attributes of each object that it names, and the position or relation, or "".

    Raises ValueError for a caption outside the grammar.
    """
    match = _CAPTION.fullmatch(caption.strip().lower())
    attributes = {key: value for key, value in (match.groupdict() if match else {}).items() if value}
    if not set(attributes) - {"position", "relation"}:
        raise ValueError(
            f"{caption!r} is not a caption of a scene: write a caption such as 'a small red circle above a blue star'"
        )
    place = attributes.get("relation", attributes.get("position", ""))
    numbers = "01" if "relation" in attributes else "0"
    nouns = [{key[:-1]: value for key, value in attributes.items() if key.endswith(number)} for number in numbers]
    return nouns, place


def _is_shown(nouns: Sequence[Mapping[str, str]], place: str, scene: Scene) -> bool:
    """Returns whether some objects of a scene have the given attributes, and the position or relation `place`."""
    return any(
        all(_fits(o, noun) for o, noun in zip(chosen, nouns, strict=True)) and _is_at(chosen, place)
        for chosen in itertools.permutations(scene.objects, len(nouns))
    )


def _fits(o: Object, words: dict[str, str]) -> bool:
    """Returns whether an object has all of the given attributes."""
    return _count_right(o, words) == len(words)


def _count_right(o: Object, words: dict[str, str]) -> int:
    """Counts the given attributes that an object has."""
    return sum(getattr(o, key) == value for key, value in words.items())


def _is_at(objects: Sequence[Object], place: str) -> bool:
    """Returns whether one object is at a position, or two have a relation; an empty place is anywhere."""
    return not place or (relation(*objects) if len(objects) == 2 else objects[0].position) == place
