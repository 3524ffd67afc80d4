"""The whole way in one command: train a small CLIP, grade it, classify and search pictures with it, show what came out.

    python -m clip_jax.demo --workdir runs/demo

Leaves in the working directory: `clip/` (the run), `images/` (a folder of pictures), `index/` (its index), `search.png`,
`classify.png` and `index.html`. Every step takes up what an earlier call has done.
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
PICTURES = {"test": 1000, "novel": 200}  # how many of each split go into the folder that is searched
SIDE = 128  # pixels, for people: the model sees them reduced to its own size
HIDDEN = "a small red circle above a large blue star"
QUERIES = (
    HIDDEN,
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
    return command.demo(argv, "clip_jax.demo", __doc__.splitlines()[0], CONFIG, run, (SearchError,))


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains what `config` says (a CLIP on the rendered scenes) and makes the pictures; returns the graded results."""
    begun = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    history = train_jax.run(config, workdir / "clip")
    results = graded(history)
    clip = load(workdir / "clip")
    truth = export(workdir / "images")
    meta = read_meta(workdir / "index")
    if meta is not None and meta["fingerprint"] != clip.fingerprint:
        log.info("the model has been trained since %s was made: indexing again", workdir / "index")
        shutil.rmtree(workdir / "index")
    build(clip, workdir / "images", workdir / "index", model=(workdir / "clip").resolve())
    index = Index.open(workdir / "index")

    sections = [answer(clip, index, truth, query) for query in QUERIES]
    sheets.contact_sheet(sections, columns=HITS, size=SIDE).save(workdir / "search.png")
    draw_classification(clip, workdir / "images", truth, workdir / "classify.png")
    table = result_table(results)
    parts = [page.heading("CLIP on shapes", 1), page.block(table), page.heading("Zero-shot classification", 2)]
    parts += [page.image(workdir / "classify.png"), sheets.body(sections)]
    shown = page.add_part(workdir, "1-clip", "\n".join(parts))

    print(f"\n{table}\n")
    print(f"pictures: {workdir / 'search.png'}, {workdir / 'classify.png'}; all on one page: {shown}")
    print(f'try:      clip-jax search {workdir / "index"} "a large orange heart" --html hits.html')
    print(f"took {(time.monotonic() - begun) / 60:.1f} minutes")
    return results


def graded(history: Sequence[Mapping]) -> dict[str, float]:
    """What the run's evaluators found last: shares of right answers, by name."""
    found = {}
    for row in history:
        for name, value in row.items():
            if name.rsplit("/", 1)[-1] in ("top1", "r1"):
                found[name] = value
    return found


def result_table(results: Mapping[str, float]) -> str:
    width = max(map(len, results), default=0)
    return "\n".join(f"{name:{width}}  {100 * value:6.1f} %" for name, value in results.items())


# ---------------------------------------------------------------------------------------------------------------------
# A folder to search


def export(folder: Path) -> dict[str, scenes.Scene]:
    """Writes pictures that the training did not see, as PNG files; returns what each shows. Files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for split, count in PICTURES.items():
        for number in range(count):
            scene, picture, _ = make(split, number, SIDE)
            name = f"{split}-{number:05d}.png"
            truth[name] = scene
            _keep(folder / name, png(picture))
    # Hardly any scene of two objects is among a thousand by chance: three that answer the longest query are put there.
    for number in range(3):
        rng = np.random.default_rng(number)
        scene = _hidden(rng, ("plain", "noisy")[number % 2])
        truth[f"hidden-{number}.png"] = scene
        _keep(folder / f"hidden-{number}.png", png(render(scene, SIDE, rng)))
    return truth


def _hidden(rng: np.random.Generator, background: str) -> scenes.Scene:
    above, below = rng.uniform((0.35, 0.23), (0.65, 0.25)), rng.uniform((0.35, 0.74), (0.65, 0.76))
    return scenes.Scene(
        (
            scenes.Object("red", "circle", *above, scenes.RADII[0]),
            scenes.Object("blue", "star", *below, scenes.RADII[2], rng.uniform(-0.2, 0.2)),
        ),
        background,
    )


def _keep(file: Path, data: bytes) -> None:
    """Writes a file once: a new time of change would have it indexed again."""
    if not file.exists() or file.read_bytes() != data:
        file.write_bytes(data)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures to look at


def answer(clip: Clip, index: Index, truth: Mapping[str, scenes.Scene], query: str) -> sheets.Section:
    """The hits of a query and how many of the right answers are among them.

    Right ones are marked, and so are wrong ones that stand where a right one could be: where the folder holds three right
    answers, only the first three hits can be mistakes.
    """
    hits = search(index, clip, text=query, top=HITS)
    possible = sum(scenes.is_true(query, scene) for scene in truth.values())
    right = [scenes.is_true(query, truth[hit.path.name]) for hit in hits]
    cells = [
        sheets.Cell(hit.path, hit.path.stem, f"{hit.score:.3f}", good if good or rank < possible else None)
        for rank, (hit, good) in enumerate(zip(hits, right, strict=True))
    ]
    return sheets.Section(f"“{query}”   {sum(right)} of {min(possible, len(hits))} found", cells)


def draw_classification(clip: Clip, folder: Path, truth: Mapping[str, scenes.Scene], file: Path, most: int = 6) -> None:
    """Four pictures with the probabilities of their likeliest colour-shape pairs; the last two are of untrained pairs."""
    single = [name for name, scene in truth.items() if scene.label >= 0]
    seen = [name for name in single if name.startswith("test")]
    novel = [name for name in single if name.startswith("novel")]
    names = [*seen[:2], *novel[:2]]
    probabilities = clip.classify([folder / name for name in names], scenes.LABEL_NAMES, TEMPLATES)
    figure = matplotlib.figure.Figure(figsize=(10, 2.2 * len(names)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.12)
    axes = figure.subplots(len(names), 2, width_ratios=(1, 3), squeeze=False)
    for (left, right), name, row in zip(axes, names, probabilities, strict=True):
        left.imshow(decode(folder / name), interpolation="bicubic")
        left.set_axis_off()
        best = np.argsort(-row)[:most][::-1]
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
        kind = "" if name.startswith("test") else " (a pair that the training never shows)"
        right.set_title(f"{scenes.LABEL_NAMES[true]}{kind}", loc="left", fontsize=11)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
