"""Concepts and attributes of emoji from their code points, and the splits.

A concept is an emoji without its skin tones. A role is a concept that is drawn as a woman, as a man, and as a person, such
as "firefighter". Families are what may not be divided between splits: a concept with all its skin tones, genders and
directions, and all concepts that an artist draws alike, such as "artist" and "man artist".
"""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from train_jax.datasets.emoji.drawings import Drawing
from train_jax.datasets.emoji.variants import Variant

TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
GENDERS = ("woman", "man", "person")
SPLITS = ("train", "artist", "pairs", "compositions")
_SEED = 2026
_PAIRS = 0.1  # share of the pairs of a concept and an artist that are held out

_JOINER = "-200d-"
_PEOPLE = {"1f469": "woman", "1f468": "man", "1f9d1": "person"}
_PERSON = "1f9d1"
_CHILDREN = {"1f466", "1f467", "1f9d2"}
_SIGNS = {"2640": "woman", "2642": "man"}
_RIGHT = "27a1"  # "facing right": the same drawing, mirrored
# Gendered emoji with code points of their own -> gender and neutral form.
_GENDERED = {
    "1f475": ("woman", "1f9d3"),
    "1f474": ("man", "1f9d3"),
    "1f478": ("woman", "1fac5"),
    "1f934": ("man", "1fac5"),
    "1f936": ("woman", "1f9d1-200d-1f384"),
    "1f385": ("man", "1f9d1-200d-1f384"),
    "1f930": ("woman", "1fac4"),  # pregnant
    "1fac3": ("man", "1fac4"),
}
# Sequences of two people exist only with two skin tones; without tones they are one character.
_COUPLES = {
    "1f469-200d-1f91d-200d-1f469": "1f46d",
    "1f469-200d-1f91d-200d-1f468": "1f46b",
    "1f468-200d-1f91d-200d-1f468": "1f46c",
    "1f9d1-200d-2764-200d-1f9d1": "1f491",
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",
    "1f9d1-200d-1f430-200d-1f9d1": "1f46f",
    "1f469-200d-1f430-200d-1f469": "1f46f-200d-2640",
    "1f468-200d-1f430-200d-1f468": "1f46f-200d-2642",
    "1f9d1-200d-1faef-200d-1f9d1": "1f93c",
    "1f469-200d-1faef-200d-1f469": "1f93c-200d-2640",
    "1f468-200d-1faef-200d-1f468": "1f93c-200d-2642",
    "1faf1-200d-1faf2": "1f91d",
}
# Forms that differ from each other by gender or age alone, also where there are several people -> one of them.
_PART_OF_FAMILY = {"1f468": _PERSON, "1f469": _PERSON, "1f466": "1f9d2", "1f467": "1f9d2"}
_HOLDING_HANDS = "1f9d1-200d-1f91d-200d-1f9d1"
_FAMILIES = dict.fromkeys(("1f46b", "1f46c", "1f46d"), _HOLDING_HANDS) | {
    "1f57a": "1f483",  # men and women dancing
    "1f64e": "1f64d",  # pouting and frowning, which some artists draw nearly alike
}


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What the code points of an emoji tell.

    Attributes:
      concept: code without skin tones.
      tone: "light", "medium-light", "medium", "medium-dark", "dark", two of them joined by "+", or "".
      gender: "woman", "man", "person" (a role's neutral form), or "" without a role.
      role: code of the role's neutral form, or "".
    """

    concept: str
    tone: str = ""
    gender: str = ""
    role: str = ""


def describe(codes: Iterable[str]) -> dict[str, Attributes]:
    """Finds the attributes of each code. Whether a concept is a role depends on whether its gendered forms are there."""
    attributes = {}
    for code in codes:
        parts = code.split("-")
        concept = "-".join(part for part in parts if part not in TONES)
        concept = _COUPLES.get(concept, concept)
        tone = "+".join(TONES[part] for part in parts if part in TONES)
        attributes[code] = Attributes(concept, tone, *_find_role(concept))
    roles = {x.role for x in attributes.values() if x.gender in ("woman", "man")}
    return {
        code: x if x.role in roles else dataclasses.replace(x, **_neutral(x.concept, roles))
        for code, x in attributes.items()
    }


def _find_role(concept: str) -> tuple[str, str]:
    """Returns gender and role of a concept; two empty strings if its code points tell none."""
    if concept in _GENDERED:
        return _GENDERED[concept]
    first, *others = concept.split(_JOINER)
    if first in _PEOPLE and not set(others) & (_CHILDREN | set(_PEOPLE)):
        return _PEOPLE[first], _JOINER.join([_PERSON, *others])
    for sign, gender in _SIGNS.items():
        if sign in others:
            return gender, _JOINER.join([first, *(part for part in others if part != sign)])
    return "", ""


def _neutral(concept: str, roles: set[str]) -> dict[str, str]:
    """Returns gender and role of a concept that is a role's neutral form, or none."""
    return {"gender": "person", "role": concept} if concept in roles else {"gender": "", "role": ""}


class _Groups:
    """Groups of items that were joined, directly or through others (union-find)."""

    def __init__(self):
        self._parents: dict[Hashable, Hashable] = {}

    def join(self, a: Hashable, b: Hashable) -> None:
        """Joins the groups of two items. The name of a group is its least item."""
        low, high = sorted((self.find(a), self.find(b)))
        self._parents[high] = low

    def find(self, item: Hashable) -> Hashable:
        """Returns the name of the group of an item."""
        parent = self._parents.setdefault(item, item)
        while parent != (above := self._parents[parent]):
            parent = above
        self._parents[item] = parent
        return parent


def _find_family(attributes: Attributes) -> str:
    """Returns the code that stands for all genders, ages and directions of a concept."""
    code = _without_direction(attributes.role or attributes.concept)
    code = "-".join(_PART_OF_FAMILY.get(part, part) for part in code.split("-"))
    code = _COUPLES.get(code, code)
    return _FAMILIES.get(code, code)


def _without_direction(code: str) -> str:
    """Removes "facing right" from a code."""
    return _JOINER.join(part for part in code.split(_JOINER) if part != _RIGHT)


def group_by_drawing(drawings: Sequence[Drawing], keys: Mapping[str, Hashable]) -> dict[str, Hashable]:
    """Returns code -> group, for groups of codes that have equal keys, or that an artist draws alike."""
    groups, first_with = _Groups(), {}
    for drawing in drawings:
        same = first_with.setdefault((drawing.artist, drawing.fingerprint), drawing.code)
        groups.join(keys[same], keys[drawing.code])
    return {code: groups.find(key) for code, key in keys.items()}


def assign_splits(drawings: Sequence[Drawing], variant: Variant) -> list[str]:
    """Assigns each drawing to a split; the result depends on the drawings and the variant alone.

    artist: all drawings of the artist that is held out.
    compositions: a gender and a skin tone of each role, by all other artists. `train` has the role with another gender
      and with another tone, and the gender with the tone.
    pairs: a tenth of the pairs of a family and an artist. Other artists' drawings of the family are in `train`.
    train: all others.

    A drawing whose pair is held out is in `pairs` also where it is a held-out composition.
    """
    attributes = describe({drawing.code for drawing in drawings})
    families = group_by_drawing(drawings, {code: _find_family(x) for code, x in attributes.items()})
    seen = [drawing for drawing in drawings if drawing.artist != variant.held_out]
    compositions = _hold_out_compositions(seen, attributes) if variant.tones else set()
    pairs = _hold_out_pairs({(families[drawing.code], drawing.artist) for drawing in seen})

    def split(drawing: Drawing) -> str:
        if drawing.artist == variant.held_out:
            return "artist"
        if (families[drawing.code], drawing.artist) in pairs:
            return "pairs"
        return "compositions" if drawing.code in compositions else "train"

    return [split(drawing) for drawing in drawings]


def _hold_out_pairs(pairs: set[tuple[Hashable, str]]) -> set[tuple[Hashable, str]]:
    """Chooses a tenth of the pairs of a family and an artist, at most one artist of each family that several draw."""
    artists: dict[Hashable, list[str]] = {}
    for family, artist in sorted(pairs):
        artists.setdefault(family, []).append(artist)
    rng = np.random.default_rng((_SEED, 0))
    held_out = set()
    for family, drawn_by in artists.items():
        number = rng.random() / _PAIRS  # uniform: each pair is held out with probability 1/10
        if len(drawn_by) > 1 and number < len(drawn_by):
            held_out.add((family, drawn_by[int(number)]))
    return held_out


def _hold_out_compositions(drawings: Sequence[Drawing], attributes: Mapping[str, Attributes]) -> set[str]:
    """Chooses one gender and skin tone of each role that is drawn as woman and man with every tone; returns the codes."""
    composed = {code: x for code, x in attributes.items() if x.role and x.tone in TONES.values()}
    keys = {code: (_without_direction(x.role), x.gender, x.tone) for code, x in composed.items()}
    # A composition that an artist draws like another one, such as "man" like "person", is held out with it.
    groups = group_by_drawing([drawing for drawing in drawings if drawing.code in keys], keys)
    members: dict[Hashable, set[tuple]] = {}
    for code, group in groups.items():
        members.setdefault(group, set()).add(keys[code])
    rng = np.random.default_rng((_SEED, 1))
    group_of = {keys[code]: group for code, group in groups.items()}
    held_out = set()
    for role in sorted({role for role, _, _ in keys.values()}):
        cells = [(role, gender, tone) for gender in GENDERS[:2] for tone in TONES.values()]
        choice = cells[rng.integers(len(cells))]
        if not set(cells) <= set(keys.values()):
            continue
        together = members[group_of[choice]]
        # Woman and man alike, or two roles alike: the parts would not be seen elsewhere.
        if {r for r, _, _ in together} == {role} and len({g for _, g, _ in together} & set(GENDERS[:2])) == 1:
            held_out.add(group_of[choice])
    return {code for code, group in groups.items() if group in held_out}
