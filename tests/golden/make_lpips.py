"""Makes `tests/golden/lpips`: taming-transformers' LPIPS on a narrow VGG16 with random weights, computed by its own code.

python tests/golden/make_lpips.py TAMING           (with the `peers` extra)

TAMING is a checkout of CompVis/taming-transformers. Its `modules/losses/lpips.py` runs unchanged; torchvision, which would
bring the wide VGG16, and the download of weights are stubs. Only its numbers are stored.

last.ckpt     the weights under the names that taming-transformers' checkpoints give them
outputs.npz   pairs of pictures in [-1, 1], their distances, and the gradient of the mean distance
"""

import argparse
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
from stubs import stub
from torch import nn

HERE = Path(__file__).resolve().parent / "lpips"
LAYERS = (2, 2, 3, 3, 3)  # convolutions of a stage of VGG16 (arXiv 1409.1556, table 1, D)
WIDTHS = (4, 6, 8, 8, 8)  # instead of 64 to 512


def narrow_vgg16(pretrained: bool):
    """What `torchvision.models.vgg16` gives, as far as LPIPS looks at it."""
    layers, channels = [], 3
    for count, width in zip(LAYERS, WIDTHS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return types.SimpleNamespace(features=nn.Sequential(*layers))


def model(checkout: str) -> nn.Module:
    stub("torchvision", models=types.SimpleNamespace(vgg16=narrow_vgg16))
    sys.path.insert(0, checkout)
    peer = importlib.import_module("taming.modules.losses.lpips")
    peer.LPIPS.load_from_pretrained = lambda self: None
    torch.manual_seed(0)
    lpips = peer.LPIPS().eval()
    for stage, width in enumerate(WIDTHS):
        setattr(lpips, f"lin{stage}", peer.NetLinLayer(width, use_dropout=True).eval())
    for name, p in lpips.named_parameters():
        p.requires_grad = False
        if p.ndim == 1:
            p.normal_(0, 0.1)
        elif name.startswith("lin"):
            p.uniform_()  # distances are weighed by numbers above 0
        else:
            p.normal_(0, (2 / p[0].numel()) ** 0.5)
    return lpips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("taming", help="a checkout of CompVis/taming-transformers")
    lpips = model(parser.parse_args().taming)
    HERE.mkdir(exist_ok=True)
    a, b = (torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (1, 2))
    a.requires_grad_()
    distances = lpips(a, b).flatten()
    distances.mean().backward()
    arrays = {"a": a.detach(), "b": b, "gradient": a.grad}
    arrays = {name: x.numpy().transpose(0, 2, 3, 1) for name, x in arrays.items()}
    np.savez_compressed(HERE / "outputs.npz", distances=distances.detach().numpy(), **arrays)
    weights = {name: x for name, x in lpips.state_dict().items() if not name.startswith("scaling_layer")}
    torch.save({"state_dict": {f"loss.perceptual_loss.{name}": x for name, x in weights.items()}}, HERE / "last.ckpt")


if __name__ == "__main__":
    main()
