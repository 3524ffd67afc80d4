"""The tiny random unCLIP that diffusers saved, and what diffusers computes with it (`tests/golden/make_unclip.py`).

And short runs of the tasks, on digits and an untrained CLIP.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import clip_jax
from clip_jax import model as clip_model
from clip_jax.clip import Clip
from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.pretrained.checkpoint import abstract_variables
from dalle_jax.unclip.pretrained import open_checkpoint
from tests.shared_run import on_one_device, train_once
from train_jax.compute import TransformerCompute
from train_jax.data.images import Preprocess
from train_jax.data.text import Tokenizer
from train_jax.datasets import digits

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "unclip"


@pytest.fixture(scope="session")
def karlo():
    return open_checkpoint(GOLDEN / "karlo")


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN / "karlo" / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def text(golden):
    """The arguments `text_embedding, text_states, text_mask` of the rows [empty text, empty text, prompts]."""
    return tuple(golden[name] for name in ("text_embedding", "text_states", "text_mask"))


@pytest.fixture(scope="session")
def apply(karlo):
    """`apply(part, *inputs)`: the output of a part of the tiny model, by one compiled program for each shape."""
    programs = {}

    def run(part: str, *inputs, method: str | None = None):
        if part not in programs:
            params, module = karlo.params(part, TransformerCompute()), karlo.module(part, TransformerCompute())
            programs[part] = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs, method=method))
        return programs[part](*inputs)

    return run


SIZE = 16
CLIP_MODEL = {
    "embed_dim": 12,
    "image": {"size": SIZE, "patch": 8, "width": 16, "depth": 1, "heads": 2},
    "text": {"context_length": 10, "width": 16, "depth": 1, "heads": 2},
}


def assemble_clip() -> Clip:
    """An untrained CLIP of digits, whose embeddings differ much."""
    captions = [f"{words} {name}" for words in ("the digit", "a handwritten") for name in digits.LABEL_NAMES]
    tokenizer = Tokenizer.train(captions, 560, CLIP_MODEL["text"]["context_length"])
    options = CLIPOptions.defaults()
    options.update(CLIP_MODEL)
    module = clip_model.build(options, tokenizer.vocab_size, tokenizer.eos_id, CLIPCompute(scan=False))
    return Clip.assemble(module, draw_variables(module), tokenizer, Preprocess(SIZE), "untrained")


def draw_variables(module: clip_model.CLIP) -> dict:
    """Random weights of a CLIP."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        return float(path[-1].key == "scale") + 0.3 * rng.standard_normal(x.shape, np.float32)

    return jax.tree.map_with_path(draw, abstract_variables(module))


@pytest.fixture(scope="session")
def karlo_clip(karlo) -> Clip:
    """A CLIP with the text tower of the tiny karlo, and an image tower of random weights."""
    options, tokenizer = karlo.text.options, karlo.text.tokenizer
    image = dataclasses.replace(options.image, **CLIP_MODEL["image"])
    options = dataclasses.replace(options, image=image)
    module = clip_model.build(options, tokenizer.vocab_size, tokenizer.eos_id, CLIPCompute(scan=False))
    variables = draw_variables(module)
    variables["params"]["text"] = karlo.params("text_encoder", TransformerCompute(scan=False))
    return Clip.assemble(module, variables, tokenizer, Preprocess(SIZE), "of the tiny karlo")


def save_clip(folder: Path) -> None:
    (folder / "clip.safetensors").unlink(missing_ok=True)
    clip_jax.save(assemble_clip(), folder / "clip.safetensors")


def base_config(folder: Path, task: str) -> ConfigDict:
    c = ConfigDict({"task": f"dalle_jax.unclip.{task}", "steps": 4, "log_every": 1})
    c.data = {"source": "digits", "split": "train[:200]", "batch_size": 8, "data_dir": str(folder / "data")}
    c.checkpoint = {"every": 2, "keep_last": 2}
    c.optim = {"lr": 1e-2}
    c.ema = {"decay": 0.5}
    return c


def prior_config(folder: Path) -> ConfigDict:
    """Four updates of a tiny prior, with the CLIP and the data set in `folder`."""
    c = base_config(folder, "prior_task")
    c.clip = {"path": str(folder / "clip.safetensors")}
    c.embeddings = {"dir": str(folder / "embeddings")}
    c.model = {"width": 16, "depth": 1, "heads": 2}
    c.compute = {"scan": False}
    c.evals = {"test": {"type": "embeddings", "split": "test[:50]", "examples": 20, "steps": 3, "guidance": 2.0}}
    return c


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run of the prior; the same for all test workers."""
    return train_once(tmp_path_factory, "unclip-prior", prior_config, save_clip)


@pytest.fixture(scope="session")
def tiny_autoregressive_prior(tmp_path_factory, tiny_prior) -> tuple[ConfigDict, Path]:
    """The same of an autoregressive prior."""

    def autoregressive_config(folder: Path) -> ConfigDict:
        c = prior_config(tiny_prior[1].parent)
        c.model.update({"type": "autoregressive", "components": 5, "buckets": 16})
        return c

    return train_once(tmp_path_factory, "unclip-autoregressive-prior", autoregressive_config)


@pytest.fixture(scope="session")
def clip(tiny_prior) -> Clip:
    return clip_jax.load(tiny_prior[0].clip.path)


# One level: compiling U-Nets is what these tests cost. Those of several levels: test_networks.py.
UNET = {"size": 8, "channels": (8,), "blocks": 1, "groups": 4}
DECODER = UNET | {"attention": (0,), "head_dim": 4, "context_dim": 12, "image_tokens": 2}
EIGHT = {"split": "train[:8]", "batch_size": 8}


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory, tiny_prior) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run of a decoder, with the prior of `tiny_prior`."""

    def decoder_config(folder: Path) -> ConfigDict:
        c = base_config(folder, "decoder_task")
        c.steps, c.checkpoint = 40, {"every": 30, "keep_last": 2}
        c.data = EIGHT | {"source": "digits", "data_dir": tiny_prior[0].data.data_dir}
        c.clip = {"path": tiny_prior[0].clip.path}
        c.embeddings = {"dir": tiny_prior[0].embeddings.dir}
        c.prior = {"path": str(tiny_prior[1])}
        c.model = DECODER
        shared = {"split": "test[:50]", "steps": 3, "batch_size": 8}  # of one program for both
        c.evals = {
            "draw": shared | {"type": "drawing", "template": "the digit {}", "prompts": 8, "prior_steps": 3},
            "back": shared | {"type": "reconstruction", "examples": 20},
        }
        return c

    with on_one_device():
        return train_once(tmp_path_factory, "unclip-decoder", decoder_config)


@pytest.fixture(scope="session")
def tiny_upsampler(tmp_path_factory, tiny_prior) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run of an upsampler, from 8 to 16 pixels."""

    def upsampler_config(folder: Path) -> ConfigDict:
        c = base_config(folder, "upsampler_task")
        c.steps, c.checkpoint = 40, {"every": 30, "keep_last": 2}
        c.data = EIGHT | {"source": "digits", "data_dir": tiny_prior[0].data.data_dir}
        c.model, c.factor = UNET | {"size": 16}, 2
        c.evals = {"test": {"type": "upsampling", "split": "test[:20]", "steps": 3, "batch_size": 8}}
        return c

    with on_one_device():
        return train_once(tmp_path_factory, "unclip-upsampler", upsampler_config)
