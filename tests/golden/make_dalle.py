"""Makes `tests/golden/dalle/mindalle`: a tiny random model in minDALL-E's layout, with what PyTorch says it computes.

python tests/golden/make_dalle.py           (with the `peers` extra)

Stage 1 is a VQGAN of diffusers under taming's names; stage 2 is written down in PyTorch from minDALL-E's description: text
and codes have tables, positions and heads of their own, and go through minGPT's blocks as one causal stream.
"""

from pathlib import Path

import numpy as np
import torch
import yaml
from make_vqgan import SIZE, block_shapes, blocks, make, taming_names
from tokenizers.implementations import CharBPETokenizer

HERE = Path(__file__).resolve().parent / "dalle" / "mindalle"
TEXT, SIDE, WIDTH, HEADS, DEPTH, CODES = 10, 4, 16, 2, 2, 24
CORPUS = ["a small red circle above a large blue star", "a photo of a green ring", "something yellow in the top left"]
PROMPTS = ["A red circle", "a blue star below a large green ring in the top left above something", ""]


def main() -> None:
    (HERE / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer = CharBPETokenizer(unk_token="[UNK]", lowercase=True)
    tokenizer.train_from_iterator(CORPUS, vocab_size=60, min_frequency=1, special_tokens=["[UNK]", "[PAD]"])
    tokenizer.save_model(str(HERE / "tokenizer"), "bpe-16k")
    tokenizer = CharBPETokenizer.from_file(
        str(HERE / "tokenizer" / "bpe-16k-vocab.json"),
        str(HERE / "tokenizer" / "bpe-16k-merges.txt"),
        unk_token="[UNK]",
        lowercase=True,
    )
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.enable_padding(length=TEXT, pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    tokenizer.enable_truncation(max_length=TEXT)
    text = np.array([tokenizer.encode(prompt).ids for prompt in PROMPTS])
    vocab = tokenizer.get_vocab_size() + 4  # the table may have rows that no token uses

    options = {"norm_num_groups": 32, "block_out_channels": (32, 32, 32, 32), "num_vq_embeddings": CODES}
    options["down_block_types"] = ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",)
    options["up_block_types"] = ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3
    first = make(**options).half().float()
    weights = {name: x.half() for name, x in taming_names(first).items()}
    torch.save({"state_dict": weights, "epoch": 1}, HERE / "stage1_last.ckpt")

    generator = torch.Generator().manual_seed(5)
    shapes = {"tok_emb_txt.weight": (vocab, WIDTH), "tok_emb_img.weight": (CODES, WIDTH)}
    shapes |= {"pos_emb_txt.weight": (TEXT, WIDTH), "pos_emb_img.weight": (SIDE * SIDE, WIDTH)}
    shapes |= {"head_txt.weight": (vocab, WIDTH), "head_img.weight": (CODES, WIDTH)} | block_shapes(WIDTH, DEPTH)
    gpt = {n: (0.3 * torch.randn(s, generator=generator)).half().float() for n, s in shapes.items()}
    # So that prompts and places matter, and not only the last norm's bias.
    gpt |= {"ln_f.weight": 1 + gpt["ln_f.weight"], "ln_f.bias": 0.1 * gpt["ln_f.bias"]}
    gpt |= {n: 3 * gpt[n] for n in gpt if "attn.value.weight" in n or "_emb_" in n}
    gpt = {n: x.half().float() for n, x in gpt.items()}
    state = {n: x.half() for n, x in gpt.items()}
    state |= {f"blocks.{i}.attn.mask": torch.ones(1, 1, 4, 4) for i in range(DEPTH)}
    torch.save({"state_dict": state, "epoch": 1}, HERE / "stage2_last.ckpt")

    def stream(text: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        x = gpt["tok_emb_txt.weight"][text] + gpt["pos_emb_txt.weight"]
        y = gpt["tok_emb_img.weight"][codes] + gpt["pos_emb_img.weight"][: codes.shape[1]]
        return blocks(gpt, torch.cat([x, y], 1), DEPTH, HEADS)

    ids = torch.from_numpy(text)
    codes = torch.zeros((len(text), 0), dtype=torch.long)
    with torch.no_grad():
        for _ in range(SIDE * SIDE):
            last = stream(ids, codes)[:, -1] @ gpt["head_img.weight"].T
            codes = torch.cat([codes, last.argmax(1)[:, None]], 1)
        hidden = stream(ids, codes[:, :-1])
        grid = codes.reshape(-1, SIDE, SIDE)
        pictures = first.decode(first.quantize.embedding(grid).permute(0, 3, 1, 2), force_not_quantize=True).sample
    np.savez_compressed(
        HERE / "outputs.npz",
        prompts=np.array(PROMPTS),
        text=text.astype(np.int32),
        codes=codes.numpy().astype(np.int32),
        text_logits=(hidden[:, : TEXT - 1] @ gpt["head_txt.weight"].T).numpy(),
        code_logits=(hidden[:, TEXT - 1 :] @ gpt["head_img.weight"].T).numpy(),
        pictures=(pictures.permute(0, 2, 3, 1).clamp(-1, 1) / 2 + 0.5).numpy(),
    )
    hparams = {"double_z": False, "z_channels": 8, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32}
    hparams |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [SIDE], "pdrop": 0.0}
    second = {
        "embed_dim": WIDTH,
        "n_layers": DEPTH,
        "n_heads": HEADS,
        "n_dense_layers": DEPTH,
        "ctx_len_img": SIDE * SIDE,
    }
    second |= {"ctx_len_txt": TEXT, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "mlp_bias": True}
    second |= {"attn_bias": True, "gelu_use_approx": False}
    config = {
        "dataset": {"dataset": None, "context_length": TEXT, "image_resolution": SIZE, "tokenizer_type": "bpe16k"},
        "stage1": {"type": "vqgan", "embed_dim": 4, "n_embed": CODES, "hparams": hparams},
        "stage2": {"type": "transformer1d", "vocab_size_txt": vocab, "vocab_size_img": CODES, "hparams": second},
    }
    (HERE / "config.yaml").write_text(yaml.safe_dump(config))
    (HERE / "tokenizer" / "README").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
