"""Options of the transformer, and the module that they describe."""

import dataclasses

import pytest

from train_jax.errors import ConfigError
from vqgan_jax.stage2 import model


def build(condition, **changes):
    options = model.CodeTransformerOptions.parse({"width": 16, "depth": 3, "heads": 2} | changes, "model")
    return model.build(options, condition, 20, (3, 4))


def test_a_module_has_its_options_and_those_of_its_condition(conditions):
    module = build(conditions["class"])
    assert (module.condition_size, module.condition_length, module.predicts_condition) == (11, 1, False)
    assert (module.num_codes, module.grid, module.axial, module.joint_vocabulary) == (20, (3, 4), False, False)
    assert module.patterns == ("dense",) and module.blocks["attention_index"] == ()
    attention = {"attention": ("row", "column"), "last_attention": "conv", "conv_window": 3}
    module = build(conditions["text"], vocabulary="joint", positions="axial", **attention)
    assert (module.condition_size, module.condition_length) == (conditions["text"].vocabulary_size, 12)
    assert module.predicts_condition and module.axial and module.joint_vocabulary
    assert module.patterns == ("row", "column", "conv") and module.blocks["attention_index"] == (0, 1, 2)
    assert module.conv_window == 3


def test_an_encoded_condition_is_no_part_of_the_stream(conditions):
    condition = dataclasses.replace(conditions["text"])
    object.__setattr__(condition, "padding", 5)
    module = build(condition, encoder_depth=2, gated=True, bias=False, branch_norms="normformer", embedding_norm=True)
    assert (module.condition_length, module.prefix_length, module.encoder_depth, module.padding) == (12, 1, 2, 5)
    assert module.embedding_norm and not module.predicts_condition
    assert {key: module.blocks[key] for key in ("gated", "bias", "branch_norms")} == {
        "gated": True, "bias": False, "branch_norms": "normformer",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 15}, "config.model.width = 15; it must be a multiple of config.model.heads"),
        ({"attention": ("row", "diagonal")}, "attention = .*diagonal.*one of dense, row, column, conv"),
        ({"last_attention": "all"}, "last_attention = 'all'"),
        ({"conv_window": 4}, "conv_window = 4; it must be odd"),
        ({"vocabulary": "both"}, "vocabulary = 'both'; it must be one of separate, joint"),
        ({"positions": "sinusoidal"}, "positions = 'sinusoidal'; it must be one of axial, learned"),
        ({"activation": "tanh"}, "activation"),
        ({"heads": 0}, "heads"),
        ({"depth": 0}, "depth"),
        ({"branch_norms": "before"}, "branch_norms = 'before'; it must be one of none, sandwich, normformer"),
        ({"encoder_depth": 1, "vocabulary": "joint"}, "vocabulary = 'joint'; it must be separate with an encoder"),
    ],
)
def test_wrong_options_are_refused(conditions, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(conditions["text"], **changes)


def test_a_condition_that_is_not_predicted_shares_no_vocabulary(conditions):
    with pytest.raises(ConfigError, match="vocabulary = 'joint'; it must be separate for a class"):
        build(conditions["class"], vocabulary="joint")
