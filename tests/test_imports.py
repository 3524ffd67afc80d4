"""Who may import whom, read from the source: layers stay layers; run time needs no PyTorch or TensorFlow."""

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nn_jax", "train_jax", "clip_jax", "vqgan_jax", "dalle_jax", "configs")
OUTSIDE = ("tests", "benchmarks", "notebooks")

# What any module of a package may import of the others. `configs` is in no row: configs are loaded by path.
# `train_jax.errors` holds no more than the exceptions that the command line knows how to show, `train_jax.paths` what
# opens the paths that users name.
PACKAGE_EDGES = {
    "nn_jax": set(),
    "train_jax": set(),
    "clip_jax": {"nn_jax", "train_jax.errors", "train_jax.paths"},
    "vqgan_jax": {"nn_jax", "train_jax.errors", "train_jax.paths"},
    "dalle_jax": {"nn_jax", "train_jax.errors", "train_jax.paths", "vqgan_jax"},
    "configs": set(),
}

# What single modules (and modules inside them) may import besides.
MODULE_EDGES = {
    # A task is made for the trainer; its evaluators are part of it.
    "clip_jax.task": {"train_jax"},
    "clip_jax.evaluators": {"train_jax"},
    "vqgan_jax.task": {"train_jax"},
    "vqgan_jax.evaluators": {"train_jax"},
    "dalle_jax.task": {"train_jax"},
    "dalle_jax.evaluators": {"train_jax"},
    # Loading a run directory reads the trainer's checkpoints, tokeniser and preprocessing, nothing else.
    "clip_jax.clip": {"train_jax.data", "train_jax.inference", "train_jax.weights"},
    "clip_jax.pretrained": {"train_jax.data", "train_jax.weights"},
    "clip_jax.pretrained.run_directory": {"train_jax.run_directory"},
    # The tiled loss walks over the axes that the batch is split over; FLOPs are counted with the trainer's formulas.
    "clip_jax.tiled": {"train_jax.sharding"},
    "clip_jax.flops": {"train_jax.profiling"},
    "vqgan_jax.vqgan": {"train_jax.data", "train_jax.inference", "train_jax.weights"},
    "vqgan_jax.prior.task": {"train_jax"},
    "vqgan_jax.prior.evaluators": {"train_jax"},
    "vqgan_jax.prior.prior": {"train_jax.run_directory", "train_jax.inference", "train_jax.weights"},
    "vqgan_jax.prior.taming": {"train_jax.weights"},
    "vqgan_jax.codes": {"train_jax.data"},
    # Hosts that compute codes together agree as those that train together do.
    "vqgan_jax.code_files": {"train_jax.data", "train_jax.agreement"},
    "vqgan_jax.cli": {"train_jax.arguments", "train_jax.command", "train_jax.data", "train_jax.__main__"},
    "dalle_jax.dalle": {"train_jax.data", "train_jax.inference", "train_jax.weights"},
    "dalle_jax.captions": {"train_jax.data"},
    "dalle_jax.pretrained": {"train_jax.run_directory", "train_jax.data", "train_jax.weights"},
    "dalle_jax.cli": {"train_jax.arguments", "train_jax.command", "train_jax.data", "train_jax.__main__"},
    "dalle_jax.demo": {"train_jax"},
    # What reads a user's pictures reads them as the trainer does.
    "clip_jax.templates": {"train_jax.arguments"},
    "clip_jax.cli": {"train_jax.arguments", "train_jax.command", "train_jax.data", "train_jax.weights"},
    "clip_jax.search": {"train_jax.data"},
    "clip_jax.sheets": {"train_jax.data", "train_jax.page"},
    # The demos call the trainer as a user would.
    "clip_jax.demo": {"train_jax"},
    "vqgan_jax.demo": {"train_jax"},
    # CLIP judges and guides the other models.
    "vqgan_jax.guided": {"clip_jax", "train_jax.arguments", "train_jax.data", "train_jax.memory", "train_jax.profiling"},
    "vqgan_jax.guided.demo": {"train_jax"},
    "vqgan_jax.perceptual": {"clip_jax", "train_jax.weights"},
    "vqgan_jax.features": {"clip_jax", "train_jax.inference"},
    "vqgan_jax.inception": {"train_jax.weights"},
    "vqgan_jax.pretrained": {"train_jax.run_directory", "train_jax.data", "train_jax.weights"},
    "dalle_jax.rerank": {"clip_jax"},
}

# Only tests marked `peers` and benchmarks may have these, and modules whose purpose is to compare with a peer.
PEERS = {"torch", "torchvision", "transformers", "diffusers", "open_clip", "timm"}
COMPARES = {"clip_jax.verify": {"torch", "transformers"}}
# Extras: imported where they are asked for, with an error that names the extra where they are missing.
EXTRAS = {"clip_jax.nearest": {"faiss"}}
# Nothing may: TensorFlow itself, and libraries that need it.
BANNED = {"tensorflow", "tf_keras", "keras", "clu"}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).glob("**/*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, path: Path) -> list[tuple[str, int]]:
    """Every (dotted name, line) that a source imports, by statement or by a literal given to import_module.

    `from a import b` counts as `a.b`, which may be a module; relative names are resolved.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            found += [(f"{origin}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0].value
            if called in ("import_module", "__import__", "importorskip") and isinstance(name, str):
                found.append((name, node.lineno))
    return found


def within(name: str, parents: set[str]) -> bool:
    """Whether a dotted name is one of `parents` or lies inside one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def allowed(importer: str) -> set[str]:
    """What a module may import of the project."""
    extra = [names for module, names in MODULE_EDGES.items() if within(importer, {module})]
    own = importer.split(".")[0]
    return {own}.union(PACKAGE_EDGES[own], *extra)


def top(name: str) -> str:
    return name.split(".")[0]


def violations(path: Path, source: str) -> list[str]:
    """The imports of one module of `PACKAGES` that cross the layers or that run time does without."""
    importer = module_name(path)
    wrong = []
    for name, line in imports(ast.parse(source), path):
        if top(name) in PACKAGES:
            bad = not within(name, allowed(importer))
        elif top(importer) == "configs":
            bad = top(name) != "ml_collections"
        else:
            bad = top(name) in (BANNED | PEERS | set(OUTSIDE)) - COMPARES.get(importer, set())
        if bad:
            wrong.append(f"{importer}:{line} imports {name}")
    return wrong


def test_packages_import_only_along_the_edges():
    assert [line for path in sources(*PACKAGES) for line in violations(path, path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("file", "source", "ok"),
    [
        ("nn_jax/embed.py", "import jax\nfrom nn_jax import transformer", True),
        ("nn_jax/embed.py", "from train_jax import sharding", False),
        ("train_jax/train.py", "import clip_jax.task", False),
        ("train_jax/train.py", "importlib.import_module('clip_jax.task')", False),
        ("train_jax/data/text.py", "from ..checkpoint import load_weights", True),
        ("train_jax/data/text.py", "def f():\n    import tensorflow as tf", False),
        ("train_jax/step.py", "import torch", False),
        ("clip_jax/task.py", "from train_jax.task import Task", True),
        ("clip_jax/model.py", "from train_jax.task import Task", False),
        ("clip_jax/clip.py", "from train_jax.data.text import Tokenizer", True),
        ("clip_jax/clip.py", "from train_jax import checkpoint", False),
        ("clip_jax/pretrained/run_directory.py", "from train_jax import run_directory", True),
        ("clip_jax/clip.py", "from train_jax import run", False),
        ("clip_jax/model.py", "from train_jax.errors import ConfigError", True),
        ("clip_jax/loss.py", "import vqgan_jax", False),
        ("clip_jax/loss.py", "from configs.clip import shapes", False),
        ("clip_jax/cli.py", "from benchmarks import step", False),
        ("vqgan_jax/perceptual.py", "import clip_jax", True),
        ("vqgan_jax/guided/losses.py", "import clip_jax", True),
        ("vqgan_jax/model.py", "import clip_jax", False),
        ("dalle_jax/codes.py", "import vqgan_jax", True),
        ("dalle_jax/codes.py", "import clip_jax", False),
        ("configs/clip/demo.py", "from ml_collections import ConfigDict", True),
        ("configs/clip/demo.py", "from . import shapes", True),
        ("configs/clip/demo.py", "import math", False),
        ("configs/clip/demo.py", "import train_jax", False),
    ],
)
def test_the_check_itself(file, source, ok):
    assert (violations(ROOT / file, source) == []) is ok


def test_every_rule_is_about_a_module():
    assert sorted({*MODULE_EDGES, *COMPARES, *EXTRAS} - {module_name(path) for path in sources(*PACKAGES)}) == []


def test_every_import_is_declared():
    """A package that is there only because another needs it disappears one day."""
    setup = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    lists = [node.value for node in ast.walk(setup) if getattr(node, "arg", None) == "install_requires"]
    declared = {_canonical(requirement) for requirement in ast.literal_eval(lists[0])}
    provided_by = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in sources(*PACKAGES):
        for name, line in imports(ast.parse(path.read_text("utf-8")), path):
            module = top(name)
            if module in PACKAGES or module in sys.stdlib_module_names:
                continue
            if module in COMPARES.get(module_name(path), set()) | EXTRAS.get(module_name(path), set()):
                continue
            if not declared & {_canonical(distribution) for distribution in provided_by.get(module, ())}:
                undeclared.add(f"{module_name(path)}:{line} imports {module}: not in install_requires")
    assert sorted(undeclared) == []


def _canonical(requirement: str) -> str:
    """`Foo_bar>=1; marker` -> `foo-bar`."""
    name = requirement
    for end in "<>=!~;[ (":
        name = name.split(end)[0]
    return name.strip().lower().replace("_", "-").replace(".", "-")


def test_peers_only_where_marked():
    wrong = []
    for path in sources("tests"):
        if path.parent.name == "golden":  # makes what the tests compare with, by hand, where the peers are
            continue
        tree = ast.parse(path.read_text("utf-8"))
        whole_file = any(
            isinstance(node, ast.Assign)
            and any(getattr(target, "id", "") == "pytestmark" for target in node.targets)
            and _marks_peers(node.value)
            for node in tree.body
        )
        marked = [] if whole_file else _marked_nodes(tree)
        for name, line in imports(tree, path):
            inside = whole_file or any(node.lineno <= line <= node.end_lineno for node in marked)
            if top(name) in BANNED or (top(name) in PEERS and not inside):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} outside tests marked `peers`")
    assert wrong == []


def _marks_peers(node: ast.AST) -> bool:
    return any(isinstance(child, ast.Attribute) and child.attr == "peers" for child in ast.walk(node))


def _marked_nodes(tree: ast.AST) -> list[ast.AST]:
    """Functions and classes with `@pytest.mark.peers`."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, kinds) and any(_marks_peers(decorator) for decorator in node.decorator_list)
    ]


def test_nothing_imports_notebooks_or_benchmarks():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(*OUTSIDE)
        for name, line in imports(ast.parse(path.read_text("utf-8")), path)
        if top(name) in {"notebooks", "benchmarks"} - {path.relative_to(ROOT).parts[0]}
    ]
    assert wrong == []


def test_every_folder_with_code_is_a_package():
    """setup.py installs packages only: a folder without `__init__.py` would be missing after `pip install`."""
    folders = {path.parent for path in sources(*PACKAGES) if module_name(path).split(".")[0] != "configs"}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_file_names_say_what_is_inside():
    names = [path.relative_to(ROOT).with_suffix("") for path in sources(*PACKAGES, *OUTSIDE)]
    assert [str(name) for name in names if VAGUE_NAMES.intersection("_".join(name.parts).split("_"))] == []
