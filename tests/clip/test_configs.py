"""The configs of published models have the published models' parameters, as many as the peers' own code counts."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from clip_jax import model
from clip_jax.pretrained.checkpoint import abstract_variables
from train_jax import config as config_lib

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "clip"
# Counted with transformers 4.57 (CLIPModel, SiglipModel) and openai/CLIP (RN50).
PARAMETERS = {
    "vit_b32": 151_277_313,
    "vit_b16": 149_620_737,
    "vit_l14": 427_616_513,
    "siglip_b16": 203_155_970,
    "rn50": 102_007_137,
}


def options(name):
    return config_lib.resolve(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()).model


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    found = options(name)
    module = model.build(found, found.text.vocab_size, found.text.vocab_size - 1)
    leaves = jax.tree.leaves(abstract_variables(module)["params"])
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == PARAMETERS[name]
    assert PARAMETERS[name] == int("".join(c for c in _told(name) if c.isdigit()))


def _told(name: str) -> str:
    """The number that the config's docstring tells."""
    text = (CONFIGS / f"{name}.py").read_text()
    return text.split(" parameters.")[0].split()[-1]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_is_complete_and_its_docstring_tells_how_to_run_it(path):
    found = runpy.run_path(str(path))
    config_lib.resolve(found["get_config"]())
    assert f"train-jax --config=configs/clip/{path.name} --workdir=" in found["__doc__"]
