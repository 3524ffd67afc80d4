"""Checkpoints of taming-transformers' second stage, `Net2NetTransformer`: a `.ckpt` and a `.yaml`.

Both stages are in one file. The transformer is minGPT: labels, or codes of a map, and codes of the image share a vocabulary,
and models without condition start sequences with a fixed token.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from train_jax.errors import LoadError
from train_jax.weights import gpt
from train_jax.weights.layout import Entry, from_peer, hash_arrays, unflatten
from vqgan_jax import model as model_lib
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import abstract_variables, check_shapes, convert_errors
from vqgan_jax.prior.maps import CodedMaps, Coordinates, MapCondition, MapEncoder, token_count
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.model import CodeTransformerOptions

_IGNORED = (r"\.attn\.mask$",)
# Of VQGANs of maps, the decoder and what `vqgan_jax.pretrained.taming` ignores are not needed.
_ENCODER = ("encoder/", "quant_conv/", "quantizer/")
_NO_ENCODER = (r"^(decoder|post_quant_conv|loss)\.", *taming.IGNORED)
_WITHOUT_MAP = ("Labelator", "SOSProvider", "__is_unconditional__")
# Options of Net2NetTransformer; others are refused.
_OPTIONS = {
    "transformer_config", "first_stage_config", "cond_stage_config", "permuter_config", "ckpt_path", "ignore_keys",
    "first_stage_key", "cond_stage_key", "downsample_cond_size", "pkeep", "sos_token", "unconditional",
}  # fmt: skip
_GPT = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_unmasked", "embd_pdrop", "resid_pdrop", "attn_pdrop"}
_DEFAULTS = {"n_layer": 12, "n_head": 8, "n_embd": 256, "n_unmasked": 0, "resid_pdrop": 0.0}  # defaults of GPT


def open_file(path: Path) -> Stage2Checkpoint | None:
    """Opens the second stage in a file, with its first stage; returns None for other files.

    Raises LoadError for unsupported models (conditions of other classes), and for missing or mismatched tensors.
    """
    if path.suffix not in taming.SUFFIXES:
        return None
    config = taming.read_model_config(path)
    if _class_name(config) != "Net2NetTransformer":
        return None
    with convert_errors(path):
        return _open(config["params"], path)


def _open(config: Mapping, path: Path) -> Stage2Checkpoint:
    hparams, tensors = _parse_hparams(config, path), taming.open_state_dict(path)
    first_weights = taming.extract_first_stage(tensors)
    first = taming.build_checkpoint(config["first_stage_config"], first_weights, path)
    transformer = {name: x for name, x in tensors.items() if name.startswith("transformer.")}
    params = from_peer(transformer, _build_entries(hparams), str(path), _IGNORED)
    table, positions, num_codes = params.pop("tokens"), params.pop("positions")[0], first.model["quantizer"]["size"]
    for key, size in (("vocab_size", len(table)), ("block_size", len(positions))):
        if hparams.get(key, size) != size:
            raise LoadError(f"{path}: {key} = {hparams[key]!r}, where the weights have {size}")
    factor = first.module().factor
    encoder = _open_map_encoder(config, tensors, len(table), path)
    if encoder is None:
        classes = _num_labels(config, path)
        condition, num_tokens, name = ClassCondition(classes, droppable=not classes), classes, "labels"
        size = factor * _find_side(lambda side: 1, len(positions), path)
        # The embedding of "no label" is zero, because the model was not trained without labels.
        embeddings = np.concatenate([table[:classes], 0 * table[:1]]) if classes else table[[_first_token(config)]]
    else:
        reduced = max(config.get("downsample_cond_size", -1), 0)
        size = factor * _find_side(lambda side: token_count(encoder, reduced or side * factor), len(positions), path)
        if (reduced or size) % encoder.factor:
            raise LoadError(f"{path}: maps of {reduced or size} pixels, which squares of {encoder.factor} do not divide")
        condition, num_tokens, name = MapCondition(encoder, size, reduced), encoder.vocabulary_size, "codes of maps"
        embeddings = table[:num_tokens]
    if not max(num_tokens, num_codes) <= len(table):
        raise LoadError(
            f"{path}: {len(table)} tokens are too few for {num_codes} codes and {num_tokens} {name}, which share them"
        )
    # The last code is never an input, so taming may have no position for it.
    count, length = (size // factor) ** 2, condition.length
    params |= {
        "condition/tokens": embeddings,
        "condition/positions": positions[:length],
        "codes/tokens": table[:num_codes],
        "codes/positions": np.concatenate([positions[length:], 0 * positions[:1]])[:count],
        "head/kernel": params["head/kernel"][:, :num_codes],
    }
    sizes = {"width": hparams["n_embd"], "depth": hparams["n_layer"], "heads": hparams["n_head"]}
    options = CodeTransformerOptions.parse(sizes, "model")
    tree = unflatten(params, True)
    return Stage2Checkpoint(str(path), options, condition, first, size, lambda: (tree, str(path)))


def _find_side(condition_length: Callable[[int], int], positions: int, path: Path) -> int:
    """Returns the side of the grid of codes for which the transformer has positions, with or without one for the last code.

    Args:
      condition_length: function from a side to the number of condition tokens.
    """
    for side in range(1, positions + 1):
        if side**2 + condition_length(side) - positions in (0, 1):
            return side
    raise LoadError(f"{path}: {positions} positions do not form a square grid of codes behind their condition")


def _open_map_encoder(config: Mapping, tensors: Mapping, num_tokens: int, path: Path) -> MapEncoder | None:
    """Opens the encoder of maps; returns None for labels and for models without condition.

    Args:
      num_tokens: number of tokens of the transformer.
    """
    section, is_own, name = config.get("cond_stage_config"), True, _class_name(config.get("cond_stage_config"))
    if config.get("unconditional") or name in _WITHOUT_MAP:
        return None
    if name == "CoordStage":
        levels, factor = section["params"]["n_embed"], section["params"]["down_factor"]
        if unknown := section["params"].keys() - {"n_embed", "down_factor"}:
            raise LoadError(f"{path}: CoordStage with {', '.join(sorted(unknown))}; its options are n_embed and down_factor")
        return Coordinates(levels, factor, min(levels + 1, num_tokens))
    if name == "__is_first_stage__":
        section, is_own = config["first_stage_config"], False
    if not isinstance(section, Mapping) or "ddconfig" not in section.get("params", {}):
        known = "labels (Labelator), coordinates (CoordStage), codes of a VQGAN, or none"
        raise LoadError(
            f"{path}: a second stage with the condition {name}; only {known}, are supported. vqgan_jax.load opens its first "
            "stage"
        )
    prefix = "cond_stage_model." if is_own else taming.FIRST_STAGE
    weights = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    dd = section["params"]["ddconfig"]
    channels, dd = dd["in_channels"], dd | {"in_channels": 3, "out_ch": 3}  # here any number of channels is supported
    model = taming.convert_config({**section, "params": section["params"] | {"ddconfig": dd}}, path)
    entries = [entry for entry in taming.build_entries(model) if entry.ours.startswith(_ENCODER)]
    params = from_peer(weights, entries, f"{path}: {prefix}", _NO_ENCODER)
    module = model_lib.build(model)
    variables = {"params": unflatten(params, False)}
    check_shapes(abstract_variables(module, channels, "encode"), variables, f"{path}: {prefix}")
    digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
    hash_arrays(digest, params)
    is_segmentation = _class_name(section) == "VQSegmentationModel"
    return CodedMaps(module, variables, digest.hexdigest(), channels, is_segmentation)


def _class_name(config: Mapping | str | None) -> str:
    """Returns the class name, without module, of a section of a configuration; strings are returned as they are."""
    target = config.get("target", "") if isinstance(config, Mapping) else config
    return str(target).rsplit(".", 1)[-1]


def _num_labels(params: Mapping, path: Path) -> int:
    """Returns the number of labels; 0 for a model without labels."""
    condition = params.get("cond_stage_config")
    name = _class_name(condition)
    if params.get("unconditional") or name in ("SOSProvider", "__is_unconditional__"):
        return 0
    classes = condition["params"]["n_classes"]
    if not (isinstance(classes, int) and classes > 0):
        raise LoadError(f"{path}: n_classes = {classes!r} must be an integer above 0")
    return classes


def _first_token(params: Mapping) -> int:
    """Returns the start token of a model without labels."""
    condition = params.get("cond_stage_config")
    is_provider = _class_name(condition) == "SOSProvider" and isinstance(condition, Mapping)
    provider_params = condition.get("params") if is_provider else None
    return (provider_params or params).get("sos_token", 0)


def _parse_hparams(params: Mapping, path: Path) -> Mapping:
    """Returns the transformer's hyperparameters."""
    for key, supported in (("transformer_config", "GPT"), ("permuter_config", "Identity")):
        if (name := _class_name(params.get(key, {"target": supported}))) not in (supported, "None"):
            raise LoadError(f"{path}: a second stage with {key} {name}; only {supported} is supported")
    if unknown := params.keys() - _OPTIONS:
        known = ", ".join(sorted(_OPTIONS))
        raise LoadError(f"{path}: Net2NetTransformer with {', '.join(sorted(unknown))}; its options are {known}")
    if params.get("pkeep", 1.0) <= 0:
        raise LoadError(f"{path}: pkeep = {params['pkeep']}; only a model that reads its codes, above 0, is supported")
    reduced, name = params.get("downsample_cond_size", -1), _class_name(params.get("cond_stage_config"))
    if type(reduced) is not int or reduced == 0 or (reduced > 0 and name in _WITHOUT_MAP):
        raise LoadError(f"{path}: downsample_cond_size = {reduced!r}; it must be -1, or the side of reduced maps")
    hparams = _DEFAULTS | params["transformer_config"]["params"]
    if unknown := hparams.keys() - _GPT:
        raise LoadError(f"{path}: GPT with {', '.join(sorted(unknown))}; its options are {', '.join(sorted(_GPT))}")
    if hparams["n_unmasked"]:
        raise LoadError(f"{path}: n_unmasked = {hparams['n_unmasked']}; only 0, plain causal attention, is supported")
    return hparams


def _build_entries(hparams: Mapping) -> list[Entry]:
    """Returns the weight table."""
    table = [
        Entry("tokens", ("transformer.tok_emb.weight",)),
        Entry("positions", ("transformer.pos_emb",)),
        Entry("norm/scale", ("transformer.ln_f.weight",)),
        Entry("norm/bias", ("transformer.ln_f.bias",)),
        Entry("head/kernel", ("transformer.head.weight",), "linear"),
    ]
    for i in range(hparams["n_layer"]):
        table += gpt.block(f"transformer/block_{i}", f"transformer.blocks.{i}", hparams["n_head"])
    return table
