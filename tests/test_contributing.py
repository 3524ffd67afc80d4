"""The examples of docs/contributing.md run as they stand; names that are not registered are refused."""

import importlib
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax.evaluators
import clip_jax.loss
import vqgan_jax.evaluators
import vqgan_jax.loss
from clip_jax import task
from tests import draw_layers, tiny_runs
from train_jax import config as config_lib
from train_jax.data import sources
from train_jax.data.errors import DataError
from train_jax.errors import ConfigError
from vqgan_jax import quantize

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "contributing.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
(DIFF,) = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
REGISTRIES = (
    clip_jax.loss.LOSSES,
    clip_jax.evaluators.EVALUATORS,
    clip_jax.evaluators.CLASSES,
    vqgan_jax.loss.PIXELS,
    vqgan_jax.evaluators.EVALUATORS,
    vqgan_jax.evaluators.CLASSES,
    quantize.QUANTIZERS,
    sources.SOURCES,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current folder from which modules are imported; registries are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    device = jax.devices()[:1]  # for one, programs compile sooner
    monkeypatch.setattr(jax, "devices", lambda: device)
    before, with_codebook = [dict(registry) for registry in REGISTRIES], set(quantize.WITH_CODEBOOK)
    yield tmp_path
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    quantize.WITH_CODEBOOK.intersection_update(with_codebook)
    for name in [name for name in sys.modules if name in EXAMPLES or name.partition(".")[0] == "changed_clip"]:
        del sys.modules[name]


def test_the_picture_of_layers_is_of_these_imports():
    """The SVG holds what it was drawn from; `python -m tests.draw_layers` draws it anew."""
    (description,) = ElementTree.parse(draw_layers.FILE).iter("{http://purl.org/dc/elements/1.1/}description")
    assert json.loads(description.text) == [draw_layers.read_cells(), draw_layers.read_edges()]


def test_the_page_is_short_and_has_an_example_of_each_kind():
    assert EXAMPLES.keys() == {"my_loss", "my_quantizer", "my_source", "my_evaluator", "my_task", "my_hook"}
    assert max(len(code.splitlines()) for code in (*EXAMPLES.values(), DIFF)) <= 40
    assert len(PAGE.splitlines()) <= 300


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, folder):
    (folder / f"{name}.py").write_text(EXAMPLES[name], "utf-8")
    runpy.run_path(f"{name}.py", run_name="__main__")


def apply(diff: str, folder: Path) -> None:
    """Replaces, in files below `folder`, the unchanged and removed lines of each hunk by its unchanged and added ones."""
    for hunk in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, *lines = hunk.splitlines()
        before, after = ("".join(f"{line[1:]}\n" for line in lines if line[:1] in marks) for marks in (" -", " +"))
        text = (folder / name).read_text("utf-8")
        assert text.count(before) == 1, f"docs/contributing.md: these lines are not once in {name}:\n{before}"
        (folder / name).write_text(text.replace(before, after), "utf-8")


def test_example_of_an_option_of_a_tower(folder):
    """The diff of the page, applied to a copy, gives CLIP fixed positions and leaves the default as it is."""
    shutil.copytree(ROOT / "clip_jax", folder / "clip_jax", ignore=shutil.ignore_patterns("__pycache__"))
    apply(DIFF, folder)
    # Under another name: beside the original, classes of the same name would be taken for each other.
    (folder / "clip_jax").rename(folder / "changed_clip")
    for file in (folder / "changed_clip").glob("**/*.py"):
        file.write_text(file.read_text("utf-8").replace("clip_jax", "changed_clip"), "utf-8")
    sincos = importlib.import_module("changed_clip.vision").sincos
    row, column = 1, 2  # of a grid of 3 x 3 patches, behind a class token
    expected = np.sin(column), np.cos(column), np.sin(row), np.cos(row)  # at the highest frequency
    np.testing.assert_allclose(sincos(3, 10, 16)[1 + 3 * row + column, ::4], expected, atol=1e-6)

    def resolve(**image):
        return config_lib.resolve(tiny_runs.config("clip", task="changed_clip.task", model={"image": image}))

    assert resolve().model.image.positions == "learned"
    with pytest.raises(ConfigError, match="positions = 'rotary'; it must be one of learned, sincos"):
        resolve(positions="rotary")
    module = importlib.import_module("changed_clip.model").build(resolve(positions="sincos").model, 600, 1)
    image = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    images = jnp.concatenate([image, jnp.roll(image, 8, axis=1)])  # the same patches at other positions
    encode = jax.jit(lambda x: module.init_with_output(jax.random.key(1), x, method="encode_image"))
    features, variables = encode(images)
    assert "positions" not in variables["params"]["vision"] and "cls" in variables["params"]["vision"]
    assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("clip", {"contrastive": {"loss": "mine"}}, "loss = 'mine'; it must be empty, or one of softmax, sigmoid"),
        ("clip", {"evals": {"test": {"type": "mine"}}}, "type = 'mine'; this task's evaluators are: zero_shot, "),
        ("vqgan", {"model": {"quantizer": {"type": "mine"}}}, "type = 'mine'; it must be one of nearest, ema, ibq, "),
        ("vqgan", {"loss": {"pixels": "mine"}}, "loss.pixels = 'mine'; it must be one of l1, l2"),
    ],
)
def test_names_that_are_not_registered_are_refused(name, options, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_lib.resolve(tiny_runs.config(name, **options))


def test_a_source_that_is_not_registered_is_refused():
    sources.SOURCES["other"] = None
    with pytest.raises(DataError, match=re.escape("there is no source 'mine:x': name one as shapes, ") + ".*, other:…$"):
        sources.open_source("mine:x", "train")


def test_a_loss_without_a_tiled_form_refuses_tiles():
    clip_jax.loss.LOSSES["mine"] = clip_jax.loss.sigmoid_loss
    with pytest.raises(ConfigError, match="contrastive.tile = 4; it must be 0 with loss = 'mine', which has no tiled form"):
        config_lib.resolve(tiny_runs.config("clip", contrastive={"loss": "mine", "tile": 4}))


@pytest.mark.parametrize("tile", [0, 2])
def test_a_run_minimises_the_contrastive_loss_that_its_config_names(tile):
    """Logits stay those of the model: a softmax model minimises the sigmoid loss without a bias."""
    config = config_lib.resolve(tiny_runs.config("clip", contrastive={"loss": "sigmoid", "tile": tile}))
    options = task.ContrastiveOptions.parse(config.contrastive, "contrastive")
    images, texts = jax.random.normal(jax.random.key(0), (2, 4, 3))
    value, metrics = task._contrastive_loss(
        "softmax", options, images, texts, jnp.float32(3), jnp.zeros(()), jnp.arange(4)[:, None]
    )
    logits = 3 * np.asarray(images, np.float64) @ np.asarray(texts, np.float64).T
    expected = np.sum(np.log1p(np.exp(-logits * (2 * np.eye(4) - 1)))) / 4
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert "logit_bias" not in metrics
