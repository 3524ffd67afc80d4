"""Class-conditional LlamaGen (FoundationVision/LlamaGen, arXiv 2406.06525): a weight file, `config.json`, and the VQGAN.

The blocks are Llama's (RMSNorm, gated MLPs, rotary positions of two dimensions). The weights do not tell the numbers of
heads and of codes of an image, so `config.json` has to: `ModelArgs` of the model, of which `dim`, `n_layer`, `n_head` and
`block_size` are required. Text-conditional models (`dalle_jax.pretrained.llamagen`) differ by the condition.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained.checkpoint import convert_errors, read_config
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.stage2.condition import ClassCondition, Condition
from vqgan_jax.stage2.first_stage import open_first_stage
from vqgan_jax.stage2.model import CodeTransformerOptions

CONFIG = "config.json"
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_VQGAN = "vq_ds16_c2i.pt"
_REQUIRED = ("dim", "n_layer", "n_head", "block_size")
_DEFAULTS = {
    "n_kv_head": None, "multiple_of": 256, "ffn_dim_multiplier": None, "num_classes": 1000, "class_dropout_prob": 0.1,
    "vocab_size": 16384, "cls_token_num": 1, "caption_dim": 2048,
}  # fmt: skip
_FIXED = {"rope_base": 10000, "norm_eps": 1e-5}
_COMMANDS = {"c2i": "vqgan_jax.load_prior", "t2i": "dalle_jax.load"}  # value of model_type -> what opens it
_IGNORED = {
    "initializer_range", "token_dropout_p", "attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "drop_path_rate",
    "max_batch_size", "max_seq_len",
}  # fmt: skip
# Of a checkpoint of training; the first of them hold the weights.
_PREFIXES = ("model.", "module.", "state_dict.")
_STATE = r"^(optimizer|ema|args|steps)\b"


def open_directory(path: Path, vqgan: str | Path | None) -> Stage2Checkpoint | None:
    """Opens a directory of LlamaGen. Returns None if it has no `config.json` of one.

    Args:
      vqgan: path of the VQGAN; None: the folder `vqgan`.
    """
    config = open_config(path, "c2i")
    if config is None:
        return None
    if config["cls_token_num"] != 1:
        raise LoadError(f"{path / CONFIG}: cls_token_num = {config['cls_token_num']}; only 1 is supported of classes")
    entries = [Entry("condition/tokens", ("cls_embedding.embedding_table.weight",))]
    with convert_errors(path / CONFIG):
        condition = ClassCondition(config["num_classes"], droppable=config["class_dropout_prob"] > 0)
        options = CodeTransformerOptions.parse(convert_options(config), "model")
        return make_checkpoint(path, config, options, condition, entries, vqgan, _VQGAN)


def open_config(path: Path, model_type: str) -> dict | None:
    """Reads the options of a LlamaGen in a directory, with defaults. Returns None if its `config.json` is of no LlamaGen.

    Args:
      model_type: "c2i" of classes or "t2i" of texts.

    Raises LoadError for options and values that are not supported.
    """
    file = path / CONFIG
    config = read_config(file) if file.is_file() else {}
    if "task" in config or not {"n_layer", "n_head"} <= config.keys():
        return None
    with convert_errors(file):
        return _fill_defaults(config, file, model_type)


def make_checkpoint(
    path: Path,
    config: Mapping,
    options: CodeTransformerOptions,
    condition: Condition,
    entries: Sequence[Entry],
    vqgan: str | Path | None,
    usual: str,
) -> Stage2Checkpoint:
    """Makes the checkpoint of a directory.

    Args:
      config: result of `open_config`.
      entries: parameters of the condition.
      vqgan: path of the VQGAN; None: the folder `vqgan`.
      usual: the VQGAN of the published weights, for messages.
    """
    file = path / CONFIG
    side = round(config["block_size"] ** 0.5)
    if side**2 != config["block_size"]:
        raise LoadError(f"{file}: block_size = {config['block_size']} is not a square number")
    weights = _find_weights(path)
    first_stage = open_first_stage(path, vqgan, usual, config["vocab_size"], "vocab_size")

    def read() -> tuple[dict, str]:
        return unflatten(_read_weights(weights, config, entries), True), str(path)

    size = side * first_stage.module().factor
    return Stage2Checkpoint(str(path), options, condition, first_stage, size, read)


def _fill_defaults(config: Mapping, file: Path, model_type: str) -> dict:
    known = {*_REQUIRED, *_DEFAULTS, *_FIXED, *_IGNORED, "model_type"}
    if unknown := config.keys() - known:
        raise LoadError(f"{file} has {', '.join(sorted(unknown))}; the options of ModelArgs: {', '.join(sorted(known))}")
    if (stated := config.get("model_type", "c2i")) != model_type:
        remedy = f"; open it with {_COMMANDS[stated]}" if stated in _COMMANDS else ""
        raise LoadError(f"{file}: model_type = {stated!r}; only {model_type!r} is supported here{remedy}")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise LoadError(f"{file}: {key} = {config[key]!r}; only {value!r} is supported")
    completed = {key: config[key] for key in _REQUIRED} | {key: config.get(key, x) for key, x in _DEFAULTS.items()}
    for key in (*_REQUIRED, "multiple_of", "num_classes", "vocab_size", "cls_token_num", "caption_dim"):
        if type(completed[key]) is not int or completed[key] < 1:
            raise LoadError(f"{file}: {key} = {completed[key]!r}; it must be a positive integer")
    return completed


def _mlp_dim(config: Mapping) -> int:
    """Returns the width of the MLPs: 8/3 of the model's, times a factor, rounded up to a multiple."""
    size = int(2 * 4 * config["dim"] / 3)
    if config["ffn_dim_multiplier"] is not None:
        size = int(config["ffn_dim_multiplier"] * size)
    return -(-size // config["multiple_of"]) * config["multiple_of"]


def convert_options(config: Mapping) -> dict:
    """Converts the result of `open_config` to `CodeTransformerOptions`, as a dict."""
    return {
        "width": config["dim"],
        "depth": config["n_layer"],
        "heads": config["n_head"],
        "kv_heads": config["n_kv_head"] or 0,
        "mlp_ratio": _mlp_dim(config) / config["dim"],
        "activation": "silu",
        "gated": True,
        "norm": "rms",
        "bias": False,
        "positions": "rotary",
    }


def _find_weights(path: Path) -> Path:
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise LoadError(f"{path} must hold one file of weights ({', '.join(_SUFFIXES)}); it holds {found}")
    return files[0]


def _read_weights(file: Path, config: Mapping, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    tensors = dict(open_tensors(file))
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}tok_embeddings.weight" in tensors), "")
    if prefix:
        rest = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)} | rest
    params, width = from_peer(tensors, [*entries, *_list_entries(config)], str(file), (_STATE,)), config["dim"]
    labels = params.get("condition/tokens")
    if labels is not None and config["class_dropout_prob"] == 0:  # "no label" is zero, as it was not trained
        params["condition/tokens"] = np.concatenate([labels, 0 * labels[:1]])
    if 0 < (config["n_kv_head"] or 0) < config["n_head"]:
        head_dim = width // config["n_head"]
        for i in range(config["n_layer"]):
            ours = f"transformer/block_{i}/attention"
            kernel = params.pop(f"{ours}/qkv/kernel")  # queries, then keys, then values
            params[f"{ours}/q/kernel"] = kernel[:, :width].reshape(width, -1, head_dim)
            params[f"{ours}/kv/kernel"] = kernel[:, width:].reshape(width, 2, -1, head_dim)
    return params


def _list_entries(config: Mapping) -> Iterator[Entry]:
    """Lists the parameters, except of the condition, with their names in LlamaGen."""
    heads = config["n_head"]
    is_joint = config["n_kv_head"] in (None, heads)
    yield Entry("codes/tokens", ("tok_embeddings.weight",))
    yield Entry("norm/scale", ("norm.weight",))
    yield Entry("head/kernel", ("output.weight",), "linear")
    for i in range(config["n_layer"]):
        ours, theirs = f"transformer/block_{i}", f"layers.{i}"
        yield Entry(f"{ours}/norm1/scale", (f"{theirs}.attention_norm.weight",))
        yield Entry(f"{ours}/norm2/scale", (f"{theirs}.ffn_norm.weight",))
        kind = ("qkv", heads) if is_joint else ("linear", 0)
        yield Entry(f"{ours}/attention/qkv/kernel", (f"{theirs}.attention.wqkv.weight",), *kind)
        yield Entry(f"{ours}/attention/out/kernel", (f"{theirs}.attention.wo.weight",), "merge_heads", heads)
        for name, weight in (("mlp_gate", "w1"), ("mlp_in", "w3"), ("mlp_out", "w2")):
            yield Entry(f"{ours}/{name}/kernel", (f"{theirs}.feed_forward.{weight}.weight",), "linear")
