"""Paints the sheet of a grid of options, and writes the command of each of its pictures."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train_jax.errors import UserError
from vqgan_jax.guided.cli.flags import make_flags
from vqgan_jax.guided.cli.request import PaintRequest


def run_exploration(arguments, request: PaintRequest, vq, clips, fields: dict[str, Any]) -> None:
    """Paints all combinations of a grid, and writes their sheet and their commands."""
    from train_jax.pictures import enlarged_grid
    from vqgan_jax.guided import metadata
    from vqgan_jax.guided.exploration import explore, make_rows

    run, out = request.run, Path(arguments.out)
    if request.motion or run["n"] != 1:
        raise UserError("--explore paints one image of each combination: leave out --n and the options of animations")
    for name in ("state", "resume", "folder", "video", "preview"):
        if getattr(arguments, name):
            raise UserError(f"--{name} applies to one painting, not to the sheet of --explore: leave it out")
    explored = explore(
        vq, clips, run["prompts"], request.grid, seed=run["seed"], clip_weights=run["clip_weights"], **request.options
    )
    commands, sheet = [], []
    for y, row in enumerate(make_rows(explored, request.grid)):
        sheet.append([explored.images[place] for place in row])
        for x, (prompt, cell) in enumerate(row):
            name = out.with_name(f"{out.stem}-{y + 1}-{x + 1}.png")
            words = _make_command(run, run["prompts"][prompt], explored.cells[cell], str(name))
            result = f"loss {explored.losses[prompt, cell]:.4f} after {explored.steps[prompt, cell]} steps"
            commands.append(f"# row {y + 1}, column {x + 1}: {result}\n{shlex.join(words)}\n")
    print("".join(commands), end="")
    commands_file(arguments.out).write_text("".join(commands), "utf-8")
    metadata.save(enlarged_grid(sheet), out, fields)


def commands_file(out: str) -> Path:
    """Returns the file of the commands of a sheet."""
    return Path(out).with_suffix(".txt")


def _make_command(run: Mapping[str, Any], prompt: str, options: Mapping[str, Any], out: str) -> list[str]:
    """Makes the command line of one painting."""
    from vqgan_jax.guided import exploration

    words = ["vqgan-jax", "paint", prompt]
    words += ["--vqgan", run["vqgan"]] if exploration.uses_vqgan(options) else []
    for clip in run["clip"]:
        words += ["--clip", clip]
    words += [] if run["clip_weights"] is None else ["--clip-weights", ",".join(map(str, run["clip_weights"]))]
    words += [] if run["dtype"] == "auto" else ["--dtype", run["dtype"]]
    return [*words, "--seed", str(run["seed"]), *make_flags(options), "--out", out]
