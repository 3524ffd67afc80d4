"""Placeholders for files and data that are not present: a plan and a benchmark of a config need shapes alone."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train_jax.data.text import Tokenizer


def make_record(**fields: Any) -> dict[str, Any]:
    """Makes a record with a grey image, a caption and the label 0, as data sources return them, and other `fields`."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, "PNG")
    return {"id": "0", "image": buffer.getvalue(), "captions": ["a placeholder"], "label": 0, **fields}


def write_tokenizer(path: Path, vocab_size: int) -> str:
    """Trains a BPE tokenizer on random words and writes it. Returns the path."""
    words = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (20_000, 8)).astype(np.uint8)
    path.write_text(Tokenizer.train((bytes(word).decode() for word in words), vocab_size).to_json())
    return str(path)
