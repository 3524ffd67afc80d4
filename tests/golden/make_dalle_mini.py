"""Makes `tests/golden/vqgan/dalle-mini`: a tiny random VQGAN as dalle-mini's Flax implementation lays it out.

python tests/golden/make_dalle_mini.py

Written from that layout's facts alone (names, order of operations), in plain Flax, with nothing of this project.
"""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_serialize

HERE = Path(__file__).resolve().parent / "vqgan" / "dalle-mini"
CONFIG = {
    "model_type": "vqgan", "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [8], "resolution": 16,
    "z_channels": 4, "n_embed": 24, "embed_dim": 4, "in_channels": 3, "out_ch": 3, "double_z": False, "dropout": 0.0,
    "resamp_with_conv": True, "give_pre_end": False,
}  # fmt: skip


def conv(width, size, name, stride=1, padding="SAME"):
    return nn.Conv(width, (size, size), (stride, stride), padding=padding, name=name)


def norm(name):
    return nn.GroupNorm(32, epsilon=1e-6, name=name)


class Residual(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = conv(self.width, 3, "conv1")(nn.swish(norm("norm1")(x)))
        y = conv(self.width, 3, "conv2")(nn.swish(norm("norm2")(y)))
        return y + (x if x.shape[-1] == self.width else conv(self.width, 1, "nin_shortcut")(x))


class Attend(nn.Module):
    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        y = norm("norm")(x)
        q, k, v = (conv(c, 1, name)(y).reshape(b, h * w, c) for name in "qkv")
        weights = nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) / np.sqrt(c), axis=-1)
        return x + conv(c, 1, "proj_out")(jnp.einsum("bqk,bkc->bqc", weights, v).reshape(b, h, w, c))


class Resize(nn.Module):
    down: bool

    @nn.compact
    def __call__(self, x):
        if self.down:
            return conv(x.shape[-1], 3, "conv", 2, "VALID")(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
        return conv(x.shape[-1], 3, "conv")(x.repeat(2, 1).repeat(2, 2))


class Level(nn.Module):
    width: int
    blocks: int
    attends: bool
    resize: str

    @nn.compact
    def __call__(self, x):
        attention = [Attend(name=f"attn_{i}") for i in range(self.blocks if self.attends else 0)]
        for i in range(self.blocks):
            x = Residual(self.width, name=f"block_{i}")(x)
            for attend in attention:  # all of them, after every block
                x = attend(x)
        return Resize(self.resize == "downsample", name=self.resize)(x) if self.resize else x


class Middle(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = Attend(name="attn_1")(Residual(self.width, name="block_1")(x))
        return Residual(self.width, name="block_2")(x)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(32, 3, "conv_in")(x)
        x = Level(32, 1, False, "downsample", name="down_0")(x)
        x = Level(32, 1, True, "", name="down_1")(x)
        x = Middle(32, name="mid")(x)
        return conv(4, 3, "conv_out")(nn.swish(norm("norm_out")(x)))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Middle(32, name="mid")(conv(32, 3, "conv_in")(x))
        x = Level(32, 2, True, "upsample", name="up_1")(x)
        x = Level(32, 2, False, "", name="up_0")(x)
        return conv(3, 3, "conv_out")(nn.swish(norm("norm_out")(x)))


class Model(nn.Module):
    def setup(self):
        self.encoder, self.decoder = Encoder(), Decoder()
        self.quant_conv, self.post_quant_conv = conv(4, 1, None), conv(4, 1, None)
        self.quantize = Quantize()

    def __call__(self, x):
        z = self.quant_conv(self.encoder(x))
        codes, found = self.quantize(z)
        return z, codes, self.decoder(self.post_quant_conv(found))


class Quantize(nn.Module):
    @nn.compact
    def __call__(self, z):
        table = nn.Embed(24, 4, name="embedding")
        table(jnp.zeros((1,), int))
        points = self.variables["params"]["embedding"]["embedding"]
        codes = jnp.argmin(jnp.sum((z[..., None, :] - points) ** 2, -1), -1)
        return codes, table(codes)


def main() -> None:
    HERE.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(7).integers(0, 256, (2, 16, 32, 3), np.uint8)
    x = images.astype(np.float32) / 255  # pixels in [0, 1]
    params = Model().init(jax.random.key(0), x)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: np.asarray(p + 0.05 * rng.normal(size=p.shape), np.float32), params)
    z = np.asarray(Model().apply({"params": params}, x)[0])
    chosen = z.reshape(-1, 4)[rng.choice(z.size // 4, 24, replace=False)]
    params["quantize"]["embedding"]["embedding"] = chosen + 0.01 * rng.normal(size=(24, 4)).astype(np.float32)
    half = jax.tree.map(lambda p: p.astype(np.float16), params)  # half the size, and as the published ones in float16
    params = jax.tree.map(lambda p: p.astype(np.float32), half)
    z, codes, found = jax.jit(Model().apply)({"params": params}, x)
    assert len(np.unique(codes)) > 8, "too few codes for a test"
    (HERE / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (HERE / "flax_model.msgpack").write_bytes(msgpack_serialize(half))
    np.savez_compressed(
        HERE / "outputs.npz", images=images, latents=z, codes=np.asarray(codes, np.int32),
        reconstructions=2 * np.asarray(found) - 1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
