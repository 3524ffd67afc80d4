"""A VQGAN and CLIPs that nobody trained, small, and the same for all tests of this folder."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import clip_jax
import vqgan_jax
from clip_jax import model as clip_model
from clip_jax.options import CLIPCompute, CLIPOptions
from train_jax.compute import Compute
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer
from vqgan_jax import model as vqgan_model
from vqgan_jax.model import VQGANOptions

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "star")]


def make_vqgan(quantizer: dict | None = None, dtype: str = "float32") -> "vqgan_jax.Vqgan":
    """16 x 16 pixels to 4 x 4 codes out of 12."""
    options = VQGANOptions.defaults()
    options.update(
        {"channels": 8, "multipliers": (1, 1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4}
    )
    options.quantizer.update(quantizer or {"type": "nearest", "size": 12, "dim": 4})
    options.z_channels = 8
    compute = Compute(dtype=dtype)
    module = vqgan_model.build(options, compute)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(module.init)(keys, jnp.zeros((1, 16, 16, 3)))
    variables = jax.tree.map(lambda x: 3 * np.asarray(x), nn.unbox(variables))  # so that pictures differ in their codes
    if "codebook" in variables["params"].get("quantizer", {}):
        points = np.random.default_rng(0).standard_normal(variables["params"]["quantizer"]["codebook"].shape)
        variables["params"]["quantizer"]["codebook"] = points.astype(np.float32)
    return vqgan_jax.Vqgan.assemble(options, variables, "untrained", compute)


def make_clip(seed: int = 0, size: int = 8, dtype: str = "float32") -> "clip_jax.Clip":
    """Sees 8 x 8 pixels, in 4 patches."""
    tokenizer = Tokenizer.train(CAPTIONS, 600, 16)
    options = CLIPOptions.defaults()
    options.update(
        {
            "embed_dim": 8,
            "image": {"size": size, "patch": 4, "width": 8, "depth": 1, "heads": 2},
            "text": {"context_length": 16, "width": 8, "depth": 1, "heads": 2},
        }
    )
    module = clip_model.build(options, tokenizer.vocab_size, tokenizer.eos_id, CLIPCompute(scan=False, dtype=dtype))
    images, ids = np.zeros((1, size, size, 3), np.float32), tokenizer.encode(CAPTIONS[:1])
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(seed), images, ids))
    return clip_jax.Clip.assemble(module, variables, tokenizer, Preprocess(size), f"untrained, seed {seed}")


def on_one_device(model):
    """The model on the first device only: programs for one are quick to compile."""
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    variables = jax.tree.map(np.asarray, model.variables)
    return dataclasses.replace(model, variables=jax.device_put(variables, NamedSharding(mesh, P())))


@pytest.fixture(scope="session")
def alone():
    """The function that puts a model on one device."""
    return on_one_device


@pytest.fixture(scope="session")
def everywhere():
    """VQGAN and CLIP on all devices."""
    return make_vqgan(), make_clip()


@pytest.fixture(scope="session")
def vq(everywhere):
    return on_one_device(everywhere[0])


@pytest.fixture(scope="session")
def clip(everywhere):
    return on_one_device(everywhere[1])


@pytest.fixture(scope="session")
def other_clip():
    """Of another seed, and of another resolution."""
    return on_one_device(make_clip(1, 12))


@pytest.fixture(scope="session")
def short():
    """VQGAN and CLIP that compute in bfloat16, on one device."""
    return on_one_device(make_vqgan(dtype="bfloat16")), on_one_device(make_clip(dtype="bfloat16"))


@pytest.fixture(scope="session")
def new_vqgan():
    """The function that makes such models."""
    return make_vqgan
