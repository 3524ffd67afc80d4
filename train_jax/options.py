"""Options as frozen dataclasses: a field is an option, with default, allowed values and meaning.

    @dataclasses.dataclass(frozen=True)
    class TowerOptions(Options):
        width: int = option(768, "width of the residual stream", least=1)
        pool: str = option("cls", "pooling of the patches", choices=("cls", "mean"))

An options class provides the defaults of a config (`defaults`), the check of a user's config (`parse`), the options that
determine the weights (`identity`), and the documentation (`documentation`).
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict, FrozenConfigDict

from train_jax.errors import ConfigError


def option(
    default: Any,
    meaning: str,
    *,
    choices: Collection = (),
    least: float | int | None = None,
    most: float | int | None = None,
    above: float | int | None = None,
    below: float | int | None = None,
    identity: bool = True,
) -> Any:
    """Declares an option: a field of an `Options` class.

    Args:
      default: default value, which also determines the type. All values of a tuple have the same type and are checked; a
        FrozenConfigDict accepts arbitrary option names. None: the annotation `X | None` determines the type.
      meaning: short description, a noun phrase.
      choices: allowed values, such as the keys of a registry, which may grow; (): all values within the bounds.
      least, most, above, below: bounds of a number; `above` and `below` are exclusive.
      identity: whether the option affects shapes or meaning of the weights. A run that starts from a checkpoint may change
        all other options.
    """
    bounds = {"least": least, "most": most, "above": above, "below": below}
    metadata = {"meaning": meaning, "choices": choices, "identity": identity, **bounds}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """Base class of groups of options. Fields of type `Options` are nested groups; all values are hashable.

    Attributes:
      added: names of options that fingerprints know only where they are not the default: they were added after models had
        been published or their codes stored.
    """

    added: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def defaults(cls) -> ConfigDict:
        """Returns a ConfigDict of all options with their default values."""
        c = ConfigDict()
        for field in dataclasses.fields(cls):
            is_group = isinstance(field.default, Options)
            c[field.name] = field.default.defaults() if is_group else _as_config(field.default)
        return c

    @classmethod
    def parse(cls, values: Mapping | ConfigDict, path: str) -> "Options":
        """Parses and checks the options in `values`; missing options have their defaults.

        Args:
          path: path of the group in the config, such as "model"; "": the whole config.

        Raises ConfigError with the option, its value and the allowed values.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        parsed = {}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"config.{join(path, key)} is not an option{suggest_option(key, known, path)}")
            parsed[key] = _parse(known[key], value, join(path, key))
        options = cls(**parsed)
        options.check(path)
        return options

    def check(self, path: str) -> None:
        """Raises ConfigError for inconsistent options; subclasses override this method. See `require`."""

    def require(self, holds: bool, path: str, key: str, allowed: str) -> None:
        """Raises ConfigError unless `holds`; the message says that `config.path.key` must be `allowed`."""
        if not holds:
            value = self
            for name in key.split("."):
                value = getattr(value, name)
            raise ConfigError(f"config.{join(path, key)} = {value!r}; it must be {allowed}")

    @classmethod
    def free_options(cls) -> tuple[str, ...]:
        """Returns the dotted names of the options without effect on the weights (`identity=False`)."""
        names: list[str] = []
        for field in dataclasses.fields(cls):
            if isinstance(field.default, Options):
                names += (f"{field.name}.{name}" for name in field.default.free_options())
            elif not field.metadata["identity"]:
                names.append(field.name)
        return tuple(names)

    def to_dict(self) -> dict[str, Any]:
        """Returns all options as nested dicts."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Returns the options that affect shapes or meaning of the weights, as nested dicts."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Options):
                values[field.name] = value.identity()
            elif field.metadata["identity"] and not (field.name in self.added and value == field.default):
                values[field.name] = value
        return values

    @classmethod
    def documentation(cls, path: str) -> Iterator[tuple[str, Any, str]]:
        """Yields dotted path, default, and meaning with the allowed values of every option."""
        for field in dataclasses.fields(cls):
            name = join(path, field.name)
            if isinstance(field.default, Options):
                yield from field.default.documentation(name)
            else:
                allowed = _describe_allowed(field)
                yield name, field.default, field.metadata["meaning"] + (f" ({allowed})" if allowed else "")


def join(path: str, key: str) -> str:
    """Joins the path of a group and the name of an option by a dot."""
    return f"{path}.{key}" if path else key


def suggest_option(key: str, known: Collection[str], path: str) -> str:
    """Formats the hint of an error message for an unknown option: a similar name and all known names."""
    close = difflib.get_close_matches(key, list(known), n=1)
    hint = f"; did you mean config.{join(path, close[0])}?" if close else "."
    return f"{hint} Options here: {', '.join(sorted(known))}"


def convert_type(name: str, value: Any, default: Any) -> Any:
    """Converts `value` to the type of `default`: int to float, list to tuple.

    Raises ConfigError for any other type.
    """
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        wrong = type(value).__name__
        raise ConfigError(f"{name} = {value!r} is of type {wrong}; it must be of type {kind}, like {default!r}")
    return value


def parse_value(field: dataclasses.Field, value: Any, name: str) -> Any:
    """Converts a value to the type of a single option and checks the allowed values.

    Raises ConfigError with `name`, the value and the allowed values.
    """
    if field.default is not None:
        value = convert_type(name, value, field.default)
    elif value is not None:
        value = _convert_by_annotation(name, value, field)
    kinds = next((typing.get_args(kind) for kind in _list_types(field) if typing.get_origin(kind) is tuple), ())
    if isinstance(value, tuple) and kinds:
        if kinds[-1] is not Ellipsis and len(value) != len(kinds):
            raise ConfigError(f"{name} = {value!r}; it must hold {len(kinds)} values: {field.metadata['meaning']}")
        value = tuple(float(x) if kinds[0] is float and type(x) is int else x for x in value)
        if not all(isinstance(x, kinds[0]) for x in value):
            raise ConfigError(f"{name} = {value!r}; it must hold values of type {kinds[0].__name__}")
    for part in value if isinstance(value, tuple) else (value,):
        if part is not None and not _is_allowed(field.metadata, part):
            raise ConfigError(f"{name} = {value!r}; it must be {_describe_allowed(field)}")
    return value


def _as_config(default: Any) -> Any:
    return ConfigDict(default) if isinstance(default, FrozenConfigDict) else default


def _parse(field: dataclasses.Field, value: Any, path: str) -> Any:
    """Parses the value of an option or of a nested group."""
    if isinstance(field.default, Options):
        if not isinstance(value, Mapping | ConfigDict):
            names = ", ".join(f.name for f in dataclasses.fields(field.default))
            raise ConfigError(f"config.{path} = {value!r} must be a group of options: {names}")
        return type(field.default).parse(value, path)
    if isinstance(field.default, FrozenConfigDict):
        return FrozenConfigDict(value)
    return parse_value(field, value, f"config.{path}")


def _list_types(field: dataclasses.Field) -> tuple[Any, ...]:
    """Returns the types that the annotation of an option allows, without None."""
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    return tuple(kind for kind in kinds if kind is not types.NoneType)


def _convert_by_annotation(name: str, value: Any, field: dataclasses.Field) -> Any:
    """Converts `value` to one of the annotated types of an option whose default is None."""
    kinds = tuple(typing.get_origin(kind) or kind for kind in _list_types(field))
    if float in kinds and type(value) is int:
        return float(value)
    if tuple in kinds and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, kinds):
        wrong, allowed = type(value).__name__, " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(
            f"{name} = {value!r} is of type {wrong}; it must be of type {allowed}: {field.metadata['meaning']}"
        )
    return value


def _is_allowed(metadata: Mapping, value: Any) -> bool:
    if metadata["choices"]:
        return value in metadata["choices"]
    if not isinstance(value, int | float) or isinstance(value, bool):
        return True
    least, most, above, below = (metadata[name] for name in ("least", "most", "above", "below"))
    return (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def _describe_allowed(field: dataclasses.Field) -> str:
    """Describes the allowed values of an option in words; empty if all values are allowed."""
    metadata = field.metadata
    if metadata["choices"]:
        return f"one of {', '.join(map(str, metadata['choices']))}"
    low = metadata["least"] if metadata["above"] is None else metadata["above"]
    high = metadata["most"] if metadata["below"] is None else metadata["below"]
    if low is not None and high is not None:
        left, right = "[" if metadata["above"] is None else "(", "]" if metadata["below"] is None else ")"
        return f"in {left}{_format_number(low)}, {_format_number(high)}{right}"
    if low is not None:
        if metadata["above"] is not None:
            return "positive" if low == 0 else f"above {_format_number(low)}"
        return "0 or more" if low == 0 else f"at least {_format_number(low)}"
    if high is not None:
        return f"at most {_format_number(high)}" if metadata["below"] is None else f"below {_format_number(high)}"
    return ""


def _format_number(x: float | int) -> str:
    return str(x) if isinstance(x, int) else f"{x:g}"


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested options to dotted names."""
    flat = {}
    for name, value in options.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
