"""Groups of options, and the rules that hold for all groups."""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from train_jax import options as schema
from train_jax.errors import ConfigError
from train_jax.options import option

ImageSource = str | Path | Image.Image | np.ndarray
# Options of other programs that need what is not here, and what there is instead.
ABSENT = dict.fromkeys(
    ("depth", "depth_stabilization_weight", "translate_z_3d", "rotate_3d", "field_of_view", "near_plane", "far_plane",
     "lock_camera"),
    "motion in depth needs a network of depth with its weights, which is not here; move pictures by zoom, right and down",
) | dict.fromkeys(
    ("flow", "flow_stabilization_weight", "flow_long_term_samples"),
    "optical flow needs a network of flow with its weights, which is not here; steady frames of video_in by pull and hold",
)


def traced_option(default: float | int, meaning: str, **bounds: float | int) -> Any:
    """Declares a traced option of a group. Arguments are those of `train_jax.options.option`."""
    return dataclasses.field(default=default, metadata=option(default, meaning, **bounds).metadata | {"traced": True})


class Group(schema.Options):
    """A group of options. The docstring of a subclass is the title of the group in `--help`.

    Attributes:
      needs: conditions that enable the group, any of which is sufficient: names of options (of any group) and their
        enabling values; (): any value but the default. A group without conditions is always enabled.
      excludes: names of options and the other options of the group that cannot be set together with them.
    """

    needs: ClassVar[Mapping[str, Collection[str]]] = {}
    excludes: ClassVar[Mapping[str, Collection[str]]] = {}

    def __post_init__(self):
        stated = {f.name for f in dataclasses.fields(self) if differs_from_default(f, getattr(self, f.name))}
        for name in stated & self.excludes.keys():
            for excluded in stated.intersection(self.excludes[name]):
                raise ConfigError(f"{excluded} = {getattr(self, excluded)!r} beside {name}: give only one of them")

    @classmethod
    def describe_needs(cls) -> str:
        """Describes what enables the group, such as "edge" or "latents = soft or gumbel"; empty if always enabled."""
        return " or ".join(
            f"{name} = {' or '.join(enabling)}" if enabling else name for name, enabling in cls.needs.items()
        )


def differs_from_default(field: dataclasses.Field, value: Any) -> bool:
    """Returns whether a value differs from the default of the option."""
    return value is not None if field.default is None else value != field.default


def refuse_unknown(names: Iterable[str], known: Mapping, kind: str) -> None:
    """Raises ConfigError if one of `names` is not in `known`, and suggests what there is instead, or the closest known name.

    Args:
      kind: noun phrase for the message, such as "an option".
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{name} is not {kind}: {ABSENT.get(name, hint)}")


def to_python(value: Any) -> Any:
    """Converts NumPy scalars to Python numbers (for JSON) and lists to tuples (for comparison with defaults)."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(to_python, value)) if isinstance(value, list | tuple) else value
