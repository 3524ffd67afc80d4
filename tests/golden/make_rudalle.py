"""Makes `tests/golden/dalle/rudalle-v2` and `-v3`: tiny random models, and what SberAI's own code computes with them.

python tests/golden/make_rudalle.py RU_DALLE           (with torch, einops and youtokentome)

RU_DALLE is a checkout of ai-forever/ru-dalle, whose model and tokenizer run unchanged. Only numbers are stored.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from stubs import stub

HERE = Path(__file__).resolve().parent / "dalle"
TEXT, SIDE, CODES, VOCABULARY = 12, 8, 24, 120
CORPUS = ["маленький красный круг над большой синей звездой", "фото зелёного кольца, вид сверху", "жёлтый квадрат слева"]
PROMPTS = ["Красный круг", "фото большой синей звезды слева от зелёного кольца, под жёлтым квадратом", ""]
TEXTS = [
    *PROMPTS, "  красный \t круг▁над\nзвездой  ", "ёёёё a blue звезда 星星 круг星", "кольцокольцо", "???", "красный,круг",
    "▁ ▁",
]  # fmt: skip
PARAMS = {
    "num_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "embedding_dropout_prob": 0.1,
    "output_dropout_prob": 0.1, "attention_dropout_prob": 0.1, "image_tokens_per_dim": SIDE, "text_seq_length": TEXT,
    "cogview_sandwich_layernorm": True, "cogview_pb_relax": True, "vocab_size": VOCABULARY, "image_vocab_size": CODES,
}  # fmt: skip


def open_peer(checkout: str):
    """The peer's model and tokenizer, without the package that downloads them."""
    for name in ("rudalle", "rudalle.dalle"):
        stub(name)
        sys.modules[name].__path__ = [str(Path(checkout, *name.split(".")))]
    import huggingface_hub

    huggingface_hub.cached_download = None  # of its time
    return importlib.import_module("rudalle.dalle.model"), importlib.import_module("rudalle.tokenizer")


def main() -> None:
    model_module, tokenizer_module = open_peer(sys.argv[1])
    import youtokentome

    for version in ("v2", "v3"):
        folder = HERE / f"rudalle-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        corpus, bpe = folder / "corpus.txt", str(folder / "bpe.model")
        corpus.write_text("\n".join(CORPUS * 2), "utf-8")
        youtokentome.BPE.train(data=str(corpus), model=bpe, vocab_size=VOCABULARY - TEXT - 4)  # the table may be larger
        corpus.unlink()
        tokenizer = tokenizer_module.get_tokenizer(bpe)
        entry = {"hf_version": version, "filename": "pytorch_model.bin", "model_params": PARAMS, "description": ""}
        (folder / "config.json").write_text(json.dumps(entry, indent=2))

        torch.manual_seed(0)
        model = model_module.DalleModel(device="cpu", hf_version=version, **PARAMS).eval()
        for name, p in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight") or name == "to_logits.0.weight"
            p.data = is_scale + (0.6 if "embeddings" in name else 0.3) * torch.randn_like(p)
        state = {name: x.half() if x.is_floating_point() else x for name, x in model.state_dict().items()}
        torch.save(state, folder / "pytorch_model.bin")
        model.load_state_dict(state)

        text = torch.stack([tokenizer.encode_text(prompt.lower().strip(), TEXT) for prompt in PROMPTS])
        codes, cache = torch.zeros(len(text), 0, dtype=torch.long), None
        length = TEXT + SIDE * SIDE
        mask = torch.tril(torch.ones(len(text), 1, length, length))
        with torch.no_grad():
            for _ in range(SIDE * SIDE):
                logits, cache = model(torch.cat([text, codes], dim=1), mask, use_cache=True, cache=cache)
                codes = torch.cat([codes, logits[:, -1:, VOCABULARY:].argmax(dim=-1)], dim=1)
            logits, _ = model(torch.cat([text, codes], dim=1), mask)
        first = logits.shape[1] - SIDE * SIDE - (version == "v3")  # the position that predicts the first code
        np.savez_compressed(
            folder / "outputs.npz",
            prompts=np.array(PROMPTS),
            codes=codes.numpy().astype(np.int32),
            text_logits=logits[:, :first, :VOCABULARY].numpy(),
            code_logits=logits[:, first : first + SIDE * SIDE, VOCABULARY:].numpy(),
            texts=np.array(TEXTS),
            tokens=np.stack([tokenizer.encode_text(t.lower().strip(), 2 * TEXT).numpy() for t in TEXTS]),
        )
        print(version, logits.shape, len(codes.unique()))


if __name__ == "__main__":
    main()
