"""The commands beside `paint`: `direction`, `drawers` and `presets`."""

import argparse
import shlex
import sys

from train_jax import arguments as arguments_lib
from vqgan_jax.guided.cli.flags import make_flags
from vqgan_jax.guided.options import presets


def save_direction(arguments: argparse.Namespace) -> int:
    """Runs the command `direction`."""
    import clip_jax
    from vqgan_jax.guided import directions

    start, end = (arguments_lib.lines(sentences, "a sentence") for sentences in (arguments.starts, arguments.ends))
    clips = [clip_jax.load(path, dtype=arguments.dtype) for path in arguments.clip]
    directions.save(arguments.out, clips, start, end)
    print(f"wrote {arguments.out}", file=sys.stderr)
    return 0


def list_drawers(arguments: argparse.Namespace) -> int:
    """Runs the command `drawers`."""
    from vqgan_jax.guided import drawers

    for name in drawers.TABLE:
        drawer = drawers.find(name)
        print(f"{name:10}{drawer.__doc__.splitlines()[0]}")
        if name == "vqgan":  # whose options are those of paint
            continue
        for option, default, text in drawer.documentation(""):
            shown = ",".join(default) if isinstance(default, tuple) else default
            print(f"          {option}={str(shown).lower()}  {text}")
        if drawer.regularise is not None:
            penalty = drawer.regularise.__doc__.splitlines()[0].rstrip(".")
            print(f"          --sparsity  weight of the {penalty[0].lower()}{penalty[1:]}")
    return 0


def list_presets(arguments: argparse.Namespace) -> int:
    """Runs the command `presets`."""
    for name, look in presets.TABLE.items():
        print(f"{name:14}{look.text}\n              {shlex.join(make_flags(look.options))}")
    return 0
