"""Paints sentences with the demo's VQGAN and CLIP, and shows how the pictures came to be.

    python -m vqgan_jax.guided.demo --workdir runs/demo

Leaves in the working directory: `painting.png` and a part of `index.html`. Needs the runs `vqgan/` and `clip/` that
`vqgan_jax.demo` and `clip_jax.demo` leave there.
"""

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import clip_jax
import vqgan_jax
from train_jax import command, page
from train_jax.datasets import shapes
from train_jax.pictures import image_grid
from vqgan_jax.guided.painting import Painting, paint

PROMPTS = ("a red star", "a blue circle", "a green heart", "a yellow square", "a purple ring", "a black cross")
# Light paper, as the scenes have it, and a pull to it: what CLIP does not ask for stays paper. Cuts are smaller than the
# picture, which is no larger than CLIP's own, and keep their hue, which prompts ask for.
OPTIONS = {
    "steps": 300,
    "save_every": 10,
    "cuts": 8,
    "init_noise": "plain",
    "init_pixels": 3.0,
    "cut_min": 0.6,
    "jitter": 0.0,
}
SHOWN = (10, 20, 40, 80, 160, 300)  # steps after which a painting is shown
ENLARGED = 3
MARGIN = 130  # pixels for the prompts


def main(argv: list[str] | None = None) -> int:
    return command.demo(argv, "vqgan_jax.guided.demo", __doc__.splitlines()[0], None, run)


def run(workdir: Path, **options) -> Painting:
    """Paints, and makes the part of the page; options as in `guided.paint`, instead of the demo's."""
    begun = time.monotonic()
    vq, clip = vqgan_jax.load(workdir / "vqgan"), clip_jax.load(workdir / "clip")
    painting = paint(vq, clip, PROMPTS, **OPTIONS | options)
    sheet = workdir / "painting.png"
    draw(painting).save(sheet)
    text = table(clip, painting)
    steps = ", ".join(map(str, SHOWN))
    parts = [page.heading("Painted by the gradient of CLIP", 1), page.block(text)]
    parts += [page.heading(f"After {steps} steps", 2), page.image(sheet)]
    shown = page.add_part(workdir, "4-painting", "\n".join(parts))
    print(f"\n{text}\n\npicture: {sheet}; page: {shown}")
    looks = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in OPTIONS.items() if name != "save_every")
    models = f"--vqgan {workdir / 'vqgan'} --clip {workdir / 'clip'}"
    print(f'try:     vqgan-jax paint "a cyan heart" {models} {looks} --out heart.png')
    print(f"took {(time.monotonic() - begun) / 60:.1f} minutes")
    return painting


def draw(painting: Painting) -> Image.Image:
    """A row a prompt: what it was on its way, and last what it became."""
    count = painting.snapshots.shape[1]
    places = sorted({min(step // OPTIONS["save_every"], count) - 1 for step in SHOWN})
    rows = Image.fromarray(image_grid([list(shots[places]) for shots in painting.snapshots]))
    rows = rows.resize((rows.width * ENLARGED, rows.height * ENLARGED), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (MARGIN + rows.width, rows.height), "white")
    sheet.paste(rows, (MARGIN, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, prompt in enumerate(PROMPTS):
        middle = (number + 0.5) * rows.height / len(PROMPTS)
        pen.text((MARGIN - 8, middle), prompt, "black", font, anchor="rm")
    return sheet


def table(clip: "clip_jax.Clip", painting: Painting) -> str:
    """What CLIP takes each picture for, and what the oracle reads in it."""
    probabilities = clip.classify(painting.images, PROMPTS, templates=("{}",))
    rows = [f"{'prompt':18}{'CLIP takes it for':25}{'loss':17}the oracle reads"]
    for prompt, image, row, losses in zip(PROMPTS, painting.images, probabilities, painting.losses, strict=True):
        seen = ", ".join(" ".join(pair) for pair in shapes.read(image)) or "nothing"
        best = int(np.argmax(row))
        way = f"{losses[0]:.3f} -> {losses[-1]:.3f}"
        rows.append(f"{prompt:18}{PROMPTS[best]:15} {100 * row[best]:5.1f} % {way:17}{seen}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
