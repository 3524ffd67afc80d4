"""Makes `tests/golden/vqgan/dalle-mini`: a tiny random VQGAN, written and run by the Flax code that dalle-mini uses.

python tests/golden/make_dalle_mini.py VQGAN_JAX           (with transformers 4, which still has Flax)

VQGAN_JAX is a checkout of patil-suraj/vqgan-jax. Its files run unchanged. Only its numbers are stored.
"""

import sys
from pathlib import Path

import jax
import numpy as np

HERE = Path(__file__).resolve().parent / "vqgan" / "dalle-mini"
SIZE = 16


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from vqgan_jax.configuration_vqgan import VQGANConfig
    from vqgan_jax.modeling_flax_vqgan import VQModel

    config = VQGANConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(SIZE // 2,), resolution=SIZE, z_channels=4, n_embed=24,
        embed_dim=4,
    )  # fmt: skip
    images = np.random.default_rng(7).integers(0, 256, (2, SIZE, 2 * SIZE, 3), np.uint8)
    x = images.astype(np.float32) / 255  # pixels in [0, 1]
    model = VQModel(config, input_shape=(1, SIZE, SIZE, 3))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: np.asarray(p + 0.05 * rng.normal(size=p.shape), np.float16), model.params)
    float32 = jax.tree.map(lambda p: p.astype(np.float32), params)

    def latents(module, pixels):
        return module.quant_conv(module.encoder(pixels))

    z = np.asarray(model.module.apply({"params": float32}, x, method=latents))
    chosen = z.reshape(-1, 4)[rng.choice(z.size // 4, 24, replace=False)]
    table = (chosen + 0.01 * rng.normal(size=(24, 4))).astype(np.float16)
    params["quantize"]["embedding"]["embedding"] = table
    float32["quantize"]["embedding"]["embedding"] = table.astype(np.float32)
    reconstructions, codes = model(x, params=float32)
    codes = np.asarray(codes, np.int32).reshape(z.shape[:3])
    assert len(np.unique(codes)) > 8, "too few codes for a test"
    HERE.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(HERE, params=params)
    np.savez_compressed(
        HERE / "outputs.npz", images=images, latents=z, codes=codes, reconstructions=2 * np.asarray(reconstructions) - 1
    )


if __name__ == "__main__":
    main()
