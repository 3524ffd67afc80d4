"""minDALL-E's directories (kakaobrain/minDALL-E): `config.yaml`, `stage1_last.ckpt`, `stage2_last.ckpt`, `tokenizer/`.

Stage 1 is a VQGAN with taming's names, stage 2 a GPT over text and codes with a head for each.
"""

from collections.abc import Mapping
from pathlib import Path

from tokenizers.implementations import CharBPETokenizer

from dalle_jax.captions import CharBpeCaptions
from dalle_jax.options import DALLEOptions
from train_jax.errors import LoadError
from train_jax.weights import gpt
from train_jax.weights.layout import Entry, from_peer, nested
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import convert_errors, read_config
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint
from vqgan_jax.vqgan import Vqgan

CONFIG, FIRST, SECOND = "config.yaml", "stage1_last.ckpt", "stage2_last.ckpt"
_VOCAB, _MERGES = "bpe-16k-vocab.json", "bpe-16k-merges.txt"
_PAD, _UNKNOWN = "[PAD]", "[UNK]"
_IGNORED = (r"\.attn\.mask$",)


# kakaobrain's defaults for missing options; its loader refuses other options.
_DEFAULTS = {
    "dataset": {
        "dataset": None, "tokenizer_type": "CharBPE", "context_length": 64, "image_resolution": 256,
        "transforms": "dalle-vqvae", "bpe_pdrop": None,
    },
    "stage1": {
        "type": "vqgan", "embed_dim": 256, "n_embed": 16384,
        "hparams": {
            "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
            "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "pdrop": 0.0,
        },
    },
    "stage2": {
        "type": "transformer1d", "vocab_size_txt": 16384, "vocab_size_img": 16384, "use_cls_cond": None,
        "hparams": {
            "embed_dim": 1536, "n_layers": 42, "n_heads": 24, "n_dense_layers": 42, "ctx_len_img": 256, "ctx_len_txt": 64,
            "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "mlp_bias": True, "attn_bias": True,
            "gelu_use_approx": False, "use_head_txt": True, "n_classes": None,
        },
    },
}  # fmt: skip


def open_directory(path: Path) -> Stage2Checkpoint | None:
    """Opens the model in a folder; None if it is no such folder."""
    if not (path / CONFIG).is_file():
        return None
    config = _read_config(path / CONFIG)
    for name in (FIRST, SECOND):
        if not (path / name).is_file():
            raise LoadError(f"{path} has minDALL-E's {CONFIG}, but no {name}")
    first, second, text_length = config["stage1"], config["stage2"], config["dataset"]["context_length"]
    hparams = second["hparams"]
    with convert_errors(path / CONFIG):
        model = _options(hparams, text_length)
        side = round(hparams["ctx_len_img"] ** 0.5)
        if side**2 != hparams["ctx_len_img"]:
            raise LoadError(f"{path / CONFIG}: ctx_len_img = {hparams['ctx_len_img']} is no square of codes")
        vq = {"n_embed": first["n_embed"], "embed_dim": first["embed_dim"], "ddconfig": first["hparams"]}
        tensors = taming.open_state_dict(path / FIRST)
        stage1 = taming.build_checkpoint({"target": "VQModel", "params": vq}, tensors, path / FIRST)
        entries = _entries(hparams)
        captions = _tokenizer(path / "tokenizer", text_length, second["vocab_size_txt"])
    variables, name = stage1.variables(stage1.module())
    vqgan = Vqgan.assemble(stage1.model, variables, name)

    def read() -> tuple[dict, str]:
        tensors = taming.open_state_dict(path / SECOND)
        return nested(from_peer(tensors, entries, str(path / SECOND), _IGNORED), True), str(path)

    return Stage2Checkpoint(str(path), model, captions, vqgan, side * vqgan.factor, read)


def _read_config(file: Path) -> dict:
    config = read_config(file)
    if not isinstance(config.get("stage1"), dict) or not isinstance(config.get("stage2"), dict):
        raise LoadError(f"{file} is no configuration of minDALL-E: it has no stage1 and stage2")
    config = {part: _completed(_DEFAULTS[part], config.get(part, {}), f"{file}: {part}") for part in _DEFAULTS}
    types = (config["stage1"]["type"], config["stage2"]["type"])
    if types != ("vqgan", "transformer1d"):
        raise LoadError(f"{file}: stages of the types {types}; only vqgan and transformer1d are built here")
    return config


def _completed(defaults: Mapping, stated, where: str) -> dict:
    """Returns the stated options with defaults for the others. Raises LoadError for options unknown to minDALL-E."""
    if not isinstance(stated, Mapping):
        raise LoadError(f"{where} is {stated!r}; it must be a mapping")
    if unknown := stated.keys() - defaults.keys():
        raise LoadError(f"{where} has {', '.join(map(str, unknown))}; minDALL-E knows {', '.join(defaults)}")
    full = {}
    for key, default in defaults.items():
        value = stated.get(key, default)
        if isinstance(default, dict):
            value = _completed(default, stated.get(key, {}), f"{where}.{key}")
        elif default is not None and not isinstance(value, (float, int) if type(default) is float else type(default)):
            raise LoadError(f"{where}.{key} = {value!r}; it must be of the type {type(default).__name__}")
        full[key] = value
    return full


def _options(hparams: Mapping, text_length: int) -> DALLEOptions:
    if hparams["embed_dim"] % hparams["n_heads"]:
        raise LoadError(
            f"stage2.hparams: embed_dim = {hparams['embed_dim']} is no multiple of n_heads = {hparams['n_heads']}"
        )
    dense = hparams["n_dense_layers"]
    if dense != hparams["n_layers"]:
        raise LoadError(
            f"stage2.hparams.n_dense_layers = {dense} of {hparams['n_layers']}; only dense layers are built here"
        )
    for key in ("mlp_bias", "attn_bias"):
        if not hparams[key]:
            raise LoadError(f"stage2.hparams.{key} = {hparams[key]}; only layers with biases are built here")
    options = {
        "text_length": text_length,
        "width": hparams["embed_dim"],
        "depth": hparams["n_layers"],
        "heads": hparams["n_heads"],
        "activation": "quick_gelu" if hparams["gelu_use_approx"] else "gelu",
        "positions": "learned",
        "vocabulary": "separate",
    }
    return DALLEOptions.parse(options, "model")


def _tokenizer(folder: Path, length: int, size: int) -> CharBpeCaptions:
    vocab, merges = folder / _VOCAB, folder / _MERGES
    for file in (vocab, merges):
        if not file.is_file():
            raise LoadError(f"{file} is missing: without it there are no prompts")
    try:
        bpe = CharBPETokenizer.from_file(str(vocab), str(merges), unk_token=_UNKNOWN, lowercase=True)
    except Exception as error:  # the library raises no narrower class
        raise LoadError(f"{vocab} and {merges} are no tokenizer ({error})") from error
    bpe.add_special_tokens([_PAD])
    if bpe.get_vocab_size() > size:
        raise LoadError(f"{folder}: a tokenizer of {bpe.get_vocab_size()} tokens, where the model knows {size}")
    return CharBpeCaptions(bpe._tokenizer, length, size, bpe.token_to_id(_PAD))


def _entries(hparams: Mapping) -> list[Entry]:
    """Returns the table of names."""
    table = [
        Entry("condition/tokens", ("tok_emb_txt.weight",)),
        Entry("codes/tokens", ("tok_emb_img.weight",)),
        Entry("condition/positions", ("pos_emb_txt.weight",)),
        Entry("codes/positions", ("pos_emb_img.weight",)),
        Entry("norm/scale", ("ln_f.weight",)),
        Entry("norm/bias", ("ln_f.bias",)),
        Entry("condition_head/kernel", ("head_txt.weight",), "linear"),
        Entry("head/kernel", ("head_img.weight",), "linear"),
    ]
    for i in range(hparams["n_layers"]):
        table += gpt.block(f"transformer/block_{i}", f"blocks.{i}", hparams["n_heads"])
    return table
