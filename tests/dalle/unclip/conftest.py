"""The tiny random unCLIP that diffusers saved, and what diffusers computes with it (`tests/golden/make_unclip.py`)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dalle_jax.unclip.pretrained import open_checkpoint
from train_jax.compute import TransformerCompute

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
