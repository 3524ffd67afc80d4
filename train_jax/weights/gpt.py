"""Weight names of minGPT's blocks (karpathy/minGPT), which taming-transformers and minDALL-E also use."""

from train_jax.weights.layout import Entry


def block(ours: str, theirs: str, heads: int) -> list[Entry]:
    """Returns the conversion table of one `nn_jax.transformer.Block`."""
    qkv = [f"{theirs}.attn.{name}" for name in ("query", "key", "value")]
    return [
        *(
            Entry(f"{ours}/norm{n}/{kind}", (f"{theirs}.ln{n}.{part}",))
            for n in (1, 2)
            for kind, part in (("scale", "weight"), ("bias", "bias"))
        ),
        Entry(f"{ours}/attention/qkv/kernel", tuple(f"{x}.weight" for x in qkv), "qkv", heads),
        Entry(f"{ours}/attention/qkv/bias", tuple(f"{x}.bias" for x in qkv), "qkv_bias", heads),
        Entry(f"{ours}/attention/out/kernel", (f"{theirs}.attn.proj.weight",), "merge_heads", heads),
        Entry(f"{ours}/attention/out/bias", (f"{theirs}.attn.proj.bias",)),
        Entry(f"{ours}/mlp_in/kernel", (f"{theirs}.mlp.0.weight",), "linear"),
        Entry(f"{ours}/mlp_in/bias", (f"{theirs}.mlp.0.bias",)),
        Entry(f"{ours}/mlp_out/kernel", (f"{theirs}.mlp.2.weight",), "linear"),
        Entry(f"{ours}/mlp_out/bias", (f"{theirs}.mlp.2.bias",)),
    ]
