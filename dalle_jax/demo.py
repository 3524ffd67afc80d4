"""Trains a small DALL-E on the codes of the demo's VQGAN, generates images, and ranks them by the demo's CLIP.

    python -m dalle_jax.demo [--data shapes|emoji] --workdir runs/demo

Needs `clip/` and `vqgan/` in the working directory, the runs of the other demos. Writes `dalle/` (the run),
`drawings.png`, and a section of `index.html`. A second call continues the first.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from ml_collections import ConfigDict

import train_jax
from dalle_jax.dalle import Dalle, load
from train_jax import command, page, run_directory
from train_jax import config as config_lib
from train_jax.data import sources
from train_jax.errors import LoadError

NUM_SAMPLES, NUM_BEST = 32, 8  # number of images sampled per prompt, and number of best images shown
VQGAN = "vqgan"  # run directory in the working directory
METRICS = ("bits_per_code", "bits_per_text_token", "correct", "concept", "artist")  # what the reader finds, and likelihoods


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m dalle_jax.demo` and returns its exit code; see `train_jax.command.run_demo`."""
    return command.run_demo(argv, "dalle_jax.demo", __doc__.splitlines()[0], "dalle", run)


def run(demo: ModuleType, config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains a DALL-E on the codes of the VQGAN in `workdir`, draws images, and returns the last evaluation.

    Raises LoadError if `workdir` has no CLIP to rank the images.
    """
    start = time.monotonic()
    if run_directory.open_config(workdir / "clip", "clip_jax.task", "a CLIP") is None:
        raise LoadError(f"{workdir / 'clip'} is no CLIP that could rank the images: run `python -m clip_jax.demo` first")
    config.vqgan.path = str(workdir / VQGAN)
    results = train_jax.run(config, workdir / "dalle").last_evaluations(*METRICS)
    dalle: Dalle = load(workdir / "dalle")
    drawings = dalle.draw(demo.PROMPTS, NUM_SAMPLES, rerank=workdir / "clip", best=NUM_BEST, **demo.DRAWN).images
    judge = sources.from_config(config_lib.fill(config).data).judge
    judged = [[judge(x, prompt) for x in row] for prompt, row in zip(demo.PROMPTS, drawings, strict=True)]
    correct = np.array([[parts["correct"] for parts in row] for row in judged])
    sheet = workdir / "drawings.png"
    plot_drawings(demo.PROMPTS, drawings, correct, sheet)
    table = "\n".join(f"{name:26} {value:8.3f}" for name, value in results.items())
    parts = [page.heading(f"DALL-E on {demo.TITLE}", 1), page.block(table)]
    parts += [page.heading(f"Best {NUM_BEST} of {NUM_SAMPLES} images by CLIP score", 2), page.image(sheet)]
    index = page.add_part(workdir, "3-dalle", "\n".join(parts))
    print(f"\n{table}\n\nimage: {sheet}; page: {index}")
    print(f'try:     dalle-jax generate "{demo.PROMPTS[0]}" --model {workdir / "dalle"} --n 9 --out grid.png')
    print(f"took {(time.monotonic() - start) / 60:.1f} minutes")
    return results


def plot_drawings(prompts: Sequence[str], images: np.ndarray, correct: np.ndarray, file: Path) -> None:
    """Plots images in a grid with one row per prompt. Frames are green for correct images and red for others."""
    rows, columns = correct.shape
    figure = matplotlib.figure.Figure(figsize=(1.25 * columns, 1.5 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    subfigures = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for subfigure, prompt, row, is_correct in zip(subfigures, prompts, images, correct, strict=True):
        subfigure.suptitle(f"“{prompt}”", x=0.01, ha="left", fontsize=10)
        for axes, image, is_good in zip(subfigure.subplots(1, columns, squeeze=False)[0], row, is_correct, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_color("#15803d" if is_good else "#b91c1c")
                side.set_linewidth(2)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
