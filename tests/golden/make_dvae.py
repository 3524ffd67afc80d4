"""Makes `tests/golden/vqgan/dvae`: a tiny random dVAE, pickled whole by PyTorch as OpenAI's files are.

python tests/golden/make_dvae.py           (with the `peers` extra)

The classes are written down here from the published description, and stand in modules of the names that the files mention.
"""

import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent / "vqgan" / "dvae"
HIDDEN, START, CODES, BLOCKS = 8, 6, 30, 2
EPS = 0.1


class Conv2d(nn.Module):
    def __init__(self, n_in, n_out, size):
        super().__init__()
        self.device = torch.device("cpu")
        self.w = nn.Parameter(torch.randn(n_out, n_in, size, size) * (2 / (n_in * size**2)) ** 0.5)
        self.b = nn.Parameter(0.2 * torch.randn(n_out))

    def forward(self, x):
        return functional.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class _Block(nn.Module):
    sizes = ()

    def __init__(self, n_in, n_out):
        super().__init__()
        widths = [n_in, *(n_out // 4,) * 3, n_out]
        self.post_gain = 1 / (4 * BLOCKS) ** 2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        path = OrderedDict()
        for i, size in enumerate(self.sizes, 1):
            path[f"relu_{i}"] = nn.ReLU()
            path[f"conv_{i}"] = Conv2d(widths[i - 1], widths[i], size)
        self.res_path = nn.Sequential(path)

    def forward(self, x):
        return self.id_path(x) + self.post_gain * self.res_path(x)


class EncoderBlock(_Block):
    sizes = (3, 3, 3, 1)


class DecoderBlock(_Block):
    sizes = (1, 3, 3, 3)


class _Coder(nn.Module):
    def forward(self, x):
        return self.blocks(x)


def groups(block, widths, between):
    found = []
    for g in range(4):
        parts = OrderedDict()
        for i in range(BLOCKS):
            parts[f"block_{i + 1}"] = block(widths[g] if i == 0 else widths[g + 1], widths[g + 1])
        if g < 3:
            parts["pool" if isinstance(between, nn.MaxPool2d) else "upsample"] = between
        found.append((f"group_{g + 1}", nn.Sequential(parts)))
    return found


class Encoder(_Coder):
    def __init__(self):
        super().__init__()
        middle = groups(EncoderBlock, [HIDDEN, HIDDEN, 2 * HIDDEN, 4 * HIDDEN, 8 * HIDDEN], nn.MaxPool2d(2))
        out = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(8 * HIDDEN, CODES, 1)))
        self.blocks = nn.Sequential(OrderedDict([("input", Conv2d(3, HIDDEN, 7)), *middle, ("output", out)]))


class Decoder(_Coder):
    def __init__(self):
        super().__init__()
        widths = [START, 8 * HIDDEN, 4 * HIDDEN, 2 * HIDDEN, HIDDEN]
        middle = groups(DecoderBlock, widths, nn.Upsample(scale_factor=2, mode="nearest"))
        out = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(HIDDEN, 6, 1)))
        self.blocks = nn.Sequential(OrderedDict([("input", Conv2d(CODES, START, 1)), *middle, ("output", out)]))


def main() -> None:
    HERE.mkdir(parents=True, exist_ok=True)
    sys.modules["dall_e"] = types.ModuleType("dall_e")
    places = {"encoder": (Encoder, EncoderBlock), "decoder": (Decoder, DecoderBlock), "utils": (Conv2d,)}
    for name, classes in places.items():
        sys.modules[f"dall_e.{name}"] = module = types.ModuleType(f"dall_e.{name}")
        for item in classes:
            item.__module__ = module.__name__
            setattr(module, item.__name__, item)
    torch.manual_seed(0)
    encoder, decoder = Encoder().eval(), Decoder().eval()
    images = np.random.default_rng(7).integers(0, 256, (2, 32, 64, 3), np.uint8)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.no_grad():
        x = (1 - 2 * EPS) * x + EPS
        encoder.blocks.output.conv.b -= encoder(x).mean((0, 2, 3))  # as many codes as can be
        logits = encoder(x)
        codes = logits.argmax(1)
        found = decoder(functional.one_hot(codes, CODES).permute(0, 3, 1, 2).float())[:, :3].sigmoid()
        found = ((found - EPS) / (1 - 2 * EPS)).clamp(0, 1)
    assert len(codes.unique()) > 8, "too few codes for a test"
    torch.save(encoder, HERE / "encoder.pkl")
    torch.save(decoder, HERE / "decoder.pkl")
    np.savez_compressed(
        HERE / "outputs.npz", images=images, latents=logits.numpy().transpose(0, 2, 3, 1),
        codes=codes.numpy().astype(np.int32), reconstructions=2 * found.numpy().transpose(0, 2, 3, 1) - 1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
