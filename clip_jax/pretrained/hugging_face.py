"""Hugging Face directories of CLIP, MetaCLIP 2, Chinese-CLIP, SigLIP and SigLIP 2, in the format of `transformers`.

Files: config.json, model.safetensors (or pytorch_model.bin, or shards with an index), tokenizer files,
preprocessor_config.json
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clip_jax.pretrained import bert
from clip_jax.pretrained.checkpoint import Checkpoint, join_towers
from clip_jax.pretrained.image_processor import FILES, open_preprocess
from clip_jax.pretrained.json_files import read_json, read_section
from clip_jax.pretrained.openai import cross_attention_entries, linear_entries, norm_entries
from train_jax.data.sentencepiece import SentencePiece
from train_jax.data.text import AnyTokenizer, Tokenizer
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer
from train_jax.weights.tensors import Tensor, open_tensors
from train_jax.weights.transformers_config import find_unknown
from train_jax.weights.wrappers import unwrap

ACTIVATIONS = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "silu": "silu"
}  # fmt: skip
LEGACY_EOS = 2  # eos_token_id of older CLIP configs, for which transformers pools at the largest id
# Supported values of `model_type`, with the options of their tokenizers.
_UNCLEANED = {"is_padded": True, "clean": "none"}
KINDS = {"clip": {}, "metaclip_2": _UNCLEANED, "chinese_clip": _UNCLEANED, "siglip": {}, "siglip2": {}}
_HALVES = {
    f"{kind}_{half}_model": f"its {other}"
    for kind in KINDS
    for half, other in (("text", "image"), ("vision", "text"))
}
IGNORED = (r"embeddings\.position_ids$",)
_CHINESE_CONTEXT = 52  # of Chinese-CLIP's training (arXiv 2211.01335); its BERT has more positions
_WEIGHTS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
# One of these is present in every CLIP and SigLIP; identifies the format.
ANCHOR, BERT_ANCHOR = (f"text_model.embeddings.{name}.weight" for name in ("token_embedding", "word_embeddings"))
ANCHORS = (ANCHOR, BERT_ANCHOR)


def open_directory(path: Path, weights: Path | None = None) -> Checkpoint | None:
    """Opens a Hugging Face directory. Reads the weights from the file `weights`, by default from the directory.

    Returns None if `weights` is None and config.json is not in the format of `transformers`.
    """
    file = path / "config.json"
    if weights is None and not file.is_file():
        return None
    config = read_json(file)
    if weights is None and ("model_type" not in config or "task" in config):
        return None
    kind = config.get("model_type")
    if kind in _HALVES:
        raise LoadError(
            f"{file}: model_type {kind!r} is half a CLIP, without {_HALVES[kind]} tower; load the whole model, or "
            "a folder of both halves (text_encoder/, tokenizer/, image_encoder/, feature_extractor/)"
        )
    if kind not in KINDS or "vision_config" not in config or "text_config" not in config:
        raise LoadError(f"{file}: model_type {kind!r} is no complete model of these: {', '.join(KINDS)}")
    config |= {name: _read_section(config, name, file) for name in ("text_config", "vision_config")}
    for part in ("", "text", "vision"):
        section = f"{part}_config"
        check_known(config[section] if part else config, part, f"{file}: {section}" if part else file)
    is_siglip, is_chinese = kind in ("siglip", "siglip2"), kind == "chinese_clip"
    model = convert_siglip_options(config, file) if is_siglip else convert_clip_options(config, file)
    table = list_siglip_entries if is_siglip else list_chinese_clip_entries if is_chinese else list_clip_entries
    files = [weights] if weights else find_weight_files(path)
    source, anchor = str(weights or path), BERT_ANCHOR if is_chinese else ANCHOR
    tensors = unwrap(open_weights(path, files), anchor, source)
    if is_chinese:
        tensors = bert.fold_positions(tensors, model["text"]["context_length"], "text_model", first=0)
    family, patch = (kind.capitalize(), model["image"]["patch"] * (kind == "siglip2")) if is_siglip else ("CLIP", 0)
    preprocess = open_preprocess(path, model["image"]["size"], family, patch)
    if preprocess is None:
        raise LoadError(f"{path}: {' or '.join(FILES)} is missing, which says how images are preprocessed")
    return Checkpoint(
        name=source,
        kind=f"Hugging Face {kind}",
        model=model,
        tokenizer=open_matching_tokenizer(path, config["text_config"], model, **KINDS[kind]),
        preprocess=preprocess,
        read=lambda: (from_peer(tensors, table(model), source, IGNORED), source),
        files=f"{files[0].name}, config.json, {next(name for name in FILES if (path / name).is_file())}",
    )


def check_known(config: Mapping, part: str, where: str | Path) -> None:
    """Raises LoadError for options that a model (`part` "") or a tower ("text", "vision") of transformers has not."""
    known = {"": _TOP, "text": _TEXT, "vision": _VISION}[part]
    if unknown := find_unknown(config, known):
        raise LoadError(f"{where} has {', '.join(unknown)}; what is understood: {', '.join(sorted(known))}")


def open_weights(path: Path, files: Sequence[Path] | None = None) -> dict[str, Tensor]:
    """Opens the tensors of weight files, by default those of a directory. Raises LoadError if there are none."""
    files = find_weight_files(path) if files is None else files
    if not files:
        raise LoadError(f"{path} holds no weights: none of {', '.join(_WEIGHTS)}")
    return {name: x for file in files for name, x in open_tensors(file).items()}


def find_weight_files(path: Path) -> list[Path]:
    """Lists the weight files of a directory: one file, or the shards of an index. Returns [] if there are none."""
    for name in _WEIGHTS:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_section(read_json(index), "weight_map", index).values()))
            absent = [shard for shard in shards if Path(shard).name != shard or not (path / shard).is_file()]
            if absent:
                raise LoadError(f"{index} names {absent[0]!r}, which does not exist in {path}")
            return [path / shard for shard in shards]
    return []


# ---------------------------------------------------------------------------------------------------------------------
# Options from a config


def _convert_tower(section: Mapping, file: Path, defaults: Mapping) -> dict:
    """Converts a tower's config of transformers to options. config.json omits the `defaults` of transformers."""
    config = {**defaults, **section}
    if config["hidden_act"] not in ACTIVATIONS:
        raise LoadError(f"{file}: activation {config['hidden_act']!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "activation": ACTIVATIONS[config["hidden_act"]],
        "eps": config["layer_norm_eps"],
    }


def _convert_image_size(config: Mapping, file: Path) -> dict:
    """Converts the size of images and patches. Convolutions of transformers drop pixels beyond the last whole patch."""
    if config.get("num_channels", 3) != 3:
        raise LoadError(f"{file}: num_channels = {config['num_channels']!r}; only images of 3 channels are supported")
    size, patch = config["image_size"], config["patch_size"]
    return {"size": size, "patch": patch} | ({"drop_margin": True} if size % patch else {})


def _read_section(config: Mapping, name: str, file: Path) -> dict:
    """Reads `text_config` or `vision_config`. In older CLIP files, `NAME_dict` and its defaults override it."""
    part, override = read_section(config, name, file), config.get(f"{name}_dict")
    if override is None or config["model_type"].startswith("siglip"):
        return part
    text_defaults = _CHINESE_TEXT if config["model_type"] == "chinese_clip" else _CLIP_TEXT
    return part | (text_defaults if name == "text_config" else _CLIP_IMAGE) | read_section(config, f"{name}_dict", file)


_CLIP = {"num_attention_heads": 8, "num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_TEXT = _CLIP | {
    "hidden_size": 512, "intermediate_size": 2048, "max_position_embeddings": 77, "eos_token_id": 49407, "vocab_size": 49408,
}  # fmt: skip
_CLIP_IMAGE = _CLIP | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
}  # fmt: skip
_CHINESE_TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "vocab_size": 30522, "pad_token_id": 0,
    "position_embedding_type": "absolute",
}  # fmt: skip
_SIGLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
_SIGLIP_TEXT = _SIGLIP | {"max_position_embeddings": 64, "vocab_size": 32000}
_SIGLIP_IMAGE = _SIGLIP | {"image_size": 224, "patch_size": 16}

# Keys of the model and of its towers, also those that do not change the embeddings.
_TOP = {
    "text_config", "vision_config", "text_config_dict", "vision_config_dict", "projection_dim", "logit_scale_init_value",
    "initializer_factor", "initializer_range",
}  # fmt: skip
_TOWER = {
    *_SIGLIP, "projection_dim", "attention_dropout", "dropout", "gradient_checkpointing", "initializer_factor",
    "initializer_range",
}  # fmt: skip
_VISION = _TOWER | {"image_size", "patch_size", "num_channels", "num_patches", "vision_use_head"}
_TEXT = _TOWER | _CHINESE_TEXT.keys() | {
    "projection_size", "type_vocab_size", "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout",
}  # fmt: skip


def convert_clip_options(config: Mapping, file: Path) -> dict:
    """Converts the config of a CLIPModel, MetaClip2Model or ChineseCLIPModel to the options of `CLIPOptions`."""
    text, image = config["text_config"], _CLIP_IMAGE | config["vision_config"]
    image = {
        **_convert_tower(image, file, _CLIP_IMAGE), **_convert_image_size(image, file), "pool": "cls", "pre_norm": True
    }  # fmt: skip
    if config["model_type"] == "chinese_clip":
        text = _convert_bert_options(_CHINESE_TEXT | text, file)
    else:
        is_eos = config["model_type"] == "metaclip_2"
        text = _convert_clip_text_options(_CLIP_TEXT | text, file) | ({"pool": "eos"} if is_eos else {})
    return join_towers(image, text, embed_dim=config.get("projection_dim", 512), loss="softmax")


def convert_text_model_options(config: Mapping, file: Path) -> dict:
    """Converts the config of a CLIPTextModelWithProjection to the options of `CLIPOptions`, without image tower."""
    text = _convert_clip_text_options(_CLIP_TEXT | config, file)
    model = join_towers(text, text, embed_dim=config.get("projection_dim", 512))
    return {name: value for name, value in model.items() if name != "image"}


def _convert_clip_text_options(text: Mapping, file: Path) -> dict:
    return {
        **_convert_tower(text, file, _CLIP_TEXT),
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "pool": "argmax" if text["eos_token_id"] == LEGACY_EOS else "eos",
    }


def _convert_bert_options(text: Mapping, file: Path) -> dict:
    if text["position_embedding_type"] != "absolute":
        raise LoadError(
            f"{file}: position_embedding_type = {text['position_embedding_type']!r} is not supported; supported: absolute"
        )
    return {
        **_convert_tower(text, file, _CHINESE_TEXT),
        "context_length": min(text["max_position_embeddings"], _CHINESE_CONTEXT),
        "vocab_size": text["vocab_size"],
        "causal": False,
        "pool": "first",
        "pad_id": text["pad_token_id"],
        "branch_norms": "post",
    }


def convert_siglip_options(config: Mapping, file: Path) -> dict:
    """Converts the config of a SiglipModel or Siglip2Model to the options of `CLIPOptions`."""
    text, image = _SIGLIP_TEXT | config["text_config"], _SIGLIP_IMAGE | config["vision_config"]
    is_native = config["model_type"] == "siglip2"
    if is_native:
        num_patches = image.get("num_patches", 256)
        side = math.isqrt(num_patches)
        if side * side != num_patches:
            raise LoadError(f"{file}: vision_config.num_patches = {num_patches!r}; it must be a square number")
        image["image_size"] = side * image["patch_size"]
    if not image.get("vision_use_head", True):
        raise LoadError(f"{file}: a SigLIP without its pooling head (vision_use_head = false) has no embeddings")
    embed_dim = text.get("projection_size") or text["hidden_size"]
    image = {
        **_convert_tower(image, file, _SIGLIP_IMAGE),
        **_convert_image_size(image, file),
        "stem_bias": True,
        "pool": "map",
        "pre_norm": False,
        "proj": False,
        **({"native": True} if is_native else {}),
    }
    text = {
        **_convert_tower(text, file, _SIGLIP_TEXT),
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "causal": False,
        "pool": "last",
        "proj_bias": True,
    }
    return join_towers(image, text, embed_dim=embed_dim, loss="sigmoid")


# ---------------------------------------------------------------------------------------------------------------------
# Parameter names


def _block_entries(ours: str, theirs: str, tower: Mapping) -> Iterator[Entry]:
    heads = tower["heads"]
    for index in range(tower["depth"]):
        mine, block = f"{ours}/transformer/block_{index}", f"{theirs}.encoder.layers.{index}"
        qkv = [f"{block}.self_attn.{part}_proj" for part in "qkv"]
        yield from norm_entries(f"{mine}/norm1", f"{block}.layer_norm1")
        yield Entry(f"{mine}/attention/qkv/kernel", tuple(f"{part}.weight" for part in qkv), "qkv", heads)
        yield Entry(f"{mine}/attention/qkv/bias", tuple(f"{part}.bias" for part in qkv), "qkv_bias", heads)
        yield from linear_entries(f"{mine}/attention/out", f"{block}.self_attn.out_proj", "merge_heads", heads)
        yield from norm_entries(f"{mine}/norm2", f"{block}.layer_norm2")
        yield from linear_entries(f"{mine}/mlp_in", f"{block}.mlp.fc1")
        yield from linear_entries(f"{mine}/mlp_out", f"{block}.mlp.fc2")


def list_clip_entries(model: Mapping) -> list[Entry]:
    """Lists the parameters of a CLIP with their names in CLIPModel. `model` has the options of `CLIPOptions`."""
    return [*_list_clip_image_entries(model), *list_clip_text_entries(model)]


def list_chinese_clip_entries(model: Mapping) -> list[Entry]:
    """Lists the parameters of a CLIP with their names in ChineseCLIPModel. `model` has the options of `CLIPOptions`."""
    return [*_list_clip_image_entries(model), *bert.list_entries(model["text"], "text_model", "text_projection")]


def _list_clip_image_entries(model: Mapping) -> list[Entry]:
    return [
        Entry("vision/stem/kernel", ("vision_model.embeddings.patch_embedding.weight",), "conv"),
        Entry("vision/cls", ("vision_model.embeddings.class_embedding",)),
        Entry("vision/positions", ("vision_model.embeddings.position_embedding.weight",)),
        *norm_entries("vision/norm_pre", "vision_model.pre_layrnorm"),
        *_block_entries("vision", "vision_model", model["image"]),
        *norm_entries("vision/norm_post", "vision_model.post_layernorm"),
        Entry("vision/proj/kernel", ("visual_projection.weight",), "linear"),
        Entry("logit_scale", ("logit_scale",), "scalar"),
    ]


def list_clip_text_entries(model: Mapping) -> list[Entry]:
    """Lists the parameters of a text tower with their names in CLIPModel and CLIPTextModelWithProjection."""
    return [
        Entry("text/tokens", ("text_model.embeddings.token_embedding.weight",)),
        Entry("text/positions", ("text_model.embeddings.position_embedding.weight",)),
        *_block_entries("text", "text_model", model["text"]),
        *norm_entries("text/norm_post", "text_model.final_layer_norm"),
        Entry("text/proj/kernel", ("text_projection.weight",), "linear"),
    ]


def list_siglip_entries(model: Mapping) -> list[Entry]:
    """Lists the parameters of a SigLIP with their names in SiglipModel, or of a SigLIP 2 in Siglip2Model.

    `model` has the options of `CLIPOptions`.
    """
    heads, head = model["image"]["heads"], "vision_model.head"
    stem = "linear" if model["image"].get("native") else "conv"
    return [
        *linear_entries("vision/stem", "vision_model.embeddings.patch_embedding", stem),
        Entry("vision/positions", ("vision_model.embeddings.position_embedding.weight",)),
        *_block_entries("vision", "vision_model", model["image"]),
        *norm_entries("vision/norm_post", "vision_model.post_layernorm"),
        Entry("vision/head/probe", (f"{head}.probe",), "row"),
        *cross_attention_entries("vision/head/attention", f"{head}.attention", heads),
        *norm_entries("vision/head/norm", f"{head}.layernorm"),
        *linear_entries("vision/head/mlp_in", f"{head}.mlp.fc1"),
        *linear_entries("vision/head/mlp_out", f"{head}.mlp.fc2"),
        Entry("text/tokens", ("text_model.embeddings.token_embedding.weight",)),
        Entry("text/positions", ("text_model.embeddings.position_embedding.weight",)),
        *_block_entries("text", "text_model", model["text"]),
        *norm_entries("text/norm_post", "text_model.final_layer_norm"),
        *linear_entries("text/proj", "text_model.head"),
        Entry("logit_scale", ("logit_scale",), "scalar"),
        Entry("logit_bias", ("logit_bias",), "scalar"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


def open_matching_tokenizer(path: Path, text_config: Mapping, model: Mapping, **options) -> AnyTokenizer:
    """Opens the tokenizer in a directory. Raises LoadError also if its special tokens are not the text tower's."""
    tokenizer = open_tokenizer(path, model, **options)
    eos_id = text_config.get("eos_token_id", _CLIP_TEXT["eos_token_id"])
    if model["text"].get("pool") == "eos" and tokenizer.eos_id != eos_id:
        raise LoadError(
            f"{path}: the tokenizer's end token is {tokenizer.eos_id}, but eos_token_id is {eos_id} in config.json"
        )
    if model["text"].get("pad_id", tokenizer.pad_id) != tokenizer.pad_id:
        raise LoadError(
            f"{path}: the tokenizer pads with {tokenizer.pad_id}, but config.json has pad_token_id {model['text']['pad_id']}"
        )
    return tokenizer


def open_tokenizer(path: Path, model: Mapping, is_padded: bool | None = None, **options) -> AnyTokenizer:
    """Opens the tokenizer in a directory.

    Args:
      is_padded: whether it is a `SentencePiece`; None: only for a bidirectional text tower. Otherwise it is CLIP's.
      options: of `SentencePiece.load`.

    Raises LoadError if the tokenizer is missing or has more tokens than the model's token embedding.
    """
    if is_padded is None:
        is_padded = not model["text"].get("causal", True)
    tokenizer_class = SentencePiece if is_padded else Tokenizer
    try:
        tokenizer = tokenizer_class.load(path, model["text"]["context_length"], **options)
    except (ValueError, FileNotFoundError) as error:
        raise LoadError(str(error)) from error
    if tokenizer.vocab_size > model["text"]["vocab_size"]:
        raise LoadError(
            f"wrong tokenizer for the weights: {path} has {tokenizer.vocab_size} tokens, and the weights embed "
            f"{model['text']['vocab_size']}"
        )
    return tokenizer
