"""Who may import whom, read from the source: layers stay layers; run time needs no PyTorch or TensorFlow."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nn_jax", "train_jax", "clip_jax", "vqgan_jax", "dalle_jax", "multimodal_jax", "configs")
OUTSIDE = ("tests", "benchmarks", "notebooks")

# Which other packages a package imports. Configs are loaded by path: no package imports them.
IMPORTED = {
    "nn_jax": (),
    "train_jax": ("nn_jax",),
    "clip_jax": ("nn_jax", "train_jax"),
    "vqgan_jax": ("nn_jax", "train_jax", "clip_jax"),
    "dalle_jax": ("nn_jax", "train_jax", "clip_jax", "vqgan_jax"),
    "multimodal_jax": ("train_jax", "clip_jax", "vqgan_jax", "dalle_jax"),
}
# From the lowest up: a module imports from the layers below its own, and of its own layer modules of its own package. It is
# in the layer of the longest name that it lies in; a package's own name stands for the modules that no layer names.
LAYERS = {
    "layers": "nn_jax train_jax.errors train_jax.installation train_jax.options train_jax.paths",
    "computation": "train_jax.compute",
    "networks and losses": """
        clip_jax.convnext clip_jax.hmlp clip_jax.loss clip_jax.mbconv clip_jax.mci clip_jax.model clip_jax.options
        clip_jax.projection clip_jax.resnet clip_jax.text clip_jax.vision
        dalle_jax.unclip.context dalle_jax.unclip.diffusion dalle_jax.unclip.options dalle_jax.unclip.prior_networks
        dalle_jax.unclip.samplers dalle_jax.unclip.timestep dalle_jax.unclip.unet
        vqgan_jax.averaging vqgan_jax.codebook vqgan_jax.discriminator vqgan_jax.dvae vqgan_jax.loss vqgan_jax.metrics
        vqgan_jax.model vqgan_jax.quantize""",
    "data, weights, devices": """
        train_jax.agreement train_jax.arguments train_jax.data train_jax.datasets train_jax.inference train_jax.memory
        train_jax.page train_jax.pictures train_jax.placeholders train_jax.precompute train_jax.profiling
        train_jax.program_cache train_jax.sharding train_jax.weights""",
    "checkpoints": "train_jax.checkpoint train_jax.lora train_jax.optim train_jax.resume train_jax.trained_weights",
    "run directories, tasks": """
        train_jax.config train_jax.config_file train_jax.evaluation.results train_jax.metrics train_jax.model_card
        train_jax.plan.program train_jax.run_directory train_jax.runs.read train_jax.task train_jax.upload""",
    "CLIP": "clip_jax",
    "VQGAN": "vqgan_jax",
    "second stages, painting": "vqgan_jax.guided vqgan_jax.prior vqgan_jax.stage2",
    "DALL-E": "dalle_jax",
    "trainer": "train_jax",
    "commands": """
        clip_jax.cli clip_jax.demo clip_jax.evaluate dalle_jax.cli dalle_jax.demo dalle_jax.unclip.cli vqgan_jax.cli
        vqgan_jax.demo vqgan_jax.guided.cli vqgan_jax.guided.demo""",
    "all models": "multimodal_jax",
}
LEVELS = {name: level for level, names in enumerate(LAYERS.values()) for name in names.split()}
# Models know what a run directory holds, not how it is written.
INTERNAL = LAYERS["checkpoints"].split()
# What processes that read data are sent, besides each family's `example.py`. They start sooner without JAX, but for what
# Grain itself imports of it.
READ_BY_WORKERS = ("train_jax.data.stream", "train_jax.data.precomputed", "vqgan_jax.coded", "dalle_jax.captions")

# Only tests marked `peers` and benchmarks may have these, and modules whose purpose is to compare or compute with a peer.
PEERS = {"torch", "torchvision", "transformers", "diffusers", "open_clip", "timm"}
COMPARES = {"clip_jax.verify": {"torch", "transformers"}, "dalle_jax.features": {"torch", "transformers"}}
# Extras: imported where they are asked for, with an error that names the extra where they are missing.
EXTRAS = {
    "clip_jax.nearest": {"faiss"},
    "dalle_jax.text_normalizer": {"emoji", "text_unidecode"},
    "multimodal_jax.serve.page": {"gradio"},
    "train_jax.datasets.emoji.drawings": {"resvg_py"},
    "train_jax.sweep.launch": {"submitit"},
    "train_jax.sweep.trials": {"optuna"},
    "vqgan_jax.guided.notebook": {"ipywidgets"},
}
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
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            names += [(f"{origin}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0].value
            if called in ("import_module", "__import__", "importorskip") and isinstance(name, str):
                names.append((name, node.lineno))
    return names


def top(name: str) -> str:
    return name.split(".")[0]


def level(name: str) -> int:
    """The index of the layer of a module, or of a name in one."""
    while name not in LEVELS:
        name = name.rpartition(".")[0]
    return LEVELS[name]


def may_import(importer: str, name: str) -> bool:
    """Whether a module of a package may import this name of the project."""
    if top(importer) == top(name):
        return importer == top(importer) or level(name) <= level(importer)  # a package offers its API by late imports
    is_internal = any(f"{name}.".startswith(f"{module}.") for module in INTERNAL)
    return top(name) in IMPORTED[top(importer)] and not is_internal and level(name) < level(importer)


def violations(path: Path, source: str) -> list[str]:
    """The imports of one module of `PACKAGES` that cross the layers or that run time does without."""
    importer = module_name(path)
    wrong = []
    for name, line in imports(ast.parse(source), path):
        if top(importer) == "configs":
            bad = top(name) not in ("configs", "ml_collections")
        elif top(name) in PACKAGES:
            bad = not may_import(importer, name)
        else:
            bad = top(name) in (BANNED | PEERS | set(OUTSIDE)) - COMPARES.get(importer, set())
        if bad:
            wrong.append(f"{importer}:{line} imports {name}")
    return wrong


def test_packages_import_only_from_below():
    assert [line for path in sources(*PACKAGES) for line in violations(path, path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("file", "source", "ok"),
    [
        ("nn_jax/embed.py", "import jax\nfrom nn_jax import transformer", True),
        ("nn_jax/embed.py", "from train_jax.errors import ConfigError", False),
        ("train_jax/train.py", "import clip_jax.task", False),
        ("train_jax/train.py", "importlib.import_module('clip_jax.task')", False),
        ("train_jax/data/text.py", "from ..paths import path_of", True),
        ("train_jax/data/text.py", "from ..checkpoint import load_weights", False),
        ("train_jax/data/text.py", "def f():\n    import tensorflow as tf", False),
        ("train_jax/step.py", "import torch", False),
        ("clip_jax/task.py", "from train_jax.task import Task", True),
        ("clip_jax/task.py", "from train_jax.step import TrainState", False),
        ("clip_jax/model.py", "from train_jax.task import Task", False),
        ("clip_jax/model.py", "from clip_jax import pretrained", False),
        ("clip_jax/clip.py", "from train_jax.data.text import Tokenizer", True),
        ("clip_jax/clip.py", "from train_jax import checkpoint", False),
        ("clip_jax/pretrained/run_directory.py", "from train_jax import run_directory", True),
        ("clip_jax/clip.py", "from train_jax import run", False),
        ("clip_jax/demo.py", "from train_jax import run", True),
        ("clip_jax/clip.py", "from clip_jax import cli", False),
        ("clip_jax/model.py", "from train_jax.errors import ConfigError", True),
        ("clip_jax/loss.py", "import vqgan_jax", False),
        ("clip_jax/clip.py", "import vqgan_jax.model", False),
        ("clip_jax/loss.py", "from configs.clip import shapes", False),
        ("clip_jax/cli.py", "from benchmarks import step", False),
        ("vqgan_jax/perceptual.py", "import clip_jax", True),
        ("vqgan_jax/guided/losses.py", "import clip_jax", True),
        ("vqgan_jax/model.py", "import clip_jax", False),
        ("vqgan_jax/task.py", "from vqgan_jax import stage2", False),
        ("dalle_jax/task.py", "import vqgan_jax", True),
        ("configs/clip/demo.py", "from ml_collections import ConfigDict", True),
        ("configs/clip/demo.py", "from . import shapes", True),
        ("configs/clip/demo.py", "import math", False),
        ("configs/clip/demo.py", "import train_jax", False),
    ],
)
def test_the_check_itself(file, source, ok):
    assert (violations(ROOT / file, source) == []) is ok


def test_every_rule_is_about_a_module():
    modules = {module_name(path) for path in sources(*PACKAGES)}
    assert sorted({*LEVELS, *COMPARES, *EXTRAS, *READ_BY_WORKERS} - modules) == []


def test_processes_that_read_data_import_no_jax():
    """Grain itself, of which a stand-in takes the place, imports it; those processes start sooner without more of it."""
    examples = [module_name(path) for path in sources(*PACKAGES) if path.name == "example.py"]
    assert len(examples) == 4
    code = "import sys, unittest.mock as m; sys.modules['grain'] = sys.modules['grain.python'] = m.MagicMock()"
    code += "".join(f"; import {name}" for name in (*READ_BY_WORKERS, *examples))
    code += "; print(*({'jax', 'jaxlib', 'flax', 'optax', 'orbax'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


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
    return canonicalize_name(Requirement(requirement).name)


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
