"""Draws docs/layers.svg: every module by package and layer, and which package imports which, read from the source.

    python -m tests.draw_layers

Layers are those that `tests/test_imports.py` checks.
"""

import ast
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.textpath import TextPath

from tests.test_imports import IMPORTED, LAYERS, ROOT, imports, level, module_name, sources, top

FILE = ROOT / "docs" / "layers.svg"

# In inches. At the width of a README (about 9 inches on a screen) text is as large as the page's.
_LABELS, _GAP, _CHIP, _LINE, _FONT = 1.12, 0.08, 0.19, 0.23, 8.5
_WIDTHS = {"nn_jax": 1.4, "train_jax": 2.0, "clip_jax": 1.95, "vqgan_jax": 2.0, "dalle_jax": 1.35, "multimodal_jax": 1.3}
_COLOURS = {
    "nn_jax": "#6b6b6b", "train_jax": "#3b6fb6", "clip_jax": "#2f8f5b", "vqgan_jax": "#c0622d", "dalle_jax": "#8a4fa3",
    "multimodal_jax": "#a03a4e",
}  # fmt: skip
_ARCS, _HEAD = 0.85, 0.32

Cells = dict[str, dict[str, list[str]]]  # layer -> package -> modules


def modules() -> Iterator[tuple[str, Path]]:
    """The modules of all packages, without the packages' own `__init__.py`."""
    for path in sources(*IMPORTED):
        name = module_name(path)
        if name not in IMPORTED:
            yield name, path


def read_cells() -> Cells:
    """Modules by layer, from the ground up, and package. A subpackage that lies in one layer is one name, ending in "/"."""
    layers, cells = list(LAYERS), {}
    for layer in layers:
        cells[layer] = {package: set() for package in IMPORTED}
    for name, path in modules():
        package, first, *rest = name.split(".")
        is_folder = bool(rest) or path.name == "__init__.py"
        if is_folder and level(name) == level(f"{package}.{first}"):
            rest, first = [], f"{first}/"
        cells[layers[level(name)]][package].add(".".join([first, *rest]))
    return {
        layer: {package: sorted(names) for package, names in row.items() if names} for layer, row in cells.items()
    }


def read_edges() -> list[list[str]]:
    """Pairs of packages, of which the first imports the second."""
    edges = {
        (top(name), top(imported))
        for name, path in modules()
        for imported, _ in imports(ast.parse(path.read_text("utf-8")), path)
        if top(imported) in IMPORTED and top(imported) != top(name)
    }
    return [list(edge) for edge in sorted(edges)]


def arrange(names: Sequence[str], width: float) -> list[list[tuple[float, float, str]]]:
    """Lines of chips in a column of this width: (left, width, name) in inches."""
    lines, left = [[]], _GAP
    for name in names:
        size = TextPath((0, 0), name, size=_FONT).get_extents().width / 72 + 0.13
        if left + size > width - _GAP and lines[-1]:
            lines.append([])
            left = _GAP
        lines[-1].append((left, size, name))
        left += size + 0.06
    return lines


def draw(cells: Cells, edges: Sequence[Sequence[str]], file: Path) -> None:
    """Writes the picture; its metadata hold what it was drawn from."""
    lefts, right = {}, _LABELS
    for package, width in _WIDTHS.items():
        lefts[package], right = right, right + width
    rows = {
        layer: {package: arrange(names, _WIDTHS[package]) for package, names in row.items()}
        for layer, row in cells.items()
    }
    heights = {layer: _LINE * max(map(len, row.values())) + 0.14 for layer, row in rows.items()}
    total = sum(heights.values()) + _HEAD + _ARCS
    plt.rcParams.update({"font.size": _FONT, "font.family": "DejaVu Sans", "svg.hashsalt": "layers"})
    figure = plt.figure(figsize=(right, total))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, right), ylim=(0, total))
    axes.set_axis_off()
    bottom = 0.0
    for index, (layer, row) in enumerate(rows.items()):
        shade = "#f3f4f6" if index % 2 else "#fafafa"
        axes.add_patch(plt.Rectangle((0, bottom), right, heights[layer], color=shade, linewidth=0))
        axes.text(0.1, bottom + heights[layer] / 2, textwrap.fill(layer, 16), va="center", color="#333333")
        for package, lines in row.items():
            _draw_chips(axes, lines, lefts[package], bottom + heights[layer], _COLOURS[package])
        bottom += heights[layer]
    _draw_packages(axes, edges, lefts, bottom)
    data = json.dumps([cells, edges])
    figure.savefig(file, metadata={"Date": None, "Description": data})
    plt.close(figure)


def _draw_chips(axes, lines: Sequence, left: float, upper: float, colour: str) -> None:
    for number, line in enumerate(lines):
        y = upper - 0.07 - (number + 0.5) * _LINE
        for offset, width, name in line:
            box = FancyBboxPatch(
                (left + offset, y - _CHIP / 2), width, _CHIP, "round,pad=0,rounding_size=0.05",
                facecolor=colour if name.endswith("/") else "white", edgecolor=colour, linewidth=0.8,
            )  # fmt: skip
            axes.add_patch(box)
            text = "white" if name.endswith("/") else "#222222"
            axes.text(left + offset + width / 2, y - 0.005, name, ha="center", va="center", color=text)


def _draw_packages(axes, edges: Sequence[Sequence[str]], lefts: Mapping[str, float], bottom: float) -> None:
    """Names of the columns, and above them an arc from each package to those that it imports."""
    middles = {package: left + _WIDTHS[package] / 2 for package, left in lefts.items()}
    for package, middle in middles.items():
        box = FancyBboxPatch(
            (lefts[package] + _GAP, bottom + 0.05), _WIDTHS[package] - 2 * _GAP, _HEAD - 0.1,
            "round,pad=0,rounding_size=0.05", color=_COLOURS[package],
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(middle, bottom + _HEAD / 2 - 0.005, package, ha="center", va="center", color="white", weight="bold")
    names = list(lefts)
    for importer, imported in edges:
        span = names.index(importer) - names.index(imported)
        # Arrows leave a package at its left and arrive at the right, the shorter ones inside the longer ones.
        start = middles[importer] - 0.1 - 0.09 * span
        end = middles[imported] + 0.1 + 0.09 * span
        arc = FancyArrowPatch(
            (start, bottom + _HEAD), (end, bottom + _HEAD),
            connectionstyle=f"arc3,rad={0.62 / span**0.75}", arrowstyle="-|>", mutation_scale=9,
            color=_COLOURS[importer], linewidth=1.3, shrinkA=0, shrinkB=0,
        )  # fmt: skip
        axes.add_patch(arc)
    axes.text(0.1, bottom + _HEAD / 2, "layer", va="center", weight="bold", color="#333333")
    axes.text(0.1, bottom + _HEAD + 0.25, "arrow: imports", va="center", color="#333333")


if __name__ == "__main__":
    draw(read_cells(), read_edges(), FILE)
    print(FILE)
