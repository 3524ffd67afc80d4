"""Text towers with the names of transformers' BERT: in open_clip directories RoBERTa (arXiv 1907.11692) and XLM-RoBERTa
(arXiv 1911.02116), in transformers' Chinese-CLIP BERT itself.

The file of open_clip only names a model, whose sizes are those of its published configuration. RoBERTa's positions count
from the token after the padding's id, and all tokens have the first type; both are part of our positions.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from clip_jax.pretrained.openai import linear_entries, norm_entries
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry
from train_jax.weights.tensors import Tensor

# Width, depth, heads, width of the MLP, rows of the token embedding.
MODELS = {
    "roberta-base": (768, 12, 12, 3072, 50265),
    "xlm-roberta-base": (768, 12, 12, 3072, 250002),
    "xlm-roberta-large": (1024, 24, 16, 4096, 250002),
}
IGNORED = (r"^transformer\.embeddings\.position_ids$",)
_PAD_ID = 1  # of RoBERTa
_PREFIX = "transformer"  # of names in open_clip


def convert_options(text: Mapping, embed_dim: int, file: Path) -> dict:
    """Converts `text_cfg` with a model of transformers to the options of `TextOptions`.

    Raises LoadError for other models, pools and projections.
    """
    for key, default, allowed in (
        ("hf_model_name", None, tuple(MODELS)),
        ("hf_pooler_type", "mean_pooler", ("mean_pooler",)),
        ("hf_proj_type", "mlp", ("mlp", "linear")),
    ):
        value = text.get(key, default)
        if value not in allowed:
            raise LoadError(f"{file}: text_cfg.{key} = {value!r} is not supported; supported: {', '.join(allowed)}")
    if not text.get("hf_tokenizer_name"):
        raise LoadError(f"{file}: text_cfg.hf_tokenizer_name is missing, which {text['hf_model_name']} needs")
    width, depth, heads, mlp_dim, vocab_size = MODELS[text["hf_model_name"]]
    return {
        "context_length": text["context_length"],
        "vocab_size": vocab_size,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": mlp_dim / width,
        "causal": False,
        "pool": "mean",
        "pad_id": _PAD_ID,
        "branch_norms": "post",
        **({"proj_hidden": (width + embed_dim) // 2} if text.get("hf_proj_type", "mlp") == "mlp" else {}),
        "activation": "gelu",
        "eps": 1e-5,
    }


def fold_positions(
    tensors: Mapping[str, Tensor], length: int, prefix: str = _PREFIX, first: int = _PAD_ID + 1
) -> dict[str, Tensor]:
    """Replaces the embeddings of positions and types by one of `length` positions, which `list_entries` names.

    Args:
      first: row of the first token's position.
    """
    positions_name, types_name = (f"{prefix}.embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    if not {positions_name, types_name} <= tensors.keys():
        return dict(tensors)  # the table names what is missing
    positions, types = tensors[positions_name], tensors[types_name]

    def load() -> np.ndarray:
        return np.asarray(positions, np.float32)[first : first + length] + np.asarray(types, np.float32)[:1]

    others = {name: tensor for name, tensor in tensors.items() if name != types_name}
    return others | {positions_name: Tensor((min(length, positions.shape[0] - first), positions.shape[1]), load)}


def list_entries(text: Mapping, prefix: str = _PREFIX, projection: str = "proj") -> Iterator[Entry]:
    """Lists the parameters of a text tower with their names in open_clip, or with others of the `prefix` and `projection`.

    `text` has the options of `TextOptions`.
    """
    yield Entry("text/tokens", (f"{prefix}.embeddings.word_embeddings.weight",))
    yield Entry("text/positions", (f"{prefix}.embeddings.position_embeddings.weight",))
    yield from norm_entries("text/norm_pre", f"{prefix}.embeddings.LayerNorm")
    for index in range(text["depth"]):
        ours, theirs = f"text/transformer/block_{index}", f"{prefix}.encoder.layer.{index}"
        qkv = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
        yield Entry(f"{ours}/attention/qkv/kernel", tuple(f"{part}.weight" for part in qkv), "qkv", text["heads"])
        yield Entry(f"{ours}/attention/qkv/bias", tuple(f"{part}.bias" for part in qkv), "qkv_bias", text["heads"])
        yield from linear_entries(f"{ours}/attention/out", f"{theirs}.attention.output.dense", "merge_heads", text["heads"])
        yield from norm_entries(f"{ours}/norm1", f"{theirs}.attention.output.LayerNorm")
        yield from linear_entries(f"{ours}/mlp_in", f"{theirs}.intermediate.dense")
        yield from linear_entries(f"{ours}/mlp_out", f"{theirs}.output.dense")
        yield from norm_entries(f"{ours}/norm2", f"{theirs}.output.LayerNorm")
    if text.get("proj_hidden"):
        yield from linear_entries("text/proj_hidden", f"{projection}.0", bias=False)
        projection = f"{projection}.2"
    yield from linear_entries("text/proj", projection, bias=False)
