"""dalle-mini and dalle-mega (borisdayma/dalle-mini): `config.json`, `flax_model.msgpack`, `tokenizer.json`, and the VQGAN.

The transformer is BART's: an encoder of the caption, and a decoder of codes that starts with a token of its own. Norms that
products follow have no scales, which are 1 here. Dense layers of Flax are transposed to those of PyTorch, whose
layouts `train_jax.weights.layout` knows.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tokenizers

from dalle_jax.captions import TOKENIZER, SubwordCaptions
from dalle_jax.options import DALLEOptions
from dalle_jax.text_normalizer import WORDS, TextNormalizer
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.msgpack import read_arrays
from vqgan_jax.pretrained.checkpoint import convert_errors, read_config
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.stage2.first_stage import open_first_stage

CONFIG, WEIGHTS = "config.json", "flax_model.msgpack"
_VQGAN = "hf:dalle-mini/vqgan_imagenet_f16_16384"
_PAD = "<pad>"
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu"}
_BRANCH_NORMS = {"normformer": "normformer", "cogview": "sandwich", "preln": "none"}
# dalle-mini's defaults of what determines the computation.
_DEFAULTS = {
    "normalize_text": False, "encoder_vocab_size": 50264, "image_vocab_size": 16384, "image_length": 256,
    "max_text_length": 64, "encoder_layers": 12, "encoder_ffn_dim": 4096, "encoder_attention_heads": 16,
    "decoder_layers": 12, "decoder_ffn_dim": 4096, "decoder_attention_heads": 16, "activation_function": "gelu",
    "d_model": 1024, "use_bias": False, "ln_positions": "normformer", "use_glu": True, "force_ln_scale": False,
}  # fmt: skip
# Options that only this value is supported of, which is their default.
_FIXED = {
    "scale_embedding": False, "tie_word_embeddings": False, "ln_type": "layernorm", "use_head_scale": False,
    "use_cosine_attention": False, "use_absolute_position_embeddings": True, "use_swin_position_embeddings": False,
    "use_deepnet_scaling": False, "use_alibi": False, "sinkhorn_iters": 1, "use_final_ln_encoder": True,
    "use_final_ln_decoder": True, "is_encoder_decoder": True, "model_type": "dallebart",
}  # fmt: skip
# What concerns training, sampling and saving. Other options are refused: they could change the computation.
_IGNORED = {
    "_name_or_path", "activation_dropout", "architectures", "attention_dropout", "bos_token_id", "decoder_layerdrop",
    "decoder_start_token_id", "do_sample", "dropout", "dtype", "encoder_layerdrop", "eos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "init_std", "max_length", "min_length", "pad_token_id", "tau_init", "torch_dtype",
    "transformers_version", "use_cache", "use_scan", "use_subln_init",
}  # fmt: skip


def open_directory(path: Path, vqgan: str | Path | None) -> Stage2Checkpoint | None:
    """Opens a directory of dalle-mini. Returns None if its `config.json` is of no dalle-mini.

    Args:
      vqgan: path of the VQGAN; None: the folder `vqgan`.
    """
    file = path / CONFIG
    config = read_config(file) if file.is_file() else {}
    if config.get("model_type") != "dallebart" and "DalleBart" not in str(config.get("architectures")):
        return None
    if not (path / WEIGHTS).is_file():
        raise LoadError(f"{path} has dalle-mini's {CONFIG}, but no {WEIGHTS}")
    with convert_errors(file):
        # Vocabularies are padded: the first token that is no code starts the sequence.
        num_codes = config.get("decoder_start_token_id", config.get("image_vocab_size", _DEFAULTS["image_vocab_size"]))
        config = _fill_defaults(config, file)
        options = _convert_options(config, file)
        side = round(config["image_length"] ** 0.5)
        if side**2 != config["image_length"]:
            raise LoadError(f"{file}: image_length = {config['image_length']} is not a square number")
        captions = _open_captions(path, config)
        first_stage = open_first_stage(path, vqgan, _VQGAN, num_codes, "decoder_start_token_id")

    def read() -> tuple[dict, str]:
        return unflatten(_read_weights(path / WEIGHTS, config, num_codes), True), str(path)

    size = side * first_stage.module().factor
    return Stage2Checkpoint(str(path), options, captions, first_stage, size, read)


def _fill_defaults(config: Mapping, file: Path) -> dict:
    """Fills in defaults for missing options. Raises LoadError for options and values that are not supported."""
    if unknown := config.keys() - _DEFAULTS.keys() - _FIXED.keys() - _IGNORED:
        known = ", ".join(sorted(_DEFAULTS.keys() | _FIXED.keys()))
        raise LoadError(f"{file} has {', '.join(sorted(unknown))}; the options of dalle-mini that are understood: {known}")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise LoadError(f"{file}: {key} = {config[key]!r}; only {value!r} is supported")
    for part in ("ffn_dim", "attention_heads"):
        encoder, decoder = (config.get(f"{name}_{part}", _DEFAULTS[f"{name}_{part}"]) for name in ("encoder", "decoder"))
        if encoder != decoder:
            raise LoadError(f"{file}: encoder_{part} = {encoder}, decoder_{part} = {decoder}; only equal ones are supported")
    completed = {key: config.get(key, value) for key, value in _DEFAULTS.items()}
    for key, value in completed.items():
        if type(value) is not type(_DEFAULTS[key]):
            raise LoadError(f"{file}: {key} = {value!r}; it must be of the type {type(_DEFAULTS[key]).__name__}")
    return completed


def _convert_options(config: Mapping, file: Path) -> DALLEOptions:
    for key, supported in (("activation_function", _ACTIVATIONS), ("ln_positions", _BRANCH_NORMS)):
        if config[key] not in supported:
            raise LoadError(f"{file}: {key} = {config[key]!r}; one of {', '.join(supported)} is supported")
    options = {
        "text_length": config["max_text_length"],
        "width": config["d_model"],
        "depth": config["decoder_layers"],
        "encoder_depth": config["encoder_layers"],
        "heads": config["decoder_attention_heads"],
        "mlp_ratio": config["decoder_ffn_dim"] / config["d_model"],
        "activation": _ACTIVATIONS[config["activation_function"]],
        "branch_norms": _BRANCH_NORMS[config["ln_positions"]],
        "gated": config["use_glu"],
        "bias": config["use_bias"],
        "embedding_norm": True,
        "positions": "learned",
        "vocabulary": "separate",
    }
    return DALLEOptions.parse(options, "model")


def _open_captions(path: Path, config: Mapping) -> SubwordCaptions:
    file = path / TOKENIZER
    if not file.is_file():
        raise LoadError(f"{file} is missing: prompts cannot be tokenized")
    try:
        bpe = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
    except Exception as error:  # the library raises no narrower class
        raise LoadError(f"{file} is not a tokenizer ({error})") from error
    size, length, pad = config["encoder_vocab_size"], config["max_text_length"], bpe.token_to_id(_PAD)
    if pad is None:
        raise LoadError(f"{file} has no {_PAD}: it is not dalle-mini's tokenizer")
    if bpe.get_vocab_size() > size:
        raise LoadError(f"{file}: a tokenizer of {bpe.get_vocab_size()} tokens, but the model has {size}")
    bpe.no_padding()
    bpe.enable_truncation(length)
    bpe.encode_special_tokens = True  # "<pad>" in a prompt is ordinary text
    normalize = _open_normalizer(path / WORDS) if config["normalize_text"] else None
    return SubwordCaptions(bpe, length, size, pad, normalize, droppable=True, padding=pad)


def _open_normalizer(file: Path) -> TextNormalizer:
    try:
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        return TextNormalizer(tuple(line.split()[0] for line in lines))
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise LoadError(f"{file} is not a list of words ({error})") from error


def _read_weights(file: Path, config: Mapping, num_codes: int) -> dict[str, np.ndarray]:
    params = from_peer(_unstack(read_arrays(file)), list(_list_entries(config)), str(file))
    positions = params["codes/positions"]
    start = params["codes/tokens"][num_codes : num_codes + 1]
    if not len(start):
        raise LoadError(f"{file}: {len(params['codes/tokens'])} image tokens are too few for {num_codes} codes and a start")
    # The start token has the first position. The last code is never an input, so dalle-mini has no position for it.
    params |= {
        "start/tokens": start,
        "start/positions": positions[:1],
        "codes/tokens": params["codes/tokens"][:num_codes],
        "codes/positions": np.concatenate([positions[1:], 0 * positions[:1]]),
        "head/kernel": params["head/kernel"][:, :num_codes],
    }
    scales = {name.removesuffix("bias") + "scale": np.ones_like(x) for name, x in params.items() if _is_norm_bias(name)}
    return scales | params


def _is_norm_bias(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] == "bias" and "norm" in parts[-2]


def _unstack(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns views with PyTorch's layouts: a layer each, where layers are stacked, and weights [out, in] of kernels."""
    views = {}
    for name, array in arrays.items():
        stacked = re.fullmatch(r"(.*Layer)s(\..*)", name)
        layers = {name: array} if stacked is None else {f"{stacked[1]}_{i}{stacked[2]}": x for i, x in enumerate(array)}
        views |= {key: x.T if key.endswith(".kernel") else x for key, x in layers.items()}
    return views


def _list_entries(config: Mapping) -> Iterator[Entry]:
    """Lists the parameters with their names in dalle-mini, without scales that are not there."""
    force_scale = config["force_ln_scale"]
    for ours, theirs, norm in (("condition", "encoder", "condition_norm"), ("codes", "decoder", "code_norm")):
        yield Entry(f"{ours}/tokens", (f"model.{theirs}.embed_tokens.embedding",))
        yield Entry(f"{ours}/positions", (f"model.{theirs}.embed_positions.embedding",))
        yield from _norm(norm, f"model.{theirs}.layernorm_embedding", True)
    yield from _norm("encoder_norm", "model.encoder.final_ln", force_scale)
    yield from _norm("norm", "model.decoder.final_ln", force_scale)
    yield Entry("head/kernel", ("lm_head.kernel",), "linear")
    for i in range(config["encoder_layers"]):
        yield from _list_block(f"encoder/block_{i}", f"model.encoder.layers.FlaxBartEncoderLayer_{i}", config, False)
    for i in range(config["decoder_layers"]):
        yield from _list_block(f"transformer/block_{i}", f"model.decoder.layers.FlaxBartDecoderLayer_{i}", config, True)


def _norm(ours: str, theirs: str, has_scale: bool) -> Iterator[Entry]:
    for part in ("scale", "bias")[not has_scale :]:
        yield Entry(f"{ours}/{part}", (f"{theirs}.{part}",))


def _list_block(ours: str, theirs: str, config: Mapping, cross: bool) -> Iterator[Entry]:
    heads, has_bias, force_scale = config["decoder_attention_heads"], config["use_bias"], config["force_ln_scale"]
    branch_norms = _BRANCH_NORMS[config["ln_positions"]]
    stride = 1 if branch_norms == "none" else 2  # norms of a branch of attention: before, and after it
    for index, (attention, norm) in enumerate((("attention", "norm1"), ("cross_attention", "cross_norm"))[: 1 + cross]):
        yield from _norm(f"{ours}/{norm}", f"{theirs}.LayerNorm_{stride * index}", force_scale)
        if branch_norms != "none":
            yield from _norm(f"{ours}/{attention}_norm", f"{theirs}.LayerNorm_{stride * index + 1}", True)
        yield from _list_attention(f"{ours}/{attention}", f"{theirs}.FlaxBartAttention_{index}", heads, has_bias, index == 0)
    mlp = f"{theirs}.{'GLU' if config['use_glu'] else 'FFN'}_0"
    yield from _norm(f"{ours}/norm2", f"{mlp}.LayerNorm_0", force_scale)
    if branch_norms != "none":
        yield from _norm(f"{ours}/mlp_norm", f"{mlp}.LayerNorm_1", force_scale or branch_norms == "sandwich")
    for index, name in enumerate(("mlp_gate", "mlp_in", "mlp_out")[not config["use_glu"] :]):
        yield Entry(f"{ours}/{name}/kernel", (f"{mlp}.Dense_{index}.kernel",), "linear")
        if has_bias:
            yield Entry(f"{ours}/{name}/bias", (f"{mlp}.Dense_{index}.bias",))


def _list_attention(ours: str, theirs: str, heads: int, has_bias: bool, joint: bool) -> Iterator[Entry]:
    """Lists the parameters of attention, with queries, keys and values in one parameter if `joint`."""
    names = [f"{theirs}.{name}_proj" for name in "qkv"]
    groups = {"qkv": names} if joint else {"q": names[:1], "k": names[1:2], "v": names[2:]}
    for name, group in groups.items():
        kind, bias_kind = ("qkv", "qkv_bias") if joint else ("split_heads", "heads_bias")
        yield Entry(f"{ours}/{name}/kernel", tuple(f"{x}.kernel" for x in group), kind, heads)
        if has_bias:
            yield Entry(f"{ours}/{name}/bias", tuple(f"{x}.bias" for x in group), bias_kind, heads)
    yield Entry(f"{ours}/out/kernel", (f"{theirs}.out_proj.kernel",), "merge_heads", heads)
    if has_bias:
        yield Entry(f"{ours}/out/bias", (f"{theirs}.out_proj.bias",))
