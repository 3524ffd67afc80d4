"""A folder of tiny runs of all models, as `multimodal-jax serve` opens one."""

import contextlib
from pathlib import Path

import pytest

import clip_jax
import train_jax
from clip_jax import search
from multimodal_jax.serve.models import Models
from multimodal_jax.serve.runs import find_runs
from tests import tiny_runs
from tests.shared_run import on_one_device

_TRANSFORMER = {"width": 16, "depth": 1, "heads": 2}


def train_all(folder: Path) -> None:
    """Trains `folder/runs/{clip,vqgan,dalle,unclip/prior,unclip/decoder}` and makes `runs/index`, of `folder/pictures`."""
    with contextlib.chdir(folder):
        runs = Path("runs")
        clip, vqgan = tiny_runs.config("clip"), tiny_runs.config("vqgan")
        dalle = tiny_runs.base_config("dalle_jax.task", vqgan={"path": "runs/vqgan"}, tokenizer={"vocab_size": 560})
        dalle.model = {"text_length": 12, **_TRANSFORMER}
        artifacts = {"clip": {"path": "runs/clip"}, "prior": {"path": "runs/unclip/prior"}}
        prior = tiny_runs.base_config("dalle_jax.unclip.prior_task", clip=artifacts["clip"], compute={"scan": False})
        prior.model = _TRANSFORMER
        decoder = tiny_runs.base_config("dalle_jax.unclip.decoder_task", **artifacts)
        unet = {"size": 8, "channels": (8,), "blocks": 1, "groups": 4, "attention": (0,), "head_dim": 4}
        unet |= {"context_dim": 8, "image_tokens": 1}
        decoder.model = unet
        for name, config in (("clip", clip), ("vqgan", vqgan), ("dalle", dalle), ("unclip/prior", prior)):
            train_jax.run(config, runs / name)
        train_jax.run(decoder, runs / "unclip/decoder")
        search.build(clip_jax.load(runs / "clip"), "pictures", runs / "index", model=runs / "clip", progress=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder with `pictures` and `runs`."""
    folder = tmp_path_factory.mktemp("multimodal")
    with on_one_device():
        train_all(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(folder) -> Models:
    """The models, each loaded and compiled once for all tests."""
    with contextlib.chdir(folder):
        return Models(find_runs("runs"))


@pytest.fixture
def models(loaded, folder, monkeypatch) -> Models:
    """The models, whose paths are relative to the current folder."""
    monkeypatch.chdir(folder)
    return loaded
