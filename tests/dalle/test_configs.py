"""The configs of published models have the published models' parameters, and every config is complete."""

import jax
import numpy as np
import pytest

from dalle_jax import model
from train_jax import config as config_lib
from train_jax import config_file

CONFIGS = config_file.FOLDER / "dalle"


def options(name: str):
    return config_lib.resolve(config_file.load(f"dalle/{name}"))


def count(module) -> int:
    return sum(int(np.prod(s)) for s in jax.tree.leaves(model.shapes(module), is_leaf=lambda s: isinstance(s, tuple)))


def by_hand(width, depth, text_size, text_length, codes, places, joint):
    """Parameters, layer by layer."""
    block = 4 * width + 3 * width * width + 3 * width + width * width + width + 8 * width * width + 5 * width
    heads = width * (text_size + codes)
    return text_size * width + text_length * width + codes * width + places * width + depth * block + 2 * width + heads


def test_mindalle_has_1_291_billion_parameters():
    c = options("mindalle_1b3").model
    found = count(model.build(c, 16_384, 16_384, (16, 16)))  # one pad for all places is a token of the vocabulary
    assert found == by_hand(1536, 42, 16_384, 64, 16_384, 256, False)
    assert round(found / 1e9, 3) == 1.291


def test_dalle_1_has_12_billion_parameters():
    c = options("dalle1_12b")
    module = model.build(c.model, c.tokenizer.vocab_size + 256, 8192, (32, 32))
    assert count(module) == by_hand(3968, 64, 16_640, 256, 8192, 64, True)
    assert round(count(module) / 1e9) == 12
    kinds = [module.patterns[kind] for kind in module.blocks["kinds"]]
    assert kinds[:4] == ["row", "column", "row", "row"] and kinds[-1] == "conv"
    # "column attention if i - 2 mod 4 = 0", counting blocks from 1
    assert all((kind == "column") == ((i - 2) % 4 == 0) for i, kind in enumerate(kinds[:-1], 1))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_is_complete_and_its_docstring_tells_how_to_run_it(path):
    config_lib.fill(config_file.load(path))
    assert f"train-jax --config=configs/dalle/{path.name} --workdir=" in path.read_text().split('"""')[1]
