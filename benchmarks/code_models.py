"""Transformers over codes at published sizes, with random weights, and the bytes that sampling a code reads."""

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.typing import DTypeLike

from benchmarks.synthetic import TINY
from dalle_jax.captions import SubwordCaptions
from dalle_jax.options import DALLEOptions
from nn_jax.attention_patterns import attended_codes
from nn_jax.code_transformer import CodeTransformer, shapes
from train_jax.compute import TransformerCompute
from vqgan_jax.stage2 import model as model_lib
from vqgan_jax.stage2 import sampling

# Options, number of text tokens, and grid of codes.
MODELS = {
    "72m": ({"width": 640, "depth": 12, "heads": 10, "text_size": 2048, "num_codes": 8192}, 64, (16, 16)),
    "1b3": ({"width": 1536, "depth": 42, "heads": 24, "text_size": 16_384, "num_codes": 16_384}, 64, (16, 16)),
    "12b": (
        {"width": 3968, "depth": 64, "heads": 62, "text_size": 16_384, "num_codes": 8192, "vocabulary": "joint"}
        | {"attention": ("row", "column", "row", "row"), "last_attention": "conv"},
        256,
        (32, 32),
    ),
}


def build(name: str, dtype: str, tiny: bool = False, **changes) -> CodeTransformer:
    """Builds one of `MODELS`. `tiny`: with the blocks of a toy model; `changes` are other options."""
    options, text_length, grid = MODELS[name]
    options = options | (TINY if tiny else {}) | {"text_length": text_length} | changes
    if "vocabulary" not in options:
        options["positions"] = "learned"
    text_size, num_codes = options.pop("text_size"), options.pop("num_codes")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())  # unused, since prompts are token ids
    captions = SubwordCaptions(bpe, length=text_length, vocabulary_size=text_size, pad=0)
    config = DALLEOptions.parse(options, "model")
    return model_lib.build(config, captions, num_codes, grid, TransformerCompute(dtype=dtype))


def count_weight_bytes(module: CodeTransformer, dtype: DTypeLike) -> float:
    """Counts the bytes of the weights that a code reads: all but the tables of embeddings and the head of the condition."""
    parts = {name: x for name, x in shapes(module).items() if name not in ("condition", "codes", "condition_head")}
    return jnp.dtype(dtype).itemsize * sum(np.prod(shape) for shape in _leaves(parts))


def count_cache_bytes(module: CodeTransformer, dtype: DTypeLike, rows: int, prompts: int, codes: int = 0) -> float:
    """Counts the bytes of the caches that a code of all rows reads, in the mean over codes.

    Args:
      rows: sequences; guidance has two for each image.
      prompts: different prompts, whose keys and values are kept once.
      codes: number of codes of an image that are sampled; 0: all.
    """
    token = 2 * jnp.dtype(dtype).itemsize * module.width  # keys and values of one token in one block
    own = sum(_read_tokens(module, codes or module.length))
    return token * (rows * own + prompts * module.condition_length * module.depth)


def _read_tokens(module: CodeTransformer, codes: int) -> list[float]:
    """Returns the mean number of tokens of its own image that one of the first `codes` reads, for each block."""
    ends = [stop for start, stop in sampling.segments(codes) for _ in range(start, stop)]
    per_pattern = []
    for pattern in module.patterns:
        attended = attended_codes(pattern, module.grid, module.conv_window)
        per_pattern.append(float(np.mean(ends)) if attended is None else float(attended.shape[1]))
    return [per_pattern[index] for index in module.blocks["attention_index"] or (0,) * module.depth]


def count_parameters(module: CodeTransformer) -> int:
    """Counts all parameters."""
    return int(sum(np.prod(shape) for shape in _leaves(shapes(module))))


def random_params(module: CodeTransformer) -> dict:
    """Samples parameters of all shapes from a normal distribution with a standard deviation of 0.05."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape, np.float32) * np.float32(0.05),
        shapes(module),
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _leaves(tree) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple))
