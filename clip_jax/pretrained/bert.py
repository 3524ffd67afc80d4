"""Text towers of transformers in open_clip directories: RoBERTa (arXiv 1907.11692) and XLM-RoBERTa (arXiv 1911.02116).

The file of open_clip only names a model, whose sizes are those of its published configuration. Its positions count from the
token after the padding's id, and all its tokens have the first type; both are part of our positions.
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
_PAD_ID = 1
_EMBEDDINGS = "transformer.embeddings"
_POSITIONS, _TYPES = (f"{_EMBEDDINGS}.{name}_embeddings.weight" for name in ("position", "token_type"))


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


def fold_positions(tensors: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Replaces the embeddings of positions and types by one of `length` positions, which `list_entries` names."""
    if not {_POSITIONS, _TYPES} <= tensors.keys():
        return dict(tensors)  # the table names what is missing
    positions, types = tensors[_POSITIONS], tensors[_TYPES]
    first = _PAD_ID + 1

    def load() -> np.ndarray:
        return np.asarray(positions, np.float32)[first : first + length] + np.asarray(types, np.float32)[:1]

    others = {name: tensor for name, tensor in tensors.items() if name != _TYPES}
    return others | {_POSITIONS: Tensor((min(length, positions.shape[0] - first), positions.shape[1]), load)}


def list_entries(text: Mapping) -> Iterator[Entry]:
    """Lists the parameters of a text tower with their names in open_clip. `text` has the options of `TextOptions`."""
    yield Entry("text/tokens", (f"{_EMBEDDINGS}.word_embeddings.weight",))
    yield Entry("text/positions", (_POSITIONS,))
    yield from norm_entries("text/norm_pre", f"{_EMBEDDINGS}.LayerNorm")
    for index in range(text["depth"]):
        ours, theirs = f"text/transformer/block_{index}", f"transformer.encoder.layer.{index}"
        qkv = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
        yield Entry(f"{ours}/attention/qkv/kernel", tuple(f"{part}.weight" for part in qkv), "qkv", text["heads"])
        yield Entry(f"{ours}/attention/qkv/bias", tuple(f"{part}.bias" for part in qkv), "qkv_bias", text["heads"])
        yield from linear_entries(f"{ours}/attention/out", f"{theirs}.attention.output.dense", "merge_heads", text["heads"])
        yield from norm_entries(f"{ours}/norm1", f"{theirs}.attention.output.LayerNorm")
        yield from linear_entries(f"{ours}/mlp_in", f"{theirs}.intermediate.dense")
        yield from linear_entries(f"{ours}/mlp_out", f"{theirs}.output.dense")
        yield from norm_entries(f"{ours}/norm2", f"{theirs}.output.LayerNorm")
    if text.get("proj_hidden"):
        yield from linear_entries("text/proj_hidden", "proj.0", bias=False)
    yield from linear_entries("text/proj", "proj.2" if text.get("proj_hidden") else "proj", bias=False)
