"""Paints sentences with the demo's VQGAN and CLIP; its report shows snapshots and what CLIP and the oracle see in them.

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
# Light paper, as in the scenes, and a loss that keeps pixels near it: what CLIP does not ask for stays paper. Cuts are
# smaller than the picture, which is no larger than CLIP's own, and keep their hue, which prompts ask for.
OPTIONS = {
    "steps": 300,
    "save_every": 10,
    "cuts": 8,
    "init_noise": "plain",
    "init_pixels": 3.0,
    "cut_min": 0.6,
    "jitter": 0.0,
}
SHOWN_STEPS = (10, 20, 40, 80, 160, 300)  # after which a painting is shown
ENLARGED = 3
MARGIN = 130  # pixels for the prompts


def main(argv: list[str] | None = None) -> int:
    return command.run_demo(argv, "vqgan_jax.guided.demo", __doc__.splitlines()[0], None, run)


def run(workdir: Path, **options) -> Painting:
    """Paints, and adds a part to the page; `options`, as of `guided.paint`, override the demo's."""
    begun = time.monotonic()
    vq, clip = vqgan_jax.load(workdir / "vqgan"), clip_jax.load(workdir / "clip")
    painting = paint(vq, clip, PROMPTS, **OPTIONS | options)
    sheet = workdir / "painting.png"
    snapshot_grid(painting).save(sheet)
    text = table(clip, painting)
    steps = ", ".join(map(str, SHOWN_STEPS))
    parts = [page.heading("Painted by the gradient of CLIP", 1), page.block(text)]
    parts += [page.heading(f"After {steps} steps", 2), page.image(sheet)]
    page_path = page.add_part(workdir, "4-painting", "\n".join(parts))
    print(f"\n{text}\n\npicture: {sheet}; page: {page_path}")
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in OPTIONS.items() if name != "save_every")
    models = f"--vqgan {workdir / 'vqgan'} --clip {workdir / 'clip'}"
    print(f'try:     vqgan-jax paint "a cyan heart" {models} {flags} --out heart.png')
    print(f"took {(time.monotonic() - begun) / 60:.1f} minutes")
    return painting


def snapshot_grid(painting: Painting) -> Image.Image:
    """Image grid: one row per prompt; columns are snapshots after `SHOWN_STEPS`."""
    count = painting.snapshots.shape[1]
    columns = sorted({min(step // OPTIONS["save_every"], count) - 1 for step in SHOWN_STEPS})
    rows = Image.fromarray(image_grid([list(snapshots[columns]) for snapshots in painting.snapshots]))
    rows = rows.resize((rows.width * ENLARGED, rows.height * ENLARGED), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (MARGIN + rows.width, rows.height), "white")
    sheet.paste(rows, (MARGIN, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, prompt in enumerate(PROMPTS):
        middle = (row + 0.5) * rows.height / len(PROMPTS)
        draw.text((MARGIN - 8, middle), prompt, "black", font, anchor="rm")
    return sheet


def table(clip: "clip_jax.Clip", painting: Painting) -> str:
    """A table with the prompt that CLIP finds likeliest of each picture, its losses, and what the oracle reads."""
    probabilities = clip.classify(painting.images, PROMPTS, templates=("{}",))
    rows = [f"{'prompt':18}{'CLIP takes it for':25}{'loss':17}the oracle reads"]
    for prompt, image, row, losses in zip(PROMPTS, painting.images, probabilities, painting.losses, strict=True):
        objects = ", ".join(" ".join(pair) for pair in shapes.read(image)) or "nothing"
        best = int(np.argmax(row))
        loss = f"{losses[0]:.3f} -> {losses[-1]:.3f}"
        rows.append(f"{prompt:18}{PROMPTS[best]:15} {100 * row[best]:5.1f} % {loss:17}{objects}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
