"""Makes `tests/golden/vqgan/llamagen-prior` and `-groups`: tiny random class-conditional models, and their own outputs.

python tests/golden/make_llamagen.py LLAMAGEN           (with torch)

LLAMAGEN is a checkout of FoundationVision/LlamaGen, whose model and sampler run unchanged. Their VQGAN is
`tests/golden/vqgan/dalle-mini`. Only numbers are stored.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent / "vqgan"
CODES, SIDE, CLASSES, GUIDANCE = 24, 4, 5, 3.0
ARGS = {
    "dim": 32, "n_layer": 2, "n_head": 4, "multiple_of": 8, "num_classes": CLASSES, "vocab_size": CODES,
    "block_size": SIDE * SIDE, "model_type": "c2i", "cls_token_num": 1,
}  # fmt: skip
MODELS = {"llamagen-prior": {}, "llamagen-prior-groups": {"n_kv_head": 2, "ffn_dim_multiplier": 1.3}}


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    torch.backends.cuda.sdp_kernel = lambda **_: contextlib.nullcontext()  # the name in the PyTorch of its time
    from autoregressive.models.generate import generate
    from autoregressive.models.gpt import ModelArgs, Transformer

    for name, changes in MODELS.items():
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(ARGS | changes, indent=2))
        torch.manual_seed(0)
        model = Transformer(ModelArgs(**ARGS | changes)).eval()
        for key, p in model.named_parameters():
            p.data = ("norm" in key) + (0.8 if "embed" in key else 0.25) * torch.randn_like(p)
        state = {key: x.half() for key, x in model.state_dict().items()}
        torch.save({"model": state, "steps": 3}, folder / "weights.pt")
        model.load_state_dict(state)
        labels = torch.tensor([3, 0, 4])
        codes = torch.randint(CODES, (3, SIDE * SIDE))
        with torch.no_grad():
            outputs = {"labels": labels, "codes": codes, "logits": model(codes, labels)[0][:, :-1]}
            outputs["logits_without_label"] = model(codes, torch.full_like(labels, CLASSES))[0][:, :-1]
            if name == "llamagen-prior":  # the peer's cache has no groups
                options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": False}
                outputs["greedy"] = generate(model, labels, SIDE * SIDE, **options)
                outputs["guided"] = generate(model, labels, SIDE * SIDE, cfg_scale=GUIDANCE, **options)
        np.savez_compressed(folder / "outputs.npz", guidance=GUIDANCE, **{k: x.numpy() for k, x in outputs.items()})
        print({k: tuple(x.shape) for k, x in outputs.items()})


if __name__ == "__main__":
    main()
