"""Explorations: paintings of all combinations of some values of options, as a sheet."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from train_jax.errors import ConfigError
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.colour import over_white
from vqgan_jax.guided.options import presets
from vqgan_jax.guided.painting import Clips, default_size, paint_many
from vqgan_jax.guided.targets import to_clip_tuple
from vqgan_jax.vqgan import Vqgan

_SIZES = ("size", "aspect", "scale", "enlarge")


@dataclasses.dataclass(frozen=True)
class Exploration:
    """Paintings of prompts with all combinations of a grid.

    Attributes:
      cells: the options of each combination. The last name of the grid changes fastest.
      images: final images, those with alpha over white.
      losses: loss before the last step.
      steps: number of steps taken.
    """

    cells: list[dict[str, Any]]
    images: UInt8[np.ndarray, "prompts cells H W 3"]
    losses: Float32[np.ndarray, "prompts cells"]
    steps: Int32[np.ndarray, "prompts cells"]


def combine(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns all combinations of the values of a grid. The last name changes fastest.

    Raises ConfigError for unknown names, names without values, and options of the size, since a sheet has one.
    """
    options_lib.refuse_unknown(grid, options_lib.FIELDS, "an option of a grid")
    for name, values in grid.items():
        if name in _SIZES:
            raise ConfigError(f"grid {name}: the pictures of a sheet have one size; give it beside the grid")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"grid {name} = {values!r}; it must be a list of values")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def usual_values(name: str, with_vqgan: bool = False) -> list[Any]:
    """Returns values at which to look at an option: all its choices, half and twice a number, or parts of what is off.

    Args:
      with_vqgan: whether choices that need a VQGAN are among them.

    Raises ConfigError for an option that has none, such as a colour, or a weight that is 0 by default.
    """
    field = options_lib.FIELDS[name]
    default, choices, most = field.default, field.metadata["choices"], field.metadata["most"]
    if name in ("drawer", "preset"):  # of which unclip needs a run
        return [x for x in choices if x != "unclip" and (with_vqgan or not uses_vqgan({name: x}))]
    if choices:
        return list(choices)
    if isinstance(default, bool):
        return [False, True]
    if isinstance(default, int | float) and default:
        values = [type(default)(factor * default) for factor in (0.5, 1, 2)]
        return [value for value in values if value and (most is None or value <= most)]
    if default == 0 and most == 1:
        return [0.0, 0.3, 0.6]
    raise ConfigError(f"grid {name}: it has no usual values; write {name}=VALUE,VALUE")


def uses_vqgan(options: Mapping[str, Any]) -> bool:
    """Returns whether a painting with these options needs a VQGAN."""
    return presets.apply(options).get("drawer", "vqgan") == "vqgan"


def explore(
    vq: Vqgan | None,
    clip: Clips,
    prompts: Sequence[str],
    grid: Mapping[str, Sequence[Any]],
    *,
    seed: int | np.integer = 0,
    clip_weights: Sequence[float | int] | None = None,
    progress: bool = True,
    **options,
) -> Exploration:
    """Paints prompts with all combinations of a grid.

    Combinations that differ only in traced options (`guided.options.TRACED`) are painted at once, by one program.

    Args:
      vq: None if no combination needs a VQGAN.
      grid: names of options and their values, such as `{"drawer": ["pixel", "fourier"], "lr": [0.05, 0.1]}`.
      others: as in `paint_many`.

    Raises the errors of `paint_many` and `combine`.
    """
    cells = combine(grid)
    for name in grid.keys() & options.keys():
        raise ConfigError(f"{name} = {options[name]!r} beside a grid of {name}: give only one of them")
    if len({uses_vqgan(options | cell) for cell in cells}) == 2 and "size" not in options:
        clips = to_clip_tuple(clip)
        if default_size(vq, clips) != default_size(None, clips):
            raise ConfigError("drawers with a VQGAN and without one paint different sizes unless size is given: give it")
    traced = {name: values for name, values in grid.items() if name in options_lib.TRACED}
    settings = combine(traced)
    painted: dict[str, tuple[np.ndarray, ...]] = {}
    for static in combine({name: values for name, values in grid.items() if name not in traced}):
        chosen = dict(options) | static
        painting = paint_many(
            vq if uses_vqgan(chosen) else None, clip, prompts, seeds=(seed,), settings=settings,
            clip_weights=clip_weights, progress=progress, **chosen,
        )  # fmt: skip
        for index, setting in enumerate(settings):
            images = over_white(painting.images[:, 0, index])
            painted[_key(static | setting, grid)] = images, painting.losses[:, 0, index, -1], painting.steps[:, 0, index]
    arrays = zip(*(painted[_key(cell, grid)] for cell in cells), strict=True)
    return Exploration([dict(options) | cell for cell in cells], *(np.stack(array, axis=1) for array in arrays))


def _key(cell: Mapping[str, Any], grid: Mapping[str, Any]) -> str:
    return repr([cell[name] for name in grid])


def make_rows(exploration: Exploration, grid: Mapping[str, Sequence[Any]]) -> list[list[tuple[int, int]]]:
    """Arranges pairs (prompt, cell): a row for each prompt and, of several names, each value of the first."""
    count = len(exploration.cells)
    columns = count // len(next(iter(grid.values()))) if len(grid) > 1 else count
    return [
        [(prompt, cell) for cell in range(start, start + columns)]
        for prompt in range(len(exploration.images))
        for start in range(0, count, columns)
    ]
