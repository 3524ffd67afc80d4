"""Makes `tests/golden/lpips`: LPIPS on a narrow VGG16 with random weights, in PyTorch, as its authors wrote it down.

python tests/golden/make_lpips.py           (with the `peers` extra)

last.ckpt     the weights under the names that taming-transformers' checkpoints give them
outputs.npz   pairs of pictures in [-1, 1], their distances, and the gradient of the mean distance
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

HERE = Path(__file__).resolve().parent / "lpips"
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (4, 6, 8, 8, 8)
SHIFT = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
SCALE = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found, channels = {}, 3
    for number, (places, width) in enumerate(zip(SLICES, WIDTHS, strict=True)):
        for place in places:
            name = f"net.slice{number + 1}.{place}"
            found[f"{name}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
            found[f"{name}.bias"] = 0.1 * torch.randn(width)
            channels = width
        found[f"lin{number}.model.1.weight"] = torch.rand(1, width, 1, 1)
    return found


def features(w: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    x, found = (x - SHIFT) / SCALE, []
    for number, places in enumerate(SLICES):
        if number:
            x = functional.max_pool2d(x, 2, 2)
        for place in places:
            name = f"net.slice{number + 1}.{place}"
            x = functional.relu(functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1))
        found.append(x)
    return found


def distance(w, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    total = 0
    for number, (f, g) in enumerate(zip(features(w, a), features(w, b), strict=True)):
        f, g = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (f, g))
        total = total + functional.conv2d((f - g) ** 2, w[f"lin{number}.model.1.weight"]).mean((1, 2, 3))
    return total


def main() -> None:
    HERE.mkdir(exist_ok=True)
    w = weights()
    a, b = (torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (1, 2))
    a.requires_grad_()
    found = distance(w, a, b)
    found.mean().backward()
    arrays = {"a": a.detach(), "b": b, "gradient": a.grad}
    arrays = {name: x.numpy().transpose(0, 2, 3, 1) for name, x in arrays.items()}
    np.savez_compressed(HERE / "outputs.npz", distances=found.detach().numpy(), **arrays)
    torch.save({"state_dict": {f"loss.perceptual_loss.{name}": x for name, x in w.items()}}, HERE / "last.ckpt")


if __name__ == "__main__":
    main()
