"""Trains a small DALL-E on the codes of the demo's VQGAN, draws prompts, and shows the best drawings by the demo's CLIP.

    python -m dalle_jax.demo --workdir runs/demo

Needs `clip/` and `vqgan/` in the working directory, as the other demos leave them. Leaves `dalle/` (the run),
`drawings.png`, and its part of `index.html`. A second call continues an earlier one.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from ml_collections import ConfigDict

import train_jax
from dalle_jax.dalle import Dalle, load
from train_jax import command, page
from train_jax.datasets import shapes

CONFIG = "dalle/demo"
PROMPTS = (
    "a green heart",
    "a large purple ring",
    "a pink cross in the top left",
    "a yellow square",
    "a cyan cross",  # a pair that the training never shows
    "a small red circle above a large blue star",
    "a black ring left of an orange circle",
)
DRAWN, SHOWN = 32, 8  # pictures of each prompt, and how many CLIP chooses
VQGAN = "vqgan"  # in the working directory
SETTINGS = {"top_p": 0.9, "guidance": 5.0, "seed": 0}


def main(argv: list[str] | None = None) -> int:
    return command.run_demo(argv, "dalle_jax.demo", __doc__.splitlines()[0], CONFIG, run)


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains what `config` says on the codes of `workdir`'s VQGAN, and draws; returns the last evaluation."""
    started = time.monotonic()
    config.vqgan.path = str(workdir / VQGAN)
    results = last_evaluation(train_jax.run(config, workdir / "dalle"))
    dalle: Dalle = load(workdir / "dalle")
    drawings = dalle.draw(PROMPTS, DRAWN, rerank=workdir / "clip", best=SHOWN, **SETTINGS).images
    correct = np.array([[shapes.shows(x, prompt) for x in row] for prompt, row in zip(PROMPTS, drawings, strict=True)])
    sheet = workdir / "drawings.png"
    draw(PROMPTS, drawings, correct, sheet)
    table = "\n".join(f"{name:26} {value:8.3f}" for name, value in results.items())
    parts = [page.heading("DALL-E on shapes", 1), page.block(table)]
    parts += [page.heading(f"The {SHOWN} of {DRAWN} drawings that CLIP likes best", 2), page.image(sheet)]
    index = page.add_part(workdir, "3-dalle", "\n".join(parts))
    print(f"\n{table}\n\npicture: {sheet}; page: {index}")
    print(f'try:     dalle-jax generate "an orange star" --model {workdir / "dalle"} --n 9 --out grid.png')
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return results


def last_evaluation(history: Sequence[Mapping]) -> dict[str, float]:
    """Returns the last result of each evaluator in a run's history, by name."""
    results = {}
    for row in history:
        results |= {k: v for k, v in row.items() if "/correct" in k or "bits_per_" in k and "/" in k}
    return results


def draw(prompts: Sequence[str], images: np.ndarray, correct: np.ndarray, file: Path) -> None:
    """Draws a grid with one row per prompt; frames are green where the oracle reads the prompt in the image, else red."""
    rows, columns = correct.shape
    figure = matplotlib.figure.Figure(figsize=(1.25 * columns, 1.5 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, prompt, row, is_correct in zip(parts, prompts, images, correct, strict=True):
        part.suptitle(f"“{prompt}”", x=0.01, ha="left", fontsize=10)
        for axes, image, good in zip(part.subplots(1, columns, squeeze=False)[0], row, is_correct, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_color("#15803d" if good else "#b91c1c")
                side.set_linewidth(2)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
