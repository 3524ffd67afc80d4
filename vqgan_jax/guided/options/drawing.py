"""What is optimised: a drawer, or the latents of a VQGAN."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from train_jax import options as schema
from train_jax.errors import ConfigError
from train_jax.options import option
from vqgan_jax.guided import drawers
from vqgan_jax.guided.options.group import Group, refuse_unknown, to_python, traced_option

if typing.TYPE_CHECKING:
    from vqgan_jax.guided.drawers.drawer import Drawer

LATENTS = ("straight", "soft", "gumbel")


@dataclasses.dataclass(frozen=True)
class Drawing(Group):
    """Drawer"""

    needs = {"drawer": ()}

    drawer: str = option("vqgan", "what is optimised; all but vqgan need no VQGAN", choices=tuple(drawers.TABLE))
    drawer_options: Mapping | str | None = option(
        None, "options of the drawer, a mapping or NAME=VALUE,NAME=VALUE; see vqgan-jax drawers"
    )
    sparsity: float = traced_option(
        0.0, "weight of the drawer's penalty of superfluous detail; see vqgan-jax drawers", least=0
    )

    def make(self) -> "Drawer":
        """Makes the drawer."""
        return make_drawer(self.drawer, self.drawer_options or {})


@dataclasses.dataclass(frozen=True)
class Latents(Group):
    """Latents of a VQGAN"""

    needs = {"drawer": ("vqgan",)}

    latents: str = option("straight", "latent parametrisation: vectors (straight) or logits of codes", choices=LATENTS)


@dataclasses.dataclass(frozen=True)
class Probabilities(Group):
    """Temperature of soft and gumbel latents"""

    needs = {"latents": ("soft", "gumbel")}

    temperature: float = traced_option(1.0, "softmax temperature at the first step", above=0)
    temperature_end: float = traced_option(
        0.0, "softmax temperature at the last step, with geometric decay; 0: constant", least=0
    )


def make_drawer(name: str, values: Mapping[str, Any] | str) -> "Drawer":
    """Makes a drawer without weights from its options, a mapping whose values may be strings, or NAME=VALUE,NAME=VALUE.

    Raises ConfigError for unknown or invalid options.
    """
    values = parse_assignments(values) if isinstance(values, str) else values
    drawer_class = drawers.find(name)
    fields = {field.name: field for field in dataclasses.fields(drawer_class)}
    refuse_unknown(values, fields, f"an option of the drawer {name}")
    parsed = {key: schema.parse_value(fields[key], _parse_text(fields[key], value), key) for key, value in values.items()}
    return drawer_class(**parsed)


def parse_assignments(text: str) -> dict[str, str]:
    """Parses NAME=VALUE,NAME=VALUE. A part without = belongs to the value before it: colours=red,blue."""
    values: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (x.strip() for x in part.partition("="))
        if equals:
            values[name] = value
        elif values:
            values[next(reversed(values))] += f",{name}"
        else:
            raise ConfigError(f"drawer_options = {text!r}; it must be NAME=VALUE, separated by commas")
    return values


def _parse_text(field: dataclasses.Field, value: Any) -> Any:
    """Parses a string as the type of a drawer's option. What has another type is returned as it is."""
    if not isinstance(value, str) or isinstance(field.default, str):
        return to_python(value)
    if isinstance(field.default, tuple):
        return tuple(part.strip() for part in value.split(","))
    try:
        return {"true": True, "false": False}[value] if isinstance(field.default, bool) else type(field.default)(value)
    except (ValueError, KeyError):
        return value  # refused for its type
