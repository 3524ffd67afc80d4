"""Paints prompts with the demo's VQGAN and CLIP, and reports snapshots and the classifications by CLIP and the oracle.

    python -m vqgan_jax.guided.demo --workdir runs/demo

Writes `painting.png` and a part of `index.html` to the working directory. Requires the runs `vqgan/` and `clip/` that
`vqgan_jax.demo` and `clip_jax.demo` write there.
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
# The initial image is light grey like the backgrounds of the scenes, and a pixel loss keeps unconstrained regions near
# it. Crops are smaller than the image, which is no larger than CLIP's input. Jitter is off: prompts name colours.
OPTIONS = {
    "steps": 300,
    "save_every": 10,
    "cuts": 8,
    "init_noise": "plain",
    "init_pixels": 3.0,
    "cut_min": 0.6,
    "jitter": 0.0,
}
SHOWN_STEPS = (10, 20, 40, 80, 160, 300)  # steps after which a snapshot is shown
ENLARGED = 3  # pixels of the sheet along a pixel of an image
MARGIN = 130  # width of the column of prompts, in pixels


def main(argv: list[str] | None = None) -> int:
    return command.run_demo(argv, "vqgan_jax.guided.demo", __doc__.splitlines()[0], None, run)


def run(workdir: Path, **options) -> Painting:
    """Paints `PROMPTS` and adds a part to the page. `options` of `guided.paint` override `OPTIONS`."""
    start_time = time.monotonic()
    vq, clip = vqgan_jax.load(workdir / "vqgan"), clip_jax.load(workdir / "clip")
    painting = paint(vq, clip, PROMPTS, **OPTIONS | options)
    sheet = workdir / "painting.png"
    draw_snapshot_grid(painting).save(sheet)
    text = format_table(clip, painting)
    steps = ", ".join(map(str, SHOWN_STEPS))
    parts = [page.heading("Painted by the gradient of CLIP", 1), page.block(text)]
    parts += [page.heading(f"After {steps} steps", 2), page.image(sheet)]
    page_path = page.add_part(workdir, "4-painting", "\n".join(parts))
    print(f"\n{text}\n\npicture: {sheet}; page: {page_path}")
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in OPTIONS.items() if name != "save_every")
    models = f"--vqgan {workdir / 'vqgan'} --clip {workdir / 'clip'}"
    print(f'try:     vqgan-jax paint "a cyan heart" {models} {flags} --out heart.png')
    print(f"took {(time.monotonic() - start_time) / 60:.1f} minutes")
    return painting


def draw_snapshot_grid(painting: Painting) -> Image.Image:
    """Draws a grid of snapshots: one row per prompt, one column per entry of `SHOWN_STEPS`."""
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


def format_table(clip: "clip_jax.Clip", painting: Painting) -> str:
    """Formats a table of the most likely prompt by CLIP, the losses and the oracle's objects of each painting."""
    probabilities = clip.classify(painting.images, PROMPTS, templates=("{}",))
    rows = [f"{'prompt':18}{'most likely by CLIP':25}{'loss':17}read by the oracle"]
    for prompt, image, row, losses in zip(PROMPTS, painting.images, probabilities, painting.losses, strict=True):
        objects = ", ".join(" ".join(pair) for pair in shapes.read(image)) or "nothing"
        best = int(np.argmax(row))
        loss = f"{losses[0]:.3f} -> {losses[-1]:.3f}"
        rows.append(f"{prompt:18}{PROMPTS[best]:15} {100 * row[best]:5.1f} % {loss:17}{objects}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
