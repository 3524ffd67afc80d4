"""Options of a painting, in groups. Contradictions are errors.

Users name options without their group: `paint(…, edge=1.0)`, `--edge 1`, `edge: 1.0` in a config file, "edge" in the
metadata of a PNG. Code reads options by group, `options.border.edge`. A disabled group is None. Setting one of its
options is an error, because the option would have no effect.

Traced options are arguments of the compiled programs: changing them needs no recompilation, and paintings that differ
only in traced options are batched (`paint_many`).

Each module defines the groups of one idea; `resolve` puts them together.
"""

from vqgan_jax.guided.options.canvas import IMAGE_OPTIONS, INIT_NOISES
from vqgan_jax.guided.options.drawing import make_drawer
from vqgan_jax.guided.options.group import ABSENT, Group, refuse_unknown
from vqgan_jax.guided.options.losses import parse_colour
from vqgan_jax.guided.options.resolve import (
    FIELDS,
    FREE,
    GROUPS,
    TRACED,
    Options,
    add_later_options,
    resolve,
    resolve_many,
)  # fmt: skip
from vqgan_jax.guided.options.schedule import OPTIMIZERS

__all__ = [
    "ABSENT", "FIELDS", "FREE", "GROUPS", "IMAGE_OPTIONS", "INIT_NOISES", "OPTIMIZERS", "TRACED", "Group", "Options",
    "add_later_options", "make_drawer", "parse_colour", "refuse_unknown", "resolve", "resolve_many",
]  # fmt: skip
