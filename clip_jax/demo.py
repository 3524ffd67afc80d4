"""Trains and evaluates a small CLIP, classifies and searches rendered images, and writes a page of results.

    python -m clip_jax.demo --workdir runs/demo

Files in the working directory: `clip/` (the run), `images/` (a folder of images), `index/` (its index), `search.png`,
`classify.png` and `index.html`. A second call reuses the files of the first.
"""

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from ml_collections import ConfigDict

import train_jax
from clip_jax import sheets
from clip_jax.clip import Clip, load
from clip_jax.index_files import SearchError, read_meta
from clip_jax.search import Index, build, search
from train_jax import command, page
from train_jax.data.images import decode
from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.render import png, render
from train_jax.datasets.shapes.shapes_dataset_builder import make

log = logging.getLogger(__name__)

CONFIG = "clip/demo"
PICTURES = {"test": 1000, "novel": 200}  # number of images of each split in the searched folder
SIDE = 128  # side of the written images in pixels; the model's preprocessing resizes them
PLANTED_QUERY = "a small red circle above a large blue star"
QUERIES = (
    PLANTED_QUERY,
    "a green heart",
    "a large purple ring",
    "something yellow left of something black",
    "a star above a circle",
    "a pink cross in the top left",
    "a cyan cross",  # a pair that the training never shows
)
TEMPLATES = ("a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}")
HITS = 8


def main(argv: list[str] | None = None) -> int:
    return command.run_demo(argv, "clip_jax.demo", __doc__.splitlines()[0], CONFIG, run, (SearchError,))


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains the CLIP of `config`, writes the images and the page of the demo, and returns the metrics."""
    start = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    history = train_jax.run(config, workdir / "clip")
    metrics = collect_final_metrics(history)
    clip = load(workdir / "clip")
    truth = export_images(workdir / "images")
    meta = read_meta(workdir / "index")
    if meta is not None and meta["fingerprint"] != clip.fingerprint:
        log.info("the model has been trained since %s was made: indexing again", workdir / "index")
        shutil.rmtree(workdir / "index")
    build(clip, workdir / "images", workdir / "index", model=(workdir / "clip").resolve())
    index = Index.open(workdir / "index")

    sections = [make_search_section(clip, index, truth, query) for query in QUERIES]
    sheets.render_contact_sheet(sections, columns=HITS, size=SIDE).save(workdir / "search.png")
    plot_classification(clip, workdir / "images", truth, workdir / "classify.png")
    table = format_metrics(metrics)
    parts = [page.heading("CLIP on shapes", 1), page.block(table), page.heading("Zero-shot classification", 2)]
    parts += [page.image(workdir / "classify.png"), sheets.render_body(sections)]
    page_file = page.add_part(workdir, "1-clip", "\n".join(parts))

    print(f"\n{table}\n")
    print(f"images: {workdir / 'search.png'}, {workdir / 'classify.png'}; all on one page: {page_file}")
    print(f'try:      clip-jax search {workdir / "index"} "a large orange heart" --html hits.html')
    print(f"took {(time.monotonic() - start) / 60:.1f} minutes")
    return metrics


def collect_final_metrics(history: Sequence[Mapping]) -> dict[str, float]:
    """Returns the last logged value of each top-1 accuracy and recall at 1 in a run's history."""
    metrics = {}
    for row in history:
        for name, value in row.items():
            if name.rsplit("/", 1)[-1] in ("top1", "r1"):
                metrics[name] = value
    return metrics


def format_metrics(metrics: Mapping[str, float]) -> str:
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name:{width}}  {100 * value:6.1f} %" for name, value in metrics.items())


# ---------------------------------------------------------------------------------------------------------------------
# A folder to search


def export_images(folder: Path) -> dict[str, scenes.Scene]:
    """Writes held-out images as PNG files, unless they exist, and returns file name -> scene."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for split, count in PICTURES.items():
        for index in range(count):
            scene, picture, _ = make(split, index, SIDE)
            name = f"{split}-{index:05d}.png"
            truth[name] = scene
            _write_once(folder / name, png(picture))
    # Random scenes rarely match a query of two objects, so three images that match PLANTED_QUERY are added.
    for index in range(3):
        rng = np.random.default_rng(index)
        scene = _sample_planted_scene(rng, ("plain", "noisy")[index % 2])
        truth[f"hidden-{index}.png"] = scene
        _write_once(folder / f"hidden-{index}.png", png(render(scene, SIDE, rng)))
    return truth


def _sample_planted_scene(rng: np.random.Generator, background: str) -> scenes.Scene:
    """Samples a scene that matches `PLANTED_QUERY`."""
    above, below = rng.uniform((0.35, 0.23), (0.65, 0.25)), rng.uniform((0.35, 0.74), (0.65, 0.76))
    return scenes.Scene(
        (
            scenes.Object("red", "circle", *above, scenes.RADII[0]),
            scenes.Object("blue", "star", *below, scenes.RADII[2], rng.uniform(-0.2, 0.2)),
        ),
        background,
    )


def _write_once(file: Path, data: bytes) -> None:
    """Writes a file unless it already has this content. A new mtime would cause it to be indexed again."""
    if not file.exists() or file.read_bytes() != data:
        file.write_bytes(data)


# ---------------------------------------------------------------------------------------------------------------------
# Sections and figures


def make_search_section(clip: Clip, index: Index, truth: Mapping[str, scenes.Scene], query: str) -> sheets.Section:
    """Searches for a query and marks the hits as correct or wrong.

    A wrong hit is marked only at ranks up to the number of relevant images: with three relevant images in the folder,
    only the first three hits can be wrong.
    """
    hits = search(index, clip, text=query, k=HITS)
    num_relevant = sum(scenes.is_true(query, scene) for scene in truth.values())
    correct = [scenes.is_true(query, truth[hit.path.name]) for hit in hits]
    cells = [
        sheets.Cell(hit.path, hit.path.stem, f"{hit.score:.3f}", true if true or rank < num_relevant else None)
        for rank, (hit, true) in enumerate(zip(hits, correct, strict=True))
    ]
    return sheets.Section(f"“{query}”   {sum(correct)} of {min(num_relevant, len(hits))} found", cells)


def plot_classification(clip: Clip, folder: Path, truth: Mapping[str, scenes.Scene], file: Path, top: int = 6) -> None:
    """Plots the most probable labels of two images of trained colour-shape pairs and two images of held-out pairs."""
    labelled = [name for name, scene in truth.items() if scene.label >= 0]
    test = [name for name in labelled if name.startswith("test")]
    novel = [name for name in labelled if name.startswith("novel")]
    names = [*test[:2], *novel[:2]]
    probabilities = clip.classify([folder / name for name in names], scenes.LABEL_NAMES, TEMPLATES)
    figure = matplotlib.figure.Figure(figsize=(10, 2.2 * len(names)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.12)
    axes = figure.subplots(len(names), 2, width_ratios=(1, 3), squeeze=False)
    for (left, right), name, row in zip(axes, names, probabilities, strict=True):
        left.imshow(decode(folder / name), interpolation="bicubic")
        left.set_axis_off()
        best = np.argsort(-row)[:top][::-1]
        true = truth[name].label
        bars = right.barh(
            [scenes.LABEL_NAMES[i] for i in best],
            row[best],
            color=["#15803d" if i == true else "#9ca3af" for i in best],
        )
        right.bar_label(bars, [f"{100 * row[i]:.1f} %" for i in best], padding=4)
        right.set_xlim(0, 1.12)
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
        note = "" if name.startswith("test") else " (a pair that the training never shows)"
        right.set_title(f"{scenes.LABEL_NAMES[true]}{note}", loc="left", fontsize=11)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
