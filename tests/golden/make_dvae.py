"""Makes `tests/golden/vqgan/dvae`: a tiny random dVAE, built, run and pickled whole by OpenAI's own code.

python tests/golden/make_dvae.py DALLE           (with the `peers` extra, attrs and requests)

DALLE is a checkout of openai/DALL-E. Its files run unchanged. Only its numbers are stored.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

HERE = Path(__file__).resolve().parent / "vqgan" / "dvae"
HIDDEN, START, CODES = 8, 6, 30


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import dall_e

    torch.manual_seed(0)
    encoder = dall_e.Encoder(n_hid=HIDDEN, vocab_size=CODES).eval()
    decoder = dall_e.Decoder(n_init=START, n_hid=HIDDEN, vocab_size=CODES).eval()
    for coder in (encoder, decoder):
        for name, p in coder.named_parameters():
            p.data = 2**0.5 * p.data if name.endswith("w") else 0.2 * torch.randn_like(p)
    images = np.random.default_rng(7).integers(0, 256, (2, 32, 64, 3), np.uint8)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.no_grad():
        x = dall_e.map_pixels(x)
        encoder.blocks.output.conv.b -= encoder(x).mean((0, 2, 3))  # as many codes as can be
        logits = encoder(x)
        codes = logits.argmax(1)
        statistics = decoder(functional.one_hot(codes, CODES).permute(0, 3, 1, 2).float())
        reconstructions = dall_e.unmap_pixels(torch.sigmoid(statistics[:, :3]))
    assert len(codes.unique()) > 8, "too few codes for a test"
    HERE.mkdir(parents=True, exist_ok=True)
    torch.save(encoder, HERE / "encoder.pkl")
    torch.save(decoder, HERE / "decoder.pkl")
    np.savez_compressed(
        HERE / "outputs.npz", images=images, latents=logits.numpy().transpose(0, 2, 3, 1),
        codes=codes.numpy().astype(np.int32), reconstructions=2 * reconstructions.numpy().transpose(0, 2, 3, 1) - 1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
