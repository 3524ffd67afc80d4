"""The second stage in taming-transformers' files: a `Net2NetTransformer`'s `.ckpt` with its `.yaml` beside it.

Both stages are in one file. The transformer is minGPT: labels are tokens of the codes' own vocabulary, and a model without
labels begins with one fixed token.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from train_jax.errors import LoadError
from train_jax.weights import gpt
from train_jax.weights.layout import Entry, nested, take
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained import taming

_TARGET = "Net2NetTransformer"
_UNCONDITIONAL = "SOSProvider"
_LABELLED = ("DummyCondStage", "Labelator")
_IGNORED = (r"\.attn\.mask$", r"^first_stage_model\.", r"^cond_stage_model\.")


def open_file(path: Path):
    """`(options of the transformer, its parameters, Checkpoint of the first stage)`; None if it is no such file.

    Raises LoadError for a model that cannot be built here (other conditions than labels), or tensors that are wrong.
    """
    if path.suffix not in (".ckpt", ".pt", ".pth", ".safetensors"):
        return None
    config = taming.read_config(path)
    if not str(config.get("target", "")).endswith(_TARGET):
        return None
    params = config["params"]
    condition = params.get("cond_stage_config", {})
    condition = condition if isinstance(condition, str) else str(condition.get("target", ""))
    free = (
        bool(params.get("unconditional")) or condition.endswith(_UNCONDITIONAL) or condition == "__is_unconditional__"
    )
    if not free and not condition.endswith(_LABELLED):
        raise LoadError(
            f"{path}: a second stage with the condition {condition!r}; only labels, or none, are built here"
        )
    hparams = params["transformer_config"]["params"]
    tensors = open_tensors(path)
    tensors = {name.removeprefix("state_dict."): x for name, x in tensors.items()}
    first = taming.checkpoint(
        params["first_stage_config"],
        {n.removeprefix("first_stage_model."): x for n, x in tensors.items() if n.startswith("first_stage_model.")},
        path,
    )
    codes = first.model["quantizer"]["size"]
    found = take(
        {name: x for name, x in tensors.items() if name.startswith("transformer.")},
        _entries(hparams),
        str(path),
        _IGNORED,
    )
    table, positions = found["tokens"], found.pop("positions")[0]
    # No row for "no label": such a model was never shown one.
    found["conditions"] = table[[params.get("sos_token", 0)]] if free else np.concatenate([table, 0 * table[:1]])
    found["tokens"], found["head/kernel"] = table[:codes], found["head/kernel"][:, :codes]
    options = {
        "classes": 0 if free else len(table),
        "width": hparams["n_embd"],
        "depth": hparams["n_layer"],
        "heads": hparams["n_head"],
        "dropout": float(hparams.get("resid_pdrop", 0.0)),
    }
    return options, nested(found | {"positions": positions}, True), first


def _entries(hparams: Mapping) -> list[Entry]:
    """The table of names."""
    found = [
        Entry("tokens", ("transformer.tok_emb.weight",)),
        Entry("positions", ("transformer.pos_emb",)),
        Entry("norm/scale", ("transformer.ln_f.weight",)),
        Entry("norm/bias", ("transformer.ln_f.bias",)),
        Entry("head/kernel", ("transformer.head.weight",), "linear"),
    ]
    for number in range(hparams["n_layer"]):
        found += gpt.block(f"transformer/block_{number}", f"transformer.blocks.{number}", hparams["n_head"])
    return found
