"""The second stage in taming-transformers' files: a `Net2NetTransformer`'s `.ckpt` with its `.yaml` beside it.

Both stages are in one file. The transformer is minGPT: labels are tokens of the codes' own vocabulary, and a model without
labels begins with one fixed token.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from train_jax.errors import LoadError
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
    gpt = params["transformer_config"]["params"]
    tensors = open_tensors(path)
    tensors = {name.removeprefix("state_dict."): x for name, x in tensors.items()}
    first = taming.checkpoint(
        params["first_stage_config"],
        {n.removeprefix("first_stage_model."): x for n, x in tensors.items() if n.startswith("first_stage_model.")},
        path,
    )
    codes = first.model["quantizer"]["size"]
    found = take(
        {name: x for name, x in tensors.items() if name.startswith("transformer.")}, _entries(gpt), str(path), _IGNORED
    )
    table, positions = found["tokens"], found.pop("positions")[0]
    # No row for "no label": such a model was never shown one.
    found["conditions"] = table[[params.get("sos_token", 0)]] if free else np.concatenate([table, 0 * table[:1]])
    found["tokens"], found["head/kernel"] = table[:codes], found["head/kernel"][:, :codes]
    options = {
        "classes": 0 if free else len(table),
        "width": gpt["n_embd"],
        "depth": gpt["n_layer"],
        "heads": gpt["n_head"],
        "dropout": float(gpt.get("resid_pdrop", 0.0)),
    }
    return options, nested(found | {"positions": positions}, True), first


def _entries(gpt: Mapping) -> list[Entry]:
    """The table of names."""
    found = [
        Entry("tokens", ("transformer.tok_emb.weight",)),
        Entry("positions", ("transformer.pos_emb",)),
        Entry("norm/scale", ("transformer.ln_f.weight",)),
        Entry("norm/bias", ("transformer.ln_f.bias",)),
        Entry("head/kernel", ("transformer.head.weight",), "linear"),
    ]
    heads = gpt["n_head"]
    for number in range(gpt["n_layer"]):
        ours, theirs = f"transformer/block_{number}", f"transformer.blocks.{number}"
        qkv = [f"{theirs}.attn.{name}" for name in ("query", "key", "value")]
        found += [
            Entry(f"{ours}/norm{n}/{kind}", (f"{theirs}.ln{n}.{part}",))
            for n in (1, 2)
            for kind, part in (("scale", "weight"), ("bias", "bias"))
        ]
        found += [
            Entry(f"{ours}/attention/qkv/kernel", tuple(f"{x}.weight" for x in qkv), "qkv", heads),
            Entry(f"{ours}/attention/qkv/bias", tuple(f"{x}.bias" for x in qkv), "qkv_bias", heads),
            Entry(f"{ours}/attention/out/kernel", (f"{theirs}.attn.proj.weight",), "heads_in", heads),
            Entry(f"{ours}/attention/out/bias", (f"{theirs}.attn.proj.bias",)),
            Entry(f"{ours}/mlp_in/kernel", (f"{theirs}.mlp.0.weight",), "linear"),
            Entry(f"{ours}/mlp_in/bias", (f"{theirs}.mlp.0.bias",)),
            Entry(f"{ours}/mlp_out/kernel", (f"{theirs}.mlp.2.weight",), "linear"),
            Entry(f"{ours}/mlp_out/bias", (f"{theirs}.mlp.2.bias",)),
        ]
    return found
