"""Makes `tests/golden/vqgan/maskgit`: a tiny random tokenizer in the format of MaskGIT's checkpoints, and its outputs.

python tests/golden/make_maskgit.py MASKGIT

MASKGIT is a checkout of google-research/maskgit. Its files run unchanged. Only their numbers are stored.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from flax.serialization import to_bytes
from ml_collections import ConfigDict

HERE = Path(__file__).resolve().parent / "vqgan" / "maskgit"
SIZE = 32


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from maskgit.configs import vqgan_config
    from maskgit.nets.vqgan_tokenizer import VQVAE

    config = ConfigDict(vqgan_config.get_config())
    config.vqvae.update({"codebook_size": 24, "filters": 32, "num_res_blocks": 1, "channel_multipliers": [2, 1]})
    config.vqvae.embedding_dim = 4
    model, rng = VQVAE(config=config, train=False), np.random.default_rng(7)
    images = rng.integers(0, 256, (2, SIZE, 2 * SIZE, 3), np.uint8)
    x = images.astype(np.float32) / 255
    shapes = jax.eval_shape(lambda key: model.init(key, {"image": x}, method=VQVAE.encode), jax.random.key(0))
    decoder = jax.eval_shape(
        lambda key: model.init(key, np.zeros((1, 4, 4, 4), np.float32), method=VQVAE.decode), jax.random.key(0)
    )
    variables = jax.tree_util.tree_map_with_path(draw, {"params": {**shapes["params"], **decoder["params"]}})
    latents = model.apply(variables, x, method=lambda m, x: m.encoder(x))
    flat = np.asarray(latents).reshape(-1, 4)
    book = flat[rng.choice(len(flat), 24, replace=False)] + 0.05 * rng.standard_normal((24, 4))
    variables["params"]["quantizer"]["codebook"] = book.astype(np.float16).astype(np.float32)
    codes = model.apply(variables, {"image": x}, method=VQVAE.encode_to_indices)
    pixels = model.apply(variables, codes, method=VQVAE.decode_from_indices)
    assert len(np.unique(codes)) > 8
    HERE.mkdir(parents=True, exist_ok=True)
    half = jax.tree.map(lambda w: np.asarray(w, np.float16), variables)
    (HERE / "tokenizer_imagenet256_checkpoint").write_bytes(to_bytes(half))
    outputs = {"latents": latents, "codes": np.asarray(codes, np.int32), "reconstructions": 2 * pixels - 1}
    np.savez_compressed(HERE / "outputs.npz", images=images, **outputs)


def draw(path, x) -> np.ndarray:
    """A random weight that float16 holds."""
    rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
    noise = rng.standard_normal(x.shape).astype(np.float32)
    name = path[-1].key
    value = {"scale": 1 + 0.2 * noise, "bias": 0.2 * noise}.get(name, noise * np.prod(x.shape[:-1]) ** -0.5)
    return value.astype(np.float16).astype(np.float32)


if __name__ == "__main__":
    main(sys.argv[1])
