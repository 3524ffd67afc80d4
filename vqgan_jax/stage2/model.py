"""Options of a second stage's transformer, and the module they describe."""

from ml_collections import ConfigDict

from nn_jax import transformer
from nn_jax.attention_patterns import PATTERNS, patterns_of_blocks
from nn_jax.code_transformer import CodeTransformer
from nn_jax.layers import DTYPES
from train_jax.errors import ConfigError
from vqgan_jax.stage2.condition import Condition

VOCABULARIES = ("separate", "joint")
POSITIONS = ("axial", "learned")


def defaults() -> ConfigDict:
    """Options of the transformer; in size those of a small GPT."""
    c = ConfigDict()
    c.width = 512
    c.depth = 8
    c.heads = 8
    c.mlp_ratio = 4.0
    c.activation = "gelu"
    c.dropout = 0.1
    c.vocabulary = "separate"  # of the logits: the condition's and the codes'; "joint": one of both, as in DALL-E's paper
    c.positions = "learned"  # of codes: one vector a position; "axial": its row's and its column's
    c.attention = ("dense",)  # patterns of the blocks in turn: dense, row, column, conv
    c.last_attention = ""  # of the last block, if another
    c.conv_window = 11  # side of the window of conv attention
    c.scan = True
    c.remat = "none"
    c.dtype = "float32"
    return c


def build(options: ConfigDict, condition: Condition, num_codes: int, grid: tuple[int, int]) -> CodeTransformer:
    """The module of resolved options, for a grid of codes out of `num_codes`. ConfigError for options that cannot be."""

    def require(holds: bool, key: str, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"config.model.{key} = {options[key]!r}; it must be {allowed}")

    transformer.check(options.to_dict(), require)
    require(options.vocabulary in VOCABULARIES, "vocabulary", f"one of {', '.join(VOCABULARIES)}")
    require(
        options.vocabulary == "separate" or condition.predicted, "vocabulary", f"separate for a {condition.kind}"
    )
    require(options.positions in POSITIONS, "positions", f"one of {', '.join(POSITIONS)}")
    known = f"of {', '.join(PATTERNS)}"
    patterns = tuple(options.attention)
    require(bool(patterns) and set(patterns) <= set(PATTERNS), "attention", f"one or more {known}")
    require(options.last_attention in ("", *PATTERNS), "last_attention", f'"" or one {known}')
    require(options.conv_window >= 1 and options.conv_window % 2 == 1, "conv_window", "odd and positive")
    distinct, mask_index = patterns_of_blocks(patterns, options.last_attention, options.depth)
    blocks = {key: options[key] for key in ("mlp_ratio", "activation", "scan", "remat")}
    return CodeTransformer(
        condition_size=condition.vocabulary_size,
        condition_length=condition.length,
        num_codes=num_codes,
        grid=grid,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        dropout=options.dropout,
        predicts_condition=condition.predicted,
        joint_vocabulary=options.vocabulary == "joint",
        axial=options.positions == "axial",
        patterns=distinct,
        conv_window=options.conv_window,
        dtype=DTYPES[options.dtype],
        blocks=blocks | {"mask_index": mask_index if len(distinct) > 1 else ()},
    )
