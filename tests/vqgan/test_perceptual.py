"""Perceptual distances: LPIPS beside PyTorch's figures, and the features of a CLIP of ours."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import clip_jax
from clip_jax.options import CLIPCompute
from clip_jax.vision import VisionTower
from nn_jax.transformer import unstack_blocks
from train_jax.errors import ConfigError
from vqgan_jax import perceptual

LPIPS = Path(__file__).resolve().parent.parent / "golden" / "lpips"
CLIP = Path(__file__).resolve().parent.parent / "golden" / "clip" / "hf-clip"


def opened(**options):
    return perceptual.open_distance(ConfigDict({**perceptual.PerceptualOptions.defaults(), **options}))


@pytest.fixture(scope="module")
def lpips():
    found = opened(type="lpips", path=str(LPIPS / "last.ckpt"))
    return jax.jit(lambda a, b: found.function(found.weights, a, b))


def test_lpips_found_in_a_taming_checkpoint_gives_pytorch_s_distances(lpips):
    with np.load(LPIPS / "outputs.npz") as wanted:
        for a, b, d in zip(wanted["a"], wanted["b"], wanted["distances"], strict=True):
            np.testing.assert_allclose(lpips(a[None], b[None]), d, rtol=1e-5)
        np.testing.assert_allclose(lpips(wanted["a"], wanted["b"]), wanted["distances"].mean(), rtol=1e-5)
        gradient = jax.grad(lpips)(wanted["a"], wanted["b"])
        np.testing.assert_allclose(gradient, wanted["gradient"], atol=1e-5 * np.abs(wanted["gradient"]).max() + 1e-8)


def test_lpips_has_a_gradient_everywhere(lpips):
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)), jnp.float32)
    for a, b in ((x, x), (jnp.zeros_like(x), x), (jnp.zeros_like(x), jnp.zeros_like(x))):
        value, gradient = jax.value_and_grad(lpips)(a, b)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert lpips(x, x) < 1e-12


def test_lpips_lists_what_a_file_lacks(tmp_path):
    with pytest.raises(ConfigError, match="holds no LPIPS: no lin0.model.1.weight among its"):
        opened(type="lpips", path=str(LPIPS.parent / "vqgan" / "diffusers" / "diffusion_pytorch_model.safetensors"))
    np.savez(tmp_path / "part.npz", **{"lin0.model.1.weight": np.zeros((1, 4, 1, 1), np.float32)})
    with pytest.raises(ConfigError, match=r"lacks tensors of LPIPS: net.slice1.0.weight, net.slice1.0.bias"):
        opened(type="lpips", path=str(tmp_path / "part.npz"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"type": "vgg"}, "must be one of none, lpips, clip"),
        ({"type": "lpips"}, "needs config.perceptual.path: weights of LPIPS"),
        ({"type": "clip"}, "needs config.perceptual.path: a CLIP"),
        ({"type": "clip", "path": "nowhere"}, "nowhere: no such file"),
    ],
)
def test_a_distance_is_chosen_and_never_replaced(options, message):
    with pytest.raises(ConfigError, match=message):
        opened(**options)
    assert opened(type="none") is None


def test_clip_s_distance_is_that_of_its_blocks_features(tmp_path):
    shutil.copytree(CLIP, tmp_path / "clip")
    found = opened(type="clip", path=str(tmp_path / "clip"))
    clip = clip_jax.load(tmp_path / "clip")
    size, depth = clip.module.options.image.size, clip.module.options.image.depth
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32) for _ in range(2))
    distance = jax.jit(lambda a, b: found.function(found.weights, a, b))
    assert distance(a, a) < 1e-12 and np.isfinite(jax.grad(distance)(a, a)).all()

    # The same from towers that end after a third and after two thirds of the blocks.
    mean, std = (np.asarray(x, np.float32)[None, None, None] for x in (clip.preprocess.mean, clip.preprocess.std))
    vision = clip.variables["params"]["vision"]

    def after(count, x):
        options = clip.module.options
        image = dataclasses.replace(options.image, depth=count)
        module = VisionTower(
            dataclasses.replace(options, image=image), CLIPCompute(scan=False), dropout=0.0, patch_dropout=0.0
        )
        params = {**vision, "transformer": unstack_blocks(vision["transformer"])}
        x = jnp.asarray(((x + 1) / 2 - mean) / std)
        _, state = module.apply({"params": params}, x, capture_intermediates=lambda part, _: part.name == "transformer")
        found = np.asarray(state["intermediates"]["transformer"]["__call__"][0])
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    counts = sorted({max(1, round(depth / 3)), max(1, round(2 * depth / 3))})
    wanted = np.mean([np.mean(np.sum((after(n, a) - after(n, b)) ** 2, axis=-1)) for n in counts])
    np.testing.assert_allclose(distance(a, b), wanted, rtol=1e-4)
    assert 0 < distance(a, b) <= 4  # squared distance of unit vectors, averaged
    np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-6)
