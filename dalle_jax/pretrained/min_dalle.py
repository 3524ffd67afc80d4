"""Directories of minDALL-E (kakaobrain): `config.yaml`, `stage1_last.ckpt`, `stage2_last.ckpt`, `tokenizer/`.

Stage 1 is a VQGAN with the parameter names of taming-transformers; stage 2 is a GPT with a text head and a code head.
"""

from collections.abc import Mapping
from pathlib import Path

from tokenizers.implementations import CharBPETokenizer

from dalle_jax.captions import SubwordCaptions
from dalle_jax.options import DALLEOptions
from train_jax.errors import LoadError
from train_jax.weights import gpt
from train_jax.weights.layout import Entry, from_peer, unflatten
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import convert_errors, read_config
from vqgan_jax.stage2.checkpoint import Stage2Checkpoint

CONFIG, STAGE1, STAGE2 = "config.yaml", "stage1_last.ckpt", "stage2_last.ckpt"
_VOCAB, _MERGES = "bpe-16k-vocab.json", "bpe-16k-merges.txt"
_PAD, _UNKNOWN = "[PAD]", "[UNK]"
_IGNORED = (r"\.attn\.mask$",)


# minDALL-E's defaults for missing options; its loader rejects unknown options.
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
    """Opens a directory of minDALL-E. Returns None if it has no `config.yaml`."""
    if not (path / CONFIG).is_file():
        return None
    config = _read_config(path / CONFIG)
    for name in (STAGE1, STAGE2):
        if not (path / name).is_file():
            raise LoadError(f"{path} has minDALL-E's {CONFIG}, but no {name}")
    stage1_config, stage2_config, text_length = config["stage1"], config["stage2"], config["dataset"]["context_length"]
    hparams = stage2_config["hparams"]
    with convert_errors(path / CONFIG):
        model = _convert_options(hparams, text_length)
        side = round(hparams["ctx_len_img"] ** 0.5)
        if side**2 != hparams["ctx_len_img"]:
            raise LoadError(f"{path / CONFIG}: ctx_len_img = {hparams['ctx_len_img']} is not a square number")
        vq = {
            "n_embed": stage1_config["n_embed"],
            "embed_dim": stage1_config["embed_dim"],
            "ddconfig": stage1_config["hparams"],
        }
        tensors = taming.open_state_dict(path / STAGE1)
        stage1 = taming.build_checkpoint({"target": "VQModel", "params": vq}, tensors, path / STAGE1)
        if stage1_config["n_embed"] != stage2_config["vocab_size_img"]:
            sizes = f"stage1.n_embed = {stage1_config['n_embed']}, stage2.vocab_size_img = {stage2_config['vocab_size_img']}"
            raise LoadError(f"{path / CONFIG}: {sizes}; the codes of both stages must be the same")
        entries = _list_entries(hparams)
        captions = _open_tokenizer(path / "tokenizer", text_length, stage2_config["vocab_size_txt"])

    def read() -> tuple[dict, str]:
        tensors = taming.open_state_dict(path / STAGE2)
        return unflatten(from_peer(tensors, entries, str(path / STAGE2), _IGNORED), True), str(path)

    return Stage2Checkpoint(str(path), model, captions, stage1, side * stage1.module().factor, read)


def _read_config(file: Path) -> dict:
    config = read_config(file)
    if not isinstance(config.get("stage1"), dict) or not isinstance(config.get("stage2"), dict):
        raise LoadError(f"{file} is not a configuration of minDALL-E: it has no stage1 and stage2")
    config = {part: _fill_defaults(_DEFAULTS[part], config.get(part, {}), f"{file}: {part}") for part in _DEFAULTS}
    types = (config["stage1"]["type"], config["stage2"]["type"])
    if types != ("vqgan", "transformer1d"):
        raise LoadError(f"{file}: stages of the types {types}; only vqgan and transformer1d are supported")
    return config


def _fill_defaults(defaults: Mapping, stated, location: str) -> dict:
    """Fills in defaults for missing options. Raises LoadError for options that minDALL-E does not have."""
    if not isinstance(stated, Mapping):
        raise LoadError(f"{location} is {stated!r}; it must be a mapping")
    if unknown := stated.keys() - defaults.keys():
        raise LoadError(f"{location} has {', '.join(map(str, unknown))}; minDALL-E's options are {', '.join(defaults)}")
    completed = {}
    for key, default in defaults.items():
        value = stated.get(key, default)
        if isinstance(default, dict):
            value = _fill_defaults(default, stated.get(key, {}), f"{location}.{key}")
        elif default is not None and not isinstance(value, (float, int) if type(default) is float else type(default)):
            raise LoadError(f"{location}.{key} = {value!r}; it must be of the type {type(default).__name__}")
        completed[key] = value
    return completed


def _convert_options(hparams: Mapping, text_length: int) -> DALLEOptions:
    if hparams["embed_dim"] % hparams["n_heads"]:
        raise LoadError(
            f"stage2.hparams: embed_dim = {hparams['embed_dim']} is not a multiple of n_heads = {hparams['n_heads']}"
        )
    num_dense = hparams["n_dense_layers"]
    if num_dense != hparams["n_layers"]:
        raise LoadError(
            f"stage2.hparams.n_dense_layers = {num_dense} of {hparams['n_layers']}; only dense layers are supported"
        )
    for key in ("mlp_bias", "attn_bias"):
        if not hparams[key]:
            raise LoadError(f"stage2.hparams.{key} = {hparams[key]}; only layers with biases are supported")
    if hparams["ctx_len_txt"] != text_length:
        raise LoadError(
            f"stage2.hparams.ctx_len_txt = {hparams['ctx_len_txt']}, dataset.context_length = {text_length}: both are the "
            "length of condition/positions"
        )
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


def _open_tokenizer(folder: Path, length: int, size: int) -> SubwordCaptions:
    vocab, merges = folder / _VOCAB, folder / _MERGES
    for file in (vocab, merges):
        if not file.is_file():
            raise LoadError(f"{file} is missing: prompts cannot be tokenized")
    try:
        bpe = CharBPETokenizer.from_file(str(vocab), str(merges), unk_token=_UNKNOWN, lowercase=True)
    except Exception as error:  # tokenizers raises plain Exception
        raise LoadError(f"{vocab} and {merges} are not a tokenizer ({error})") from error
    bpe.add_special_tokens([_PAD])
    if bpe.get_vocab_size() > size:
        raise LoadError(f"{folder}: a tokenizer of {bpe.get_vocab_size()} tokens, but the model has {size}")
    return SubwordCaptions(bpe._tokenizer, length, size, bpe.token_to_id(_PAD))


def _list_entries(hparams: Mapping) -> list[Entry]:
    """Lists the parameters with their names in minDALL-E."""
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
