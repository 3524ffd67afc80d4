"""Paints prompts from drawings by the demo's DALL-E, and reports snapshots and the judgements of CLIP and the reader.

    python -m vqgan_jax.guided.demo [--data shapes|emoji] --workdir runs/demo

Writes `painting.png` and a part of `index.html` to the working directory. Requires the runs `vqgan/`, `clip/` and `dalle/`
that `vqgan_jax.demo`, `clip_jax.demo` and `dalle_jax.demo` write there.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import clip_jax
import vqgan_jax
from train_jax import command, page
from train_jax.data import sources
from train_jax.pictures import image_grid
from vqgan_jax.guided.painting import Painting, paint

SAVE_EVERY = 10
SHOWN_STEPS = (10, 20, 40, 70, 100)  # steps after which a snapshot is shown
ENLARGED = 3  # pixels of the sheet along a pixel of an image
MARGIN = 130  # width of the column of prompts, in pixels


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m vqgan_jax.guided.demo` and returns its exit code; see `train_jax.command.run_demo`."""
    return command.run_demo(argv, "vqgan_jax.guided.demo", __doc__.splitlines()[0], None, run)


def run(demo: ModuleType, workdir: Path, **options) -> Painting:
    """Paints `demo.PAINTED` and adds a part to the page. `options` of `guided.paint` override those of `demo`."""
    options = demo.PAINTING | demo.DRAWN_START | {"init_dalle": str(workdir / "dalle")} | options
    start_time = time.monotonic()
    vq, clip = vqgan_jax.load(workdir / "vqgan"), clip_jax.load(workdir / "clip")
    painting = paint(vq, clip, demo.PAINTED, save_every=SAVE_EVERY, **options)
    sheet = workdir / "painting.png"
    draw_snapshot_grid(demo.PAINTED, painting).save(sheet)
    text = format_table(clip, sources.open_source(demo.SOURCE, demo.SPLIT).judge, demo.PAINTED, painting)
    steps = ", ".join(map(str, SHOWN_STEPS))
    parts = [page.heading("Painted by the gradient of CLIP, from drawings by DALL-E", 1), page.block(text)]
    parts += [page.heading(f"After {steps} steps", 2), page.image(sheet)]
    page_path = page.add_part(workdir, "4-painting", "\n".join(parts))
    print(f"\n{text}\n\npicture: {sheet}; page: {page_path}")
    stated = {name: value for name, value in options.items() if value is not None and name != "progress"}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in stated.items())
    models = f"--vqgan {workdir / 'vqgan'} --clip {workdir / 'clip'}"
    print(f'try:     vqgan-jax paint "{demo.PAINTED[0]}" {models} {flags} --out painting.png')
    print(f"took {(time.monotonic() - start_time) / 60:.1f} minutes")
    return painting


def draw_snapshot_grid(prompts: Sequence[str], painting: Painting) -> Image.Image:
    """Draws a grid of snapshots: one row per prompt, one column per entry of `SHOWN_STEPS`."""
    count = painting.snapshots.shape[1]
    columns = sorted({min(step // SAVE_EVERY, count) - 1 for step in SHOWN_STEPS})
    rows = Image.fromarray(image_grid([list(snapshots[columns]) for snapshots in painting.snapshots]))
    rows = rows.resize((rows.width * ENLARGED, rows.height * ENLARGED), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (MARGIN + rows.width, rows.height), "white")
    sheet.paste(rows, (MARGIN, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, prompt in enumerate(prompts):
        middle = (row + 0.5) * rows.height / len(prompts)
        draw.text((MARGIN - 8, middle), prompt, "black", font, anchor="rm")
    return sheet


def format_table(
    clip: "clip_jax.Clip", judge: Callable[[np.ndarray, str], Mapping[str, bool]], prompts: Sequence[str], painting: Painting
) -> str:
    """Formats a table of the most likely prompt by CLIP, the losses, and the parts of a prompt that the reader confirms."""
    probabilities = clip.classify(painting.images, prompts, templates=("{}",))
    rows = [f"{'prompt':18}{'most likely by CLIP':25}{'loss':17}right by the reader"]
    for prompt, image, row, losses in zip(prompts, painting.images, probabilities, painting.losses, strict=True):
        parts = dict(judge(image, prompt))
        right = "all" if parts.pop("correct") else ", ".join(part for part, is_right in parts.items() if is_right)
        best = int(np.argmax(row))
        loss = f"{losses[0]:.3f} -> {losses[-1]:.3f}"
        rows.append(f"{prompt:18}{prompts[best]:15} {100 * row[best]:5.1f} % {loss:17}{right or 'nothing'}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
