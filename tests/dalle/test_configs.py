"""The configs of published models have the published models' parameters, and every config is complete."""

import jax
import numpy as np
import pytest
import tokenizers

from dalle_jax.captions import SubwordCaptions
from dalle_jax.options import DALLEOptions
from nn_jax.code_transformer import CodeTransformer, shapes
from train_jax import config as config_lib
from train_jax import config_file
from train_jax.options import flatten
from train_jax.sweep.points import make_points
from vqgan_jax.stage2 import model

CONFIGS = config_file.FOLDER / "dalle"


def options(name: str):
    return config_lib.resolve(config_file.load(f"dalle/{name}"))


def build(options, text_size: int, num_codes: int, grid: tuple[int, int]) -> CodeTransformer:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    captions = SubwordCaptions(bpe, length=options.text_length, vocabulary_size=text_size, pad=0)
    return model.build(DALLEOptions.parse(options, "model"), captions, num_codes, grid)


def count(module) -> int:
    return sum(int(np.prod(s)) for s in jax.tree.leaves(shapes(module), is_leaf=lambda s: isinstance(s, tuple)))


def by_hand(width, depth, text_size, text_length, codes, positions):
    """Parameters, layer by layer."""
    block = 4 * width + 3 * width * width + 3 * width + width * width + width + 8 * width * width + 5 * width
    heads = width * (text_size + codes)
    return (
        text_size * width + text_length * width + codes * width + positions * width + depth * block + 2 * width + heads
    )


def test_mindalle_has_1_291_billion_parameters():
    c = options("mindalle_1b3").model
    parameters = count(build(c, 16_384, 16_384, (16, 16)))  # one pad for all positions is a token of the vocabulary
    assert parameters == by_hand(1536, 42, 16_384, 64, 16_384, 256)
    assert round(parameters / 1e9, 3) == 1.291


def test_dalle_1_has_12_billion_parameters():
    c = options("dalle1_12b")
    module = build(c.model, c.tokenizer.vocab_size + 256, 8192, (32, 32))
    assert count(module) == by_hand(3968, 64, 16_640, 256, 8192, 64)
    assert round(count(module) / 1e9) == 12
    patterns = [module.patterns[i] for i in module.blocks["attention_index"]]
    assert patterns[:4] == ["row", "column", "row", "row"] and patterns[-1] == "conv"
    # "column attention if i - 2 mod 4 = 0", counting blocks from 1
    assert all((pattern == "column") == ((i - 2) % 4 == 0) for i, pattern in enumerate(patterns[:-1], 1))
    assert module.conv_window == 11


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_is_complete_and_its_docstring_tells_how_to_run_it(path):
    config_lib.fill(config_file.load(path))
    text = path.read_text()
    command = "train-jax sweep" if "def sweep()" in text else "train-jax"
    assert f"{command} --config=configs/dalle/{path.name} --workdir=" in text.split('"""')[1]


def test_the_sweep_of_two_objects_takes_away_one_change_after_the_other():
    first, *others, last = make_points("dalle/two_objects")
    assert dict(first.options) == {} and len({name for point in others for name in point.options}) == 6
    assert set(last.options) == {name for point in others for name in point.options}
    resolved = [flatten(config_lib.resolve(point.config).to_dict()) for point in (first, *others)]
    for point, values in zip(others, resolved[1:], strict=True):
        assert {name for name, value in values.items() if value != resolved[0][name]} == set(point.options)
