"""Which pictures fit which texts, by a CLIP."""

import numpy as np
import pytest

import clip_jax
from train_jax.errors import LoadError
from vqgan_jax.stage2 import rerank


class Colours(clip_jax.Clip):
    """A stand-in: pictures are their mean colour, texts the unit vector of red, green or blue."""

    def __init__(self):
        pass

    def encode_image(self, images):
        means = images.mean((1, 2)).astype(np.float32)
        return means / np.linalg.norm(means, axis=-1, keepdims=True)

    def encode_text(self, texts):
        return np.eye(3, dtype=np.float32)[[("red", "green", "blue").index(text) for text in texts]]


def test_a_score_is_the_cosine_of_a_picture_and_its_own_text():
    images = np.random.default_rng(0).integers(1, 256, (2, 4, 8, 8, 3), np.uint8)
    scores = rerank.clip_scores(Colours(), ["blue", "red"], images)
    means = images.mean((2, 3))
    expected = means[[0, 1], :, [2, 0]] / np.linalg.norm(means, axis=-1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_reranker_is_a_clip_or_the_path_of_one(monkeypatch):
    clip = Colours()
    assert rerank.open_reranker(clip, "float32") is clip
    with pytest.raises(TypeError, match="rerank = 3: it must be a CLIP, the path of a CLIP, or 'likelihood'"):
        rerank.open_reranker(3, "auto")
    with pytest.raises(LoadError, match="no such file"):
        rerank.open_reranker("nowhere", "auto")
    monkeypatch.setattr(rerank.clip_jax, "load", lambda path, dtype: {"bfloat16": clip}[dtype])
    assert rerank.open_reranker("somewhere", "bfloat16") is clip
