"""ruDALL-E (ai-forever/ru-dalle: Malevich, Emojich, Kandinsky, …): `config.json`, weights, `bpe.model`, and the VQGAN.

The weights do not tell the number of heads and the version of the model, so `config.json` has to: the entry of the model in
`rudalle.dalle.MODELS`, as JSON. The scores' scaling by their largest value (`cogview_pb_relax`) changes only the range of
16-bit numbers, not the softmax, for which scores are float32 here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dalle_jax.captions import YttmCaptions
from dalle_jax.options import DALLEOptions
from nn_jax.attention_patterns import attention_mask
from train_jax.data.yttm import YouTokenToMe
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained.checkpoint import convert_errors, read_config
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.stage2.first_stage import open_first_stage

CONFIG, TOKENIZER = "config.json", "bpe.model"
_VQGAN = "vqgan.gumbelf8-sber.model.ckpt with its vqgan.gumbelf8-sber.config.yml"
_WINDOW = 11
_MASKS = {"row": "row", "col": "column"}  # their name -> pattern
_CONVOLUTION = {"v2": "torus", "v3": "window"}  # version -> pattern of the last layer
_ENTRY = {"hf_version", "filename", "model_params", "description", "full_description", "repo_id", "authors"}
_DEFAULTS = {"cogview_sandwich_layernorm": False, "cogview_pb_relax": False, "mlp_activation": "gelu_jit"}
_SIZES = (
    "num_layers", "hidden_size", "num_attention_heads", "image_tokens_per_dim", "text_seq_length", "vocab_size",
    "image_vocab_size",
)  # fmt: skip
_IGNORED = {"embedding_dropout_prob", "output_dropout_prob", "attention_dropout_prob", "loss_img_weight", "is_bool_mask"}


def open_directory(path: Path, vqgan: str | Path | None) -> Stage2Checkpoint | None:
    """Opens a directory of ruDALL-E. Returns None if it has neither its configuration nor its tokenizer.

    Args:
      vqgan: path of the VQGAN; None: the folder `vqgan`.
    """
    file = path / CONFIG
    entry = read_config(file) if file.is_file() else {}
    if "model_params" not in entry:
        if (path / TOKENIZER).is_file():
            raise LoadError(
                f"{path} has ruDALL-E's {TOKENIZER}, but no {CONFIG} with the model's entry in rudalle.dalle.MODELS, which "
                'tells what weights do not: {"hf_version": "v3", "filename": "pytorch_model_v3.bin", "model_params": {…}}'
            )
        return None
    with convert_errors(file):
        params, version = _read_params(entry, file), entry["hf_version"]
        weights = path / entry["filename"]
        if not weights.is_file():
            raise LoadError(f"{file} names {entry['filename']}, which is not there")
        options = _convert_options(params, version)
        captions = _open_captions(path / TOKENIZER, params, version)
        first_stage = open_first_stage(path, vqgan, _VQGAN, params["image_vocab_size"], "image_vocab_size")

    def read() -> tuple[dict, str]:
        tensors = dict(open_tensors(weights))
        _check_masks(tensors, params, version, weights)
        return unflatten(_convert_weights(tensors, params, version, str(weights)), True), str(path)

    size = params["image_tokens_per_dim"] * first_stage.module().factor
    return Stage2Checkpoint(str(path), options, captions, first_stage, size, read)


def _read_params(entry: Mapping, file: Path) -> dict:
    """Returns the model's parameters with defaults. Raises LoadError for those that are not supported."""
    params = entry["model_params"]
    for names, known in ((entry.keys(), _ENTRY), (params.keys(), {*_DEFAULTS, *_SIZES, *_IGNORED})):
        if unknown := names - known:
            raise LoadError(f"{file} has {', '.join(sorted(unknown))}; what is understood: {', '.join(sorted(known))}")
    if entry["hf_version"] not in _CONVOLUTION:
        raise LoadError(f"{file}: hf_version = {entry['hf_version']!r}; it must be one of {', '.join(_CONVOLUTION)}")
    params = _DEFAULTS | dict(params)
    if params["mlp_activation"] not in ("gelu_jit", "gelu"):
        raise LoadError(f"{file}: mlp_activation = {params['mlp_activation']!r}; only gelu_jit and gelu are supported")
    for key in _SIZES:
        if type(params[key]) is not int:
            raise LoadError(f"{file}: {key} = {params[key]!r}; it must be of the type int")
    return params


def _convert_options(params: Mapping, version: str) -> DALLEOptions:
    is_column = (params["num_layers"] - 2) % 4 == 0  # columns have precedence over the last layer's pattern
    options = {
        "text_length": params["text_seq_length"] + (version == "v2"),
        "width": params["hidden_size"],
        "depth": params["num_layers"],
        "heads": params["num_attention_heads"],
        "activation": "gelu_tanh",
        "attention": ("row", "column", "row", "row"),
        "last_attention": "column" if is_column else _CONVOLUTION[version],
        "conv_window": _WINDOW,
        "shifted_patterns": version == "v2",
        "branch_norms": "sandwich" if params["cogview_sandwich_layernorm"] else "none",
        "head_norm": True,
        "head_bias": True,
        "positions": "axial",
        "vocabulary": "separate",
    }
    return DALLEOptions.parse(options, "model")


def _open_captions(file: Path, params: Mapping, version: str) -> YttmCaptions:
    try:
        bpe = YouTokenToMe.parse(file.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} is not a tokenizer, so prompts cannot be tokenized ({error})") from error
    size, length = params["vocab_size"], params["text_seq_length"]
    if bpe.vocab_size + length > size:
        tokens = bpe.vocab_size
        raise LoadError(f"{file}: a tokenizer of {tokens} tokens, with {length} pads too many for vocab_size = {size}")
    if (bpe.pad, bpe.unknown, bpe.begin, bpe.end) != (0, 1, 2, 3):
        raise LoadError(f"{file}: special tokens other than those of ruDALL-E: pad 0, unknown 1, begin 2, end 3")
    return YttmCaptions(bpe, length, size, version == "v2")


def _check_masks(tensors: dict, params: Mapping, version: str, file: Path) -> None:
    """Removes the attention masks from the tensors. Raises LoadError if they are of another version."""
    side, length = params["image_tokens_per_dim"], params["text_seq_length"]
    for name, pattern in {**_MASKS, "conv": _CONVOLUTION[version]}.items():
        mask = tensors.pop(f"transformer.{name}_mask", None)
        if mask is not None:
            expected = attention_mask(pattern, length, (side, side), _WINDOW)
            if not np.array_equal(np.asarray(mask).astype(bool), expected):
                raise LoadError(f"{file}: {name}_mask is not that of hf_version {version} and {side} x {side} codes")


def _convert_weights(tensors: Mapping, params: Mapping, version: str, file: str) -> dict[str, np.ndarray]:
    converted = from_peer(tensors, list(_list_entries(params)), file)
    size, length = params["vocab_size"], params["text_seq_length"]
    for part in ("kernel", "bias"):  # logits of text tokens, then of codes
        x = converted[f"head/{part}"]
        converted |= {f"condition_head/{part}": x[..., :size], f"head/{part}": x[..., size:]}
    # There is a position more than tokens, except in the second version.
    converted["condition/positions"] = converted["condition/positions"][: length + (version == "v2")]
    return converted


def _list_entries(params: Mapping) -> Iterator[Entry]:
    """Lists the parameters with their names in ruDALL-E."""
    yield Entry("condition/tokens", ("text_embeddings.weight",))
    yield Entry("condition/positions", ("text_pos_embeddings.weight",))
    yield Entry("codes/tokens", ("image_embeddings.weight",))
    yield Entry("codes/rows", ("image_row_embeddings.weight",))
    yield Entry("codes/columns", ("image_col_embeddings.weight",))
    yield from _norm("norm", "transformer.final_layernorm")
    yield from _norm("second_norm", "to_logits.0")
    yield Entry("head/kernel", ("to_logits.1.weight",), "linear")
    yield Entry("head/bias", ("to_logits.1.bias",))
    for i in range(params["num_layers"]):
        ours, theirs = f"transformer/block_{i}", f"transformer.layers.{i}"
        yield from _norm(f"{ours}/norm1", f"{theirs}.input_layernorm")
        yield from _norm(f"{ours}/norm2", f"{theirs}.post_attention_layernorm")
        if params["cogview_sandwich_layernorm"]:
            yield from _norm(f"{ours}/attention_norm", f"{theirs}.before_first_addition_layernorm")
            yield from _norm(f"{ours}/mlp_norm", f"{theirs}.before_second_addition_layernorm")
        yield from _dense(f"{ours}/attention/qkv", f"{theirs}.attention.query_key_value", params, "qkv", "qkv_bias")
        yield from _dense(f"{ours}/attention/out", f"{theirs}.attention.dense", params, "merge_heads")
        yield from _dense(f"{ours}/mlp_in", f"{theirs}.mlp.dense_h_to_4h", params)
        yield from _dense(f"{ours}/mlp_out", f"{theirs}.mlp.dense_4h_to_h", params)


def _norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}/scale", (f"{theirs}.weight",))
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def _dense(ours: str, theirs: str, params: Mapping, kind: str = "linear", bias_kind: str = "same") -> Iterator[Entry]:
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), kind, params["num_attention_heads"])
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",), bias_kind, params["num_attention_heads"])
