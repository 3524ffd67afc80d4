"""Small, untrained VQGANs and CLIPs, the same for all tests of this folder.

Most of these tests' time is compilation. Paintings of one kind share a program: those of two parts, 8 cuts and few
augmentations, made step by step on one device.
"""

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
from vqgan_jax.guided import prior
from vqgan_jax.model import VQGANOptions
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2 import model as stage2_model
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.generator import CodeGenerator

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "star")]


def random_variables(module: nn.Module, *inputs, gain: float = 1.0, seed: int = 0) -> dict:
    """Variables of a module, drawn by NumPy: nothing is compiled.

    Args:
      gain: of kernels, whose variance is gain^2 / fan-in; that of embeddings is 1.
    """
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = nn.unbox(jax.eval_shape(module.init, keys, *inputs))
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        name = path[-1].key
        if name in ("scale", "bias"):
            return np.full(x.shape, float(name == "scale"), np.float32)
        deviation = gain / np.sqrt(np.prod(x.shape[:-1])) if name == "kernel" else 1
        return (deviation * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def make_vqgan(dtype: str = "float32") -> "vqgan_jax.Vqgan":
    """16 x 16 pixels to 4 x 4 codes out of 12."""
    options = VQGANOptions.defaults()
    options.update(
        {"channels": 8, "multipliers": (1, 1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4}
    )
    options.quantizer.update({"type": "nearest", "size": 12, "dim": 4})
    options.z_channels = 8
    compute = Compute(dtype=dtype)
    variables = random_variables(vqgan_model.build(options, compute), jnp.zeros((1, 16, 16, 3)))
    return vqgan_jax.Vqgan.assemble(options, variables, "untrained", compute)


def make_clip(seed: int = 0, size: int = 8, dtype: str = "float32") -> "clip_jax.Clip":
    """A CLIP for images of `size` x `size` pixels, in patches of 4 x 4."""
    tokenizer = Tokenizer.train(CAPTIONS, 600, 16)
    options = CLIPOptions.defaults()
    options.update(
        {
            "embed_dim": 8,
            "image": {"size": size, "patch": 4, "width": 8, "depth": 1, "heads": 2},
            "text": {"context_length": 16, "width": 8, "depth": 1, "heads": 2},
        }
    )
    module = clip_model.build(options, tokenizer.vocab_size, tokenizer.eos_id, CLIPCompute(dtype=dtype))
    images, ids = np.zeros((1, size, size, 3), np.float32), tokenizer.encode(CAPTIONS[:1])
    variables = random_variables(module, images, ids, gain=2.0, seed=seed)
    return clip_jax.Clip.assemble(module, variables, tokenizer, Preprocess(size), f"untrained, seed {seed}")


def on_one_device(model):
    """The model on the first device only: programs for one are quick to compile."""
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    variables = jax.tree.map(np.asarray, model.variables)
    return dataclasses.replace(model, variables=jax.device_put(variables, NamedSharding(mesh, P())))


@pytest.fixture(scope="session")
def to_one_device():
    """The function that puts a model on one device."""
    return on_one_device


@pytest.fixture(scope="session")
def models_on_all_devices():
    """VQGAN and CLIP, replicated on the eight devices."""
    return make_vqgan(), make_clip()


@pytest.fixture(scope="session")
def vq(models_on_all_devices):
    return on_one_device(models_on_all_devices[0])


@pytest.fixture(scope="session")
def clip(models_on_all_devices):
    return on_one_device(models_on_all_devices[1])


@pytest.fixture(scope="session")
def other_clip():
    """A CLIP of another seed and resolution."""
    return on_one_device(make_clip(1, 12))


@pytest.fixture(scope="session")
def bfloat16_models():
    """VQGAN and CLIP that compute in bfloat16, on one device."""
    return on_one_device(make_vqgan(dtype="bfloat16")), on_one_device(make_clip(dtype="bfloat16"))


class Texts(ClassCondition):
    """Two texts as condition, each one token."""

    kind = "text"
    texts = ("a red star", "a blue moon")

    def encode(self, conditions):
        return super().encode([self.texts.index(text) if text else None for text in conditions])

    def seed(self, condition):
        return super().seed(self.texts.index(condition))


@pytest.fixture(scope="module")
def second_stage(vq) -> CodeGenerator:
    """An untrained transformer of the VQGAN's 4 x 4 codes."""
    settings, condition = PriorOptions(width=8, depth=1, heads=2), Texts(2)
    module = stage2_model.build(settings, condition, vq.num_codes, (4, 4))
    tokens, codes = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 16), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens, codes)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    return on_one_device(CodeGenerator.assemble(settings, params, condition, vq, 16, "untrained"))


@pytest.fixture(scope="module")
def codes_prior(second_stage) -> prior.Prior:
    return prior.Prior(second_stage.module, second_stage.condition, second_stage.variables, second_stage.fingerprint)


@pytest.fixture
def loaded(codes_prior, monkeypatch) -> None:
    """Loads the second stage as the prior of any path."""
    monkeypatch.setattr(prior, "load", lambda path, vq, size: codes_prior)
