"""minDALL-E's directories (kakaobrain/minDALL-E): `config.yaml`, `stage1_last.ckpt`, `stage2_last.ckpt`, `tokenizer/`.

Stage 1 is a VQGAN with taming's names, stage 2 a GPT over text and codes with a head for each.
"""

from collections.abc import Mapping
from pathlib import Path

from tokenizers.implementations import CharBPETokenizer

from dalle_jax.captions import CharBpe
from dalle_jax.pretrained.checkpoint import Checkpoint
from train_jax.errors import LoadError
from train_jax.weights import gpt
from train_jax.weights.layout import Entry, nested, take
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained import taming
from vqgan_jax.vqgan import Vqgan
from vqgan_jax.vqgan import options as vqgan_options

CONFIG, FIRST, SECOND = "config.yaml", "stage1_last.ckpt", "stage2_last.ckpt"
_VOCAB, _MERGES = "bpe-16k-vocab.json", "bpe-16k-merges.txt"
_PAD, _UNKNOWN = "[PAD]", "[UNK]"
_IGNORED = (r"\.attn\.mask$",)


def open_directory(path: Path) -> Checkpoint | None:
    """The model in a folder; None if it is no such folder."""
    if not (path / CONFIG).is_file():
        return None
    config = _read_config(path / CONFIG)
    for name in (FIRST, SECOND):
        if not (path / name).is_file():
            raise LoadError(f"{path} has minDALL-E's {CONFIG}, but no {name}")
    try:
        first, second = config["stage1"], config["stage2"]
        hparams, text_length = second["hparams"], config["dataset"]["context_length"]
        model = _options(hparams, text_length)
        side = round(hparams["ctx_len_img"] ** 0.5)
        vq = {"target": "VQModel", "params": {"n_embed": first["n_embed"], "embed_dim": first["embed_dim"]}}
        vq["params"]["ddconfig"] = {"attn_resolutions": [], **first["hparams"]}
        vq_model = taming.options(vq, path / CONFIG)
    except KeyError as error:
        raise LoadError(f"{path / CONFIG} does not say {error}, which minDALL-E's configuration does") from error
    factor = 2 ** (len(vq_model["multipliers"]) - 1)
    if side**2 != hparams["ctx_len_img"]:
        raise LoadError(f"{path / CONFIG}: stage2.hparams.ctx_len_img = {hparams['ctx_len_img']} is no square of codes")
    tensors = _tensors(path / FIRST)
    found = taming.checkpoint(vq, tensors, path / FIRST)
    variables, name = found.variables(found.module())
    vqgan = Vqgan.assemble(vqgan_options(vq_model), variables, name)

    def read() -> tuple[dict, str]:
        entries = _entries(hparams)
        return nested(take(_tensors(path / SECOND), entries, str(path / SECOND), _IGNORED), True), str(path)

    captions = _tokenizer(path / "tokenizer", text_length, second["vocab_size_txt"])
    return Checkpoint(str(path), model, captions, vqgan, side * factor, read)


def _read_config(file: Path) -> dict:
    import yaml

    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise LoadError(f"{file} is not YAML: {error}") from error
    parts = ("stage1", "stage2", "dataset")
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in parts):
        raise LoadError(f"{file} is no configuration of minDALL-E: it has no stage1, stage2 and dataset")
    kinds = (config["stage1"].get("type", "vqgan"), config["stage2"].get("type", "transformer1d"))
    if kinds != ("vqgan", "transformer1d"):
        raise LoadError(f"{file}: stages of the types {kinds}; only vqgan and transformer1d are built here")
    return config


def _options(hparams: Mapping, text_length: int) -> dict:
    if hparams["embed_dim"] % hparams["n_heads"]:
        raise LoadError(
            f"stage2.hparams: embed_dim = {hparams['embed_dim']} is no multiple of n_heads = {hparams['n_heads']}"
        )
    dense = hparams.get("n_dense_layers", hparams["n_layers"])
    if dense != hparams["n_layers"]:
        raise LoadError(
            f"stage2.hparams.n_dense_layers = {dense} of {hparams['n_layers']}; only dense layers are built here"
        )
    for key in ("mlp_bias", "attn_bias"):
        if not hparams.get(key, True):
            raise LoadError(f"stage2.hparams.{key} = False; only layers with biases are built here")
    return {
        "text_length": text_length,
        "width": hparams["embed_dim"],
        "depth": hparams["n_layers"],
        "heads": hparams["n_heads"],
        "activation": "quick_gelu" if hparams.get("gelu_use_approx") else "gelu",
        "dropout": float(hparams.get("resid_pdrop", 0.0)),
        "positions": "learned",
        "vocabulary": "separate",
    }


def _tensors(file: Path) -> dict:
    tensors = open_tensors(file)
    inside = {name.removeprefix("state_dict."): x for name, x in tensors.items() if name.startswith("state_dict.")}
    return inside or dict(tensors)


def _tokenizer(folder: Path, length: int, size: int) -> CharBpe:
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
    return CharBpe(bpe._tokenizer, length, size, bpe.token_to_id(_PAD))


def _entries(hparams: Mapping) -> list[Entry]:
    """The table of names."""
    found = [
        Entry("text_tokens", ("tok_emb_txt.weight",)),
        Entry("tokens", ("tok_emb_img.weight",)),
        Entry("text_positions", ("pos_emb_txt.weight",)),
        Entry("positions", ("pos_emb_img.weight",)),
        Entry("norm/scale", ("ln_f.weight",)),
        Entry("norm/bias", ("ln_f.bias",)),
        Entry("text_head/kernel", ("head_txt.weight",), "linear"),
        Entry("head/kernel", ("head_img.weight",), "linear"),
    ]
    for number in range(hparams["n_layers"]):
        found += gpt.block(f"transformer/block_{number}", f"blocks.{number}", hparams["n_heads"])
    return found
