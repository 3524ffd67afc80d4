"""Checkpoints of taming-transformers' second stage, `Net2NetTransformer`: a `.ckpt` and a `.yaml`.

Both stages are in one file. The transformer is minGPT: labels and codes share a vocabulary, and models without labels start
sequences with a fixed token.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from train_jax.errors import LoadError
from train_jax.weights import gpt
from train_jax.weights.layout import Entry, from_peer, unflatten
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import convert_errors
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.model import CodeTransformerOptions

_IGNORED = (r"\.attn\.mask$",)
_DEFAULTS = {"n_layer": 12, "n_head": 8, "n_embd": 256, "n_unmasked": 0, "resid_pdrop": 0.0}  # defaults of GPT


def open_file(path: Path) -> Stage2Checkpoint | None:
    """Opens the second stage in a file, with its first stage; returns None for other files.

    Raises LoadError for unsupported models (conditions other than labels), and for missing or mismatched tensors.
    """
    if path.suffix not in taming.SUFFIXES:
        return None
    config = taming.read_model_config(path)
    if _class_name(config) != "Net2NetTransformer":
        return None
    with convert_errors(path):
        return _open(config["params"], path)


def _open(config: Mapping, path: Path) -> Stage2Checkpoint:
    classes, hparams, tensors = _num_labels(config, path), _parse_hparams(config, path), taming.open_state_dict(path)
    first = taming.build_checkpoint(config["first_stage_config"], taming.extract_first_stage(tensors), path)
    transformer = {name: x for name, x in tensors.items() if name.startswith("transformer.")}
    params = from_peer(transformer, _build_entries(hparams), str(path), _IGNORED)
    table, positions, num_codes = params.pop("tokens"), params.pop("positions")[0], first.model["quantizer"]["size"]
    for key, size in (("vocab_size", len(table)), ("block_size", len(positions))):
        if hparams.get(key, size) != size:
            raise LoadError(f"{path}: {key} = {hparams[key]!r}, where the weights have {size}")
    if not max(classes, num_codes) <= len(table):
        raise LoadError(
            f"{path}: {len(table)} tokens are too few for {num_codes} codes and {classes} labels, which share them"
        )
    side = round(len(positions) ** 0.5)
    if side * side != len(positions):
        raise LoadError(f"{path}: {len(positions)} positions do not form a square grid of codes")
    # The embedding of "no label" is zero, because the model was not trained without labels.
    labels = np.concatenate([table[:classes], 0 * table[:1]]) if classes else table[[_first_token(config)]]
    # Position 0 belongs to the condition. The last code is never an input, so taming has no position for it.
    params |= {
        "condition/tokens": labels,
        "condition/positions": positions[:1],
        "codes/tokens": table[:num_codes],
        "codes/positions": np.concatenate([positions[1:], 0 * positions[:1]]),
        "head/kernel": params["head/kernel"][:, :num_codes],
    }
    sizes = {"width": hparams["n_embd"], "depth": hparams["n_layer"], "heads": hparams["n_head"]}
    options = CodeTransformerOptions.parse(sizes, "model")
    condition = ClassCondition(classes, droppable=not classes)
    tree = unflatten(params, True)
    size = side * first.module().factor
    return Stage2Checkpoint(str(path), options, condition, first, size, lambda: (tree, str(path)))


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
    if name != "Labelator":
        raise LoadError(
            f"{path}: a second stage with the condition {name}; only labels (Labelator), or none, are supported. "
            "vqgan_jax.load opens its first stage"
        )
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
    hparams = _DEFAULTS | params["transformer_config"]["params"]
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
