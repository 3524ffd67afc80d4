"""Options of a second stage's transformer, and the construction of its module."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict

from nn_jax.attention_patterns import PATTERNS, assign_patterns
from nn_jax.code_transformer import CodeTransformer, FeatureEmbedding, TokenEmbedding, shapes
from nn_jax.layers import ACTIVATIONS, NORMS
from nn_jax.transformer import BRANCH_NORMS
from train_jax.compute import TransformerCompute
from train_jax.errors import LoadError
from train_jax.options import Options, option
from vqgan_jax.stage2.condition import Condition


@dataclasses.dataclass(frozen=True)
class CodeTransformerOptions(Options):
    """Options of the transformer over codes; the defaults describe a small GPT."""

    added = (
        "shifted_patterns", "branch_norms", "norm", "kv_heads", "gated", "bias", "embedding_norm", "head_norm", "head_bias",
        "encoder_depth",
    )  # fmt: skip

    width: int = option(512, "width of the residual stream", least=1)
    depth: int = option(8, "number of blocks", least=1)
    heads: int = option(8, "number of attention heads", least=1)
    mlp_ratio: float = option(4.0, "width of the MLPs, as a multiple of width", above=0)
    activation: str = option("gelu", "activation function of the MLPs", choices=ACTIVATIONS)
    vocabulary: str = option(
        "separate",
        "vocabulary of the logits; joint: condition tokens and codes, as in DALL-E",
        choices=("separate", "joint"),
    )
    positions: str = option(
        "learned",
        "position embeddings of codes; axial: row plus column embedding; rotary: none, but rotations of queries and keys",
        choices=("axial", "learned", "rotary"),
    )
    attention: tuple[str, ...] = option(("dense",), "attention patterns of the blocks in turn", choices=PATTERNS)
    last_attention: str = option("", "attention pattern of the last block; empty: no exception", choices=("", *PATTERNS))
    conv_window: int = option(11, "window side of convolutional attention (conv, window and torus)", least=1)
    shifted_patterns: bool = option(
        False, "attention patterns take the last condition token for the first code, and each code for the next"
    )
    branch_norms: str = option(
        "none",
        "further norms of blocks: sandwich, of the outputs of attention and MLP (CogView, arXiv 2105.13290); normformer, of "
        "the outputs of attention and in the MLP (arXiv 2110.09456)",
        choices=BRANCH_NORMS,
    )
    norm: str = option("layer", "type of norms: layer norm or RMSNorm (arXiv 1910.07467)", choices=NORMS)
    kv_heads: int = option(
        0, "number of heads of keys and values, which groups of heads share (arXiv 2305.13245); 0: one for each", least=0
    )
    gated: bool = option(False, "gated MLPs, activation(x W) * (x V) (arXiv 2002.05202)")
    bias: bool = option(True, "biases of the matrix products in blocks")
    embedding_norm: bool = option(False, "norm of embeddings before the first block")
    head_norm: bool = option(False, "a second norm before the logits")
    head_bias: bool = option(False, "biases of the logits")
    encoder_depth: int = option(
        0, "number of blocks of an encoder of the condition, to which codes cross-attend; 0: one stream", least=0
    )

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(self.width % self.heads == 0, path, "width", f"a multiple of config.{path}.heads = {self.heads}")
        self.require(round(self.mlp_ratio * self.width) >= 1, path, "mlp_ratio", "larger")
        self.require(bool(self.attention), path, "attention", f"one or more of {', '.join(PATTERNS)}")
        self.require(self.conv_window % 2 == 1, path, "conv_window", "odd and positive")
        is_divisor = self.kv_heads == 0 or self.heads % self.kv_heads == 0
        self.require(is_divisor, path, "kv_heads", f"a divisor of config.{path}.heads = {self.heads}, or 0")
        can_rotate = self.positions != "rotary" or self.width % (4 * self.heads) == 0
        self.require(can_rotate, path, "width", f"a multiple of {4 * self.heads} for rotary positions, 4 features a head")
        is_stream = self.encoder_depth == 0
        self.require(self.vocabulary == "separate" or is_stream, path, "vocabulary", "separate with an encoder")


def build(
    options: CodeTransformerOptions,
    condition: Condition,
    num_codes: int,
    grid: tuple[int, int],
    compute: TransformerCompute | None = None,
    dropout: float = 0.0,
) -> CodeTransformer:
    """Builds the module from options. Raises ConfigError for invalid options.

    Args:
      num_codes: size of the codebook.
      grid: rows and columns of the codes of an image.
      compute: precision of computations; None for the default.
      dropout: dropout rate of embeddings and blocks in training.
    """
    is_joint, has_encoder = options.vocabulary == "joint", options.encoder_depth > 0
    is_rotary = options.positions == "rotary"
    can_shift = (condition.length > 1 and not has_encoder) or not options.shifted_patterns
    options.require(can_shift, "model", "shifted_patterns", "False where one token precedes the codes")
    options.require(not is_joint or condition.predicted, "model", "vocabulary", f"separate for a {condition.kind}")
    has_features = condition.vocabulary_size is None
    options.require(not (has_features and has_encoder), "model", "encoder_depth", f"0 for {condition.kind}")
    is_dense = {*options.attention, options.last_attention or "dense"} == {"dense"}
    options.require(is_dense or not has_features, "model", "attention", f"dense for {condition.kind}, which have padding")
    compute = compute or TransformerCompute()
    if has_features:
        embedding = FeatureEmbedding(condition.length, condition.features, options.width, compute.array_dtype)
    else:
        has_positions, size = has_encoder or not is_rotary, (1, condition.length)
        embedding = TokenEmbedding(condition.vocabulary_size, size, options.width, has_positions=has_positions)
    distinct, attention_index = assign_patterns(options.attention, options.last_attention, options.depth)
    names = ("mlp_ratio", "activation", "branch_norms", "gated", "bias", "norm", "kv_heads")
    blocks = {name: getattr(options, name) for name in names} | compute.blocks
    return CodeTransformer(
        condition=embedding,
        num_codes=num_codes,
        grid=grid,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        dropout=dropout,
        predicts_condition=condition.predicted and not has_encoder,
        joint_vocabulary=is_joint,
        axial=options.positions == "axial",
        rotary=is_rotary,
        patterns=distinct,
        conv_window=options.conv_window,
        shifted_patterns=options.shifted_patterns,
        embedding_norm=options.embedding_norm,
        head_norm=options.head_norm,
        head_bias=options.head_bias,
        encoder_depth=options.encoder_depth,
        padding=condition.padding if has_encoder else None,
        dtype=compute.array_dtype,
        blocks=blocks | {"attention_index": attention_index if len(distinct) > 1 else ()},
    )


def check_shapes(module: CodeTransformer, params: Mapping, name: str) -> None:
    """Raises LoadError, with names and shapes, unless `params` of the source `name` are parameters of the module."""
    expected = flatten_dict(shapes(module), sep="/")
    actual = {key: np.shape(x) for key, x in flatten_dict(dict(params), sep="/").items()}
    if expected != actual:
        wrong = sorted(k for k in expected.keys() | actual.keys() if expected.get(k) != actual.get(k))
        lines = [f"{k}: {actual.get(k, 'missing')}, expected {expected.get(k, 'nothing')}" for k in wrong[:8]]
        raise LoadError(f"{name}: weights and configuration belong to different models:\n  " + "\n  ".join(lines))
