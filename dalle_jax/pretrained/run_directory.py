"""Run directories, as `train-jax` writes them."""

from pathlib import Path

import jax
import numpy as np

from dalle_jax.captions import Captions
from dalle_jax.pretrained.checkpoint import Checkpoint
from train_jax import run_directory
from train_jax.data.text import Tokenizer
from vqgan_jax.pretrained.checkpoint import describing
from vqgan_jax.vqgan import load as load_vqgan

TOKENIZER, VQGAN = "tokenizer.json", "vqgan.safetensors"  # beside the weights


def open_directory(path: Path, step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint of a run (or that of `step`), averaged weights where there are any; None if it is no run."""
    config = run_directory.open_config(path, "dalle_jax.task", "a DALL·E", (TOKENIZER, VQGAN))
    if config is None:
        return None
    vqgan = load_vqgan(path / VQGAN)

    def read() -> tuple[dict, str]:
        params, _, name = run_directory.load_weights(path, step)
        return jax.tree.map(np.asarray, params["dalle"]), name

    with describing(path):
        tokenizer = Tokenizer.load(path / TOKENIZER, config["model"]["text_length"])
        return Checkpoint(
            name=str(path),
            options=config["model"],
            captions=Captions(tokenizer, guides=config["caption_dropout"] > 0),
            vqgan=vqgan,
            size=config["vqgan"]["size"] or vqgan.size,
            read=read,
        )
