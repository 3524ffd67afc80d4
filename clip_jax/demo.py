"""Trains and evaluates a small CLIP, classifies and searches held-out images, and writes a page of results.

    python -m clip_jax.demo [--data shapes|emoji] --workdir runs/demo

Files in the working directory: `clip/` (the run), `images/` (a folder of images), `index/` (its index), `search.png`,
`classify.png` and `index.html`. A second call reuses the files of the first.
"""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from ml_collections import ConfigDict

import train_jax
from clip_jax import sheets
from clip_jax.clip import Clip, load
from clip_jax.index_files import read_meta
from clip_jax.search import Index, build, search
from train_jax import command, page
from train_jax import config as config_lib
from train_jax.data import sources
from train_jax.data.images import decode

log = logging.getLogger(__name__)

HITS = 8
SIDE = 128  # pixels of a thumbnail


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m clip_jax.demo` and returns its exit code; see `train_jax.command.run_demo`."""
    return command.run_demo(argv, "clip_jax.demo", __doc__.splitlines()[0], "clip", run)


def run(demo: ModuleType, config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains the CLIP of `config`, writes the images and the page of a demo, and returns the metrics."""
    start = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    filled = config_lib.fill(config)
    for name, options in filled.evals.items():
        if options.type == "hits" and options.every:
            sheet = workdir / "clip" / "samples" / f"{options.every:08d}-{name}-hits.png"
            log.info("what it finds after %d updates, and every %d from then on: %s", options.every, options.every, sheet)
    metrics = train_jax.run(config, workdir / "clip").last_evaluations("top1", "r1", "all")
    clip = load(workdir / "clip")
    data = filled.data
    truth = write_images(demo.make_images(data), workdir / "images")
    meta = read_meta(workdir / "index")
    if meta is not None and meta["fingerprint"] != clip.fingerprint:
        log.info("the model has been trained since %s was made: indexing again", workdir / "index")
        shutil.rmtree(workdir / "index")
    build(clip, workdir / "images", workdir / "index", model=(workdir / "clip").resolve())
    index = Index.open(workdir / "index")

    source = sources.from_config(data)
    sections = [make_search_section(clip, index, truth, source.is_true, query) for query in demo.QUERIES]
    sheets.render_contact_sheet(sections, columns=HITS, size=SIDE).save(workdir / "search.png")
    plot_classification(demo, clip, workdir / "images", truth, source.label_names, workdir / "classify.png")
    table = format_metrics(metrics)
    parts = [page.heading(f"CLIP on {demo.TITLE}", 1), page.block(table), page.heading("Zero-shot classification", 2)]
    parts += [page.image(workdir / "classify.png"), sheets.render_body(sections)]
    page_file = page.add_part(workdir, "1-clip", "\n".join([*parts, page.note(demo.CREDIT)]))

    print(f"\n{table}\n")
    print(f"images: {workdir / 'search.png'}, {workdir / 'classify.png'}; all on one page: {page_file}")
    print(f'try:      clip-jax search {workdir / "index"} "{demo.QUERIES[1]}" --html hits.html')
    print(f"took {(time.monotonic() - start) / 60:.1f} minutes")
    return metrics


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Formats shares in [0, 1] as percentages, one a line behind its name."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name:{width}}  {100 * value:6.1f} %" for name, value in metrics.items())


def write_images(images: Iterable[tuple[str, dict, bytes]], folder: Path) -> dict[str, dict]:
    """Writes images into a folder, unless they are there. Returns file name -> record.

    Args:
      images: name, record and PNG file of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for name, record, data in images:
        truth[f"{name}.png"] = record
        _write_once(folder / f"{name}.png", data)
    return truth


def _write_once(file: Path, data: bytes) -> None:
    """Writes a file unless it already has this content. A new mtime would cause it to be indexed again."""
    if not file.exists() or file.read_bytes() != data:
        file.write_bytes(data)


def make_search_section(
    clip: Clip, index: Index, truth: Mapping[str, dict], is_true: Callable[[str, dict], bool], query: str
) -> sheets.Section:
    """Searches for a query and marks the hits as correct or wrong.

    Args:
      truth: file name -> record.
      is_true: whether a caption is true of a record.

    A wrong hit is marked only at ranks up to the number of relevant images: with three relevant images in the folder,
    only the first three hits can be wrong.
    """
    hits = search(index, clip, text=query, k=HITS)
    num_relevant = sum(is_true(query, record) for record in truth.values())
    # The folder may hold images of an earlier demo, or of the user's, of which nothing is known.
    correct = [hit.path.name in truth and is_true(query, truth[hit.path.name]) for hit in hits]
    cells = [
        sheets.Cell(hit.path, hit.path.stem, f"{hit.score:.3f}", true if true or rank < num_relevant else None)
        for rank, (hit, true) in enumerate(zip(hits, correct, strict=True))
    ]
    return sheets.Section(f"“{query}”   {sum(correct)} of {min(num_relevant, len(hits))} found", cells)


def plot_classification(
    demo: ModuleType,
    clip: Clip,
    folder: Path,
    truth: Mapping[str, dict],
    labels: Sequence[str],
    file: Path,
    shown: int = 4,
    top: int = 6,
) -> None:
    """Plots the most probable labels of some images of each split in `demo.CLASSIFIED`."""
    names = []
    for split in demo.CLASSIFIED:
        labelled = [name for name, record in truth.items() if record["split"] == split and record["label"] >= 0]
        names += labelled[: shown // len(demo.CLASSIFIED)]
    probabilities = clip.classify([folder / name for name in names], labels, demo.TEMPLATES)
    figure = matplotlib.figure.Figure(figsize=(10, 2.2 * len(names)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.12)
    axes = figure.subplots(len(names), 2, width_ratios=(1, 3), squeeze=False)
    for (left, right), name, row in zip(axes, names, probabilities, strict=True):
        left.imshow(decode(folder / name), interpolation="bicubic")
        left.set_axis_off()
        best = np.argsort(-row)[:top][::-1]
        true = truth[name]["label"]
        bars = right.barh(
            [labels[i] for i in best],
            row[best],
            color=["#15803d" if i == true else "#9ca3af" for i in best],
        )
        right.bar_label(bars, [f"{100 * row[i]:.1f} %" for i in best], padding=4)
        right.set_xlim(0, 1.12)
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
        note = demo.CLASSIFIED[truth[name]["split"]]
        right.set_title(labels[true] + f" ({note})" * bool(note), loc="left", fontsize=11)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
