"""Makes `tests/golden/vqgan/llamagen-prior` and `-groups`, of classes, and `tests/golden/dalle/llamagen-t2i`, of features of
texts: tiny random models, and their own outputs.

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

HERE = Path(__file__).resolve().parent
CODES, SIDE, CLASSES, GUIDANCE = 24, 4, 5, 3.0
GREEDY = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": False}
ARGS = {
    "dim": 32, "n_layer": 2, "n_head": 4, "multiple_of": 8, "num_classes": CLASSES, "vocab_size": CODES,
    "block_size": SIDE * SIDE, "model_type": "c2i", "cls_token_num": 1,
}  # fmt: skip
TEXTS = {"model_type": "t2i", "cls_token_num": 120, "caption_dim": 12}
MODELS = {
    "vqgan/llamagen-prior": {}, "vqgan/llamagen-prior-groups": {"n_kv_head": 2, "ffn_dim_multiplier": 1.3},
    "dalle/llamagen-t2i": TEXTS,
}  # fmt: skip


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
        if name == "dalle/llamagen-t2i":
            outputs = of_features(model, codes[:2], generate)
        else:
            outputs = of_labels(model, codes, labels, generate, has_cache=name == "vqgan/llamagen-prior")
        np.savez_compressed(folder / "outputs.npz", guidance=GUIDANCE, **{k: x.numpy() for k, x in outputs.items()})
        print({k: tuple(x.shape) for k, x in outputs.items()})


@torch.no_grad()
def of_labels(model, codes, labels, generate, has_cache: bool) -> dict:
    outputs = {"labels": labels, "codes": codes, "logits": model(codes, labels)[0][:, :-1]}
    outputs["logits_without_label"] = model(codes, torch.full_like(labels, CLASSES))[0][:, :-1]
    if has_cache:  # the peer's cache has no groups
        outputs["greedy"] = generate(model, labels, SIDE * SIDE, **GREEDY)
        outputs["guided"] = generate(model, labels, SIDE * SIDE, cfg_scale=GUIDANCE, **GREEDY)
    return outputs


@torch.no_grad()
def of_features(model, codes, generate) -> dict:
    """Of two texts, of 90 and of 4 tokens; features and mask as LlamaGen's samplers shift them to the end."""
    length, count = TEXTS["cls_token_num"], SIDE * SIDE
    features, mask = torch.randn(2, length, TEXTS["caption_dim"]), torch.zeros(2, length)
    mask[0, -90:], mask[1, -4:] = 1, 1
    features *= mask[..., None]
    attention = torch.tril(torch.ones(length + count, length + count)).repeat(2, 1, 1)
    attention[:, :, :length] *= mask[:, None]
    attention = torch.maximum(attention, torch.eye(length + count)[None]).bool()[:, None]
    outputs = {"features": features, "mask": mask, "codes": codes}
    null = torch.zeros_like(features) + model.cls_embedding.uncond_embedding
    for key, condition in (("logits", features), ("logits_without_text", null)):
        outputs[key] = model(codes, condition, mask=attention)[0][:, length - 1 : -1]
    outputs["greedy"] = generate(model, features, count, mask, **GREEDY)
    outputs["guided"] = generate(model, features, count, mask, cfg_scale=GUIDANCE, **GREEDY)
    return outputs


if __name__ == "__main__":
    main()
