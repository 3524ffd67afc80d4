"""Short names of well-known public models, such as `clip:vit-b-32-openai`. Each package registers a table of its own.

    known_models.register("clip", {"vit-b-32-openai": KnownModel("hf:openai/clip-vit-base-patch32", "151 M", "MIT", "…")})

`train_jax.weights.hub` resolves a short name wherever it resolves an address of the hub.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from train_jax.errors import LoadError


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """Public model.

    Attributes:
      address: `hf:organisation/name[/folder or file]`.
      parameters: number of parameters, such as "151 M".
      licence: licence of the weights.
      description: what it is, in a few words.
    """

    address: str
    parameters: str
    licence: str
    description: str


_TABLES: dict[str, Mapping[str, KnownModel]] = {}


def register(family: str, models: Mapping[str, KnownModel]) -> None:
    """Makes `family:name` a short name of each of `models`, a table by name."""
    _TABLES[family] = models


def is_name(path: str | Path) -> bool:
    """Returns whether `path` starts with the name of a registered table, such as `clip:`."""
    family, colon, _ = str(path).partition(":")
    return bool(colon) and family in _TABLES


def find_address(path: str | Path) -> str:
    """Returns the address of a short name, and any other path unchanged.

    Raises LoadError for an unknown short name; the message lists the names.
    """
    if not is_name(path):
        return str(path)
    family, _, name = str(path).partition(":")
    if name not in _TABLES[family]:
        names = ", ".join(f"{family}:{known}" for known in _TABLES[family])
        raise LoadError(f"{path}: no known model has this name. The names are {names}")
    return _TABLES[family][name].address


def format_table(families: Mapping[str, Mapping[str, KnownModel]]) -> str:
    """Formats tables by family as aligned text with one model per line."""
    rows = [("name", "parameters", "licence", "address", "description")]
    for family, models in families.items():
        rows += [(f"{family}:{name}", m.parameters, m.licence, m.address, m.description) for name, m in models.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def add_command(add: Callable, **families: Mapping[str, KnownModel]) -> None:
    """Adds the command `models`, which prints the tables, by `add` of `train_jax.command.parser`."""

    def run(_: argparse.Namespace) -> int:
        print(format_table(families))
        return 0

    add("models", "List well-known public models with their short names.", run)
