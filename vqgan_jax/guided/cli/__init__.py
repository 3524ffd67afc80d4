"""Command lines `vqgan-jax paint`, `vqgan-jax drawers`, `vqgan-jax presets` and `vqgan-jax direction`.

`flags` parses options, `request` collects what is to be painted, `validation` checks it before models are loaded, and
`running` and `exploring` paint it.
"""

from collections.abc import Callable

from train_jax import arguments as arguments_lib
from vqgan_jax.guided.cli.commands import list_drawers, list_presets, save_direction
from vqgan_jax.guided.cli.flags import add_flags, make_flags
from vqgan_jax.guided.cli.request import PaintRequest, parse_request
from vqgan_jax.guided.cli.running import make_metadata, paint_command, run_painting
from vqgan_jax.guided.cli.validation import validate

__all__ = [
    "EXAMPLES", "PaintRequest", "add", "make_flags", "make_metadata", "parse_request", "run_painting", "validate",
]  # fmt: skip

EXAMPLES = """\
examples:
  vqgan-jax paint "a red star | noise:-0.3" --vqgan runs/vqgan-shapes --clip runs/clip-shapes --out star.png
  vqgan-jax paint "a castle" --vqgan DIR --clip DIR --size 256x384 --quality best --video castle.mp4 --out castle.png
  vqgan-jax paint @prompts.txt --vqgan DIR --clip DIR --n 2 --out grid.png --folder pictures
  vqgan-jax paint "a seed ^ a tree" --vqgan DIR --clip DIR --frames 60 --zoom 1.02 --video story.mp4 --out last.png
  vqgan-jax paint "the sea" --vqgan DIR --clip DIR --frames 90 --zoom "1.02+0.01*sin(t)" --video sea.mp4 --out last.png
  vqgan-jax paint "an oil painting" --vqgan DIR --clip DIR --steps 20 --video-in cat.mp4 --video painted.mp4 --out last.png
  vqgan-jax paint "a robot" --clip DIR --drawer grid --drawer-options cells=24,shape=hex,colours=black,red --out robot.png
  vqgan-jax paint "a sticker of a fox" --clip DIR --drawer strokes --drawer-options ground=transparent --out fox.png
  vqgan-jax paint "a lighthouse" --clip DIR --preset stained-glass --out window.png
  vqgan-jax paint --repeat star.png --out again.png
  vqgan-jax paint --config options.yaml --lr 0.2 --out out.png
  vqgan-jax paint --explore "a fox" --clip DIR --grid drawer=pixel,fourier --grid lr=0.05,0.1,0.2 --out sheet.png

A prompt is text:weight:stop | image=FILE:weight | noise=SEED:weight | direction=FILE:weight. A negative weight maximises
the distance. Below its stop a part has no gradient. ^ separates the scenes of an animation. \\ escapes | ^ : = and itself.
After them a part may have a place, :place=left half, :place=0.1,0.2,0.5,0.6 or :mask=FILE; a weight may have keyframes,
(0:1, 100:0), which are steps and weights, or be an expression in an animation, (0.5+sound); :from=STEP and :until=STEP say
when a part begins and ends.
--drawer names what is optimised instead of a VQGAN's latents; vqgan-jax drawers lists all with their options.
The same seed gives the same image. Every PNG contains its options as metadata, and --repeat reproduces it."""


def add(command_parser: Callable) -> None:
    """Adds the commands of paintings to `vqgan-jax`. `command_parser` is returned by `train_jax.command.parser`."""
    text = "Paint images from prompts by the gradient of CLIP (VQGAN+CLIP)."
    add_flags(command_parser("paint", text, paint_command))
    text = "Save the direction from some sentences to others, for prompts with direction=FILE."
    direction = command_parser("direction", text, save_direction)
    direction.add_argument("--clip", required=True, metavar="MODEL", action="append", help="as in paint; repeatable")
    for name, role in (("from", "starts"), ("to", "ends")):
        text = f"sentences where the direction {role}, or @FILE with one per line"
        direction.add_argument(f"--{name}", required=True, nargs="+", dest=role, metavar="TEXT", help=text)
    arguments_lib.add_dtype(direction)
    direction.add_argument("--out", required=True, metavar="FILE", help="output .npz")
    command_parser("presets", "List the presets of vqgan-jax paint, with their options.", list_presets)
    command_parser("drawers", "List the drawers of vqgan-jax paint, with their options.", list_drawers)
