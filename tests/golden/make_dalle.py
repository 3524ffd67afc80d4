"""Makes `tests/golden/dalle/mindalle`: a tiny random model in minDALL-E's layout, and what kakaobrain's own code computes.

python tests/golden/make_dalle.py MINDALLE           (with the `peers` extra, omegaconf and einops)

MINDALLE is a checkout of kakaobrain/mindall-e. Its files run unchanged, its loader included; PyTorch Lightning and CLIP are
stubs. Only its numbers are stored. As in the published `configs/dalle-1.3B.yaml`, `config.yaml` has `stage1` and
`stage2` alone, so the context is the loader's default of 64 tokens.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from stubs import stub
from tokenizers.implementations import CharBPETokenizer

HERE = Path(__file__).resolve().parent / "dalle" / "mindalle"
TEXT, SIDE, WIDTH, HEADS, DEPTH, CODES, SIZE = 64, 4, 16, 2, 2, 24, 32
CORPUS = ["a small red circle above a large blue star", "a photo of a green ring", "something yellow in the top left"]
PROMPTS = ["A red circle", ", ".join(["a blue star below a large green ring in the top left above something"] * 6), ""]


def open_peer(checkout: str):
    """The peer's package."""
    sys.path.insert(0, checkout)
    stub("clip")
    stub("pytorch_lightning", LightningModule=torch.nn.Module)
    # Its dataclasses have dataclasses as defaults, which Python 3.11 allows only where they can be hashed.
    dataclass = dataclasses.dataclass
    dataclasses.dataclass = functools.partial(dataclass, unsafe_hash=True)
    import dalle.models

    dataclasses.dataclass = dataclass
    return dalle


def config(vocab: int) -> dict:
    first = {"double_z": False, "z_channels": 8, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32}
    first |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [SIDE], "pdrop": 0.0}
    second = {"embed_dim": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "n_dense_layers": DEPTH}
    second |= {
        "ctx_len_img": SIDE * SIDE,
        "ctx_len_txt": TEXT,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    second |= {"mlp_bias": True, "attn_bias": True, "gelu_use_approx": False}
    return {
        "stage1": {"type": "vqgan", "embed_dim": 4, "n_embed": CODES, "hparams": first},
        "stage2": {"type": "transformer1d", "vocab_size_txt": vocab, "vocab_size_img": CODES, "hparams": second},
    }


def write_weights(dalle, full_config) -> None:
    """Random ones that float16 holds, such that prompts and positions matter."""
    torch.manual_seed(0)
    model = dalle.models.Dalle(full_config)
    for name, p in model.stage1.named_parameters():
        if "norm" in name or name.endswith("bias"):
            p.data += 0.2 * torch.randn_like(p)
    model.stage1.quantize.embedding.weight.data.normal_()
    for name, p in model.stage2.named_parameters():
        p.data = 0.3 * torch.randn_like(p)
        if "attn.value.weight" in name or "_emb_" in name:
            p.data *= 3
    model.stage2.ln_f.weight.data += 1
    model.stage2.ln_f.bias.data *= 0.1
    for stage in ("stage1", "stage2"):
        state = {name: x.half() for name, x in getattr(model, stage).state_dict().items()}
        torch.save({"state_dict": state, "epoch": 1}, HERE / f"{stage}_last.ckpt")


def main() -> None:
    dalle = open_peer(sys.argv[1])
    from omegaconf import OmegaConf

    (HERE / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer = CharBPETokenizer(unk_token="[UNK]", lowercase=True)
    tokenizer.train_from_iterator(CORPUS, vocab_size=60, min_frequency=1, special_tokens=["[UNK]", "[PAD]"])
    tokenizer.save_model(str(HERE / "tokenizer"), "bpe-16k")
    vocab = tokenizer.get_vocab_size() + 4  # the table may have rows that no token uses
    (HERE / "config.yaml").write_text(yaml.safe_dump(config(vocab), sort_keys=False))
    base = dalle.utils.config.get_base_config()
    write_weights(dalle, OmegaConf.merge(base, OmegaConf.load(HERE / "config.yaml")))

    model = dalle.models.Dalle.from_pretrained(str(HERE)).eval()
    text = torch.tensor([model.tokenizer.encode(prompt).ids for prompt in PROMPTS])
    codes = dalle.utils.sampling(model.stage2, text, top_k=1, is_tqdm=False, use_fp16=False, max_seq_len=SIDE * SIDE)
    positions = dalle.utils.get_positional_encoding
    with torch.no_grad():
        code_logits, text_logits = model.stage2(codes, text, positions(codes), positions(text))
        pictures = torch.clamp(model.stage1.decode_code(codes.view(-1, SIDE, SIDE)) * 0.5 + 0.5, 0, 1)
    np.savez_compressed(
        HERE / "outputs.npz",
        prompts=np.array(PROMPTS),
        text=text.numpy().astype(np.int32),
        codes=codes.numpy().astype(np.int32),
        text_logits=text_logits.numpy(),
        code_logits=code_logits.numpy(),
        pictures=pictures.permute(0, 2, 3, 1).numpy(),
    )


if __name__ == "__main__":
    main()
