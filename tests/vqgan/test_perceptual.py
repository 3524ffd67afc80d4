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
from nn_jax.convolution import convolve
from nn_jax.transformer import unstack_blocks
from train_jax.errors import ConfigError
from vqgan_jax import perceptual

LPIPS = Path(__file__).resolve().parent.parent / "golden" / "lpips"
CLIP = Path(__file__).resolve().parent.parent / "golden" / "clip" / "hf-clip"


def open_distance(**options):
    return perceptual.open_distance(ConfigDict({**perceptual.PerceptualOptions.defaults(), **options}))


@pytest.fixture(scope="module")
def lpips():
    lpips = open_distance(type="lpips", path=str(LPIPS / "last.ckpt"))
    return jax.jit(lambda a, b: lpips.function(lpips.weights, a, b))


def test_lpips_of_a_taming_checkpoint_has_pytorch_s_distances(lpips):
    with np.load(LPIPS / "outputs.npz") as outputs:
        a, b, distances = (outputs[name] for name in ("a", "b", "distances"))
        for x, y, expected in zip(a, b, distances, strict=True):
            np.testing.assert_allclose(lpips(x[None], y[None]), expected, rtol=1e-5)
        value, gradient = jax.value_and_grad(lpips)(a, b)
        np.testing.assert_allclose(value, distances.mean(), rtol=1e-5)
        scale = np.abs(outputs["gradient"]).max()
        np.testing.assert_allclose(gradient, outputs["gradient"], atol=1e-5 * scale + 1e-8)


def test_lpips_in_bfloat16_compares_features_in_float32(lpips, monkeypatch):
    """As a float32 network whose activations and kernels are rounded: ReLUs and maxima near a tie flip in both."""
    distance = open_distance(type="lpips", path=str(LPIPS / "last.ckpt"))
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32) for _ in range(2))

    def value_and_gradient(dtype):
        return jax.jit(jax.value_and_grad(lambda a: distance.function(distance.weights, a, b, dtype)))(a)

    exact, (value, gradient) = value_and_gradient("float32"), value_and_gradient("bfloat16")
    assert value.dtype == gradient.dtype == jnp.float32 and value != exact[0]

    def rounded(x):
        return jax.lax.reduce_precision(x, 8, 7)

    def rounded_convolution(x, kernel, *options):
        return rounded(convolve(rounded(x), rounded(jnp.asarray(kernel)), *options))

    relu = jax.nn.relu
    monkeypatch.setattr(perceptual, "convolve", rounded_convolution)
    monkeypatch.setattr(jax.nn, "relu", lambda x: relu(rounded(x)))
    expected, rounded_gradient = value_and_gradient("float32")
    np.testing.assert_allclose(value, expected, rtol=2e-3)
    distances = [float(jnp.linalg.norm(g - exact[1])) for g in (gradient, rounded_gradient)]
    assert distances[0] < 1.3 * distances[1] < 0.4 * float(jnp.linalg.norm(exact[1]))


def test_lpips_has_one_backward_pass_and_no_gradient_of_kernels(lpips):
    """A gradient costs three passes of VGG: images, references, and the images' backward pass."""
    x = jnp.zeros((2, 32, 32, 3))
    lowered = [jax.jit(f).trace(x, x).lower(lowering_platforms=("cuda",)) for f in (lpips, jax.grad(lpips))]
    assert [program.as_text().count("stablehlo.convolution") for program in lowered] == [2 * 13, 3 * 13]


def test_lpips_has_a_gradient_everywhere(lpips):
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)), jnp.float32)
    for a, b in ((x, x), (jnp.zeros_like(x), x), (jnp.zeros_like(x), jnp.zeros_like(x))):
        value, gradient = jax.value_and_grad(lpips)(a, b)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert lpips(x, x) < 1e-12


def test_lpips_lists_what_a_file_lacks(tmp_path):
    with pytest.raises(ConfigError, match="holds no LPIPS: no lin0.model.1.weight among its"):
        open_distance(type="lpips", path=str(LPIPS.parent / "vqgan" / "diffusers" / "diffusion_pytorch_model.safetensors"))
    np.savez(tmp_path / "part.npz", **{"lin0.model.1.weight": np.zeros((1, 4, 1, 1), np.float32)})
    with pytest.raises(ConfigError, match=r"lacks tensors of LPIPS: net.slice1.0.weight, net.slice1.0.bias"):
        open_distance(type="lpips", path=str(tmp_path / "part.npz"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"type": "vgg"}, "must be one of none, lpips, clip"),
        ({"type": "lpips"}, "needs config.perceptual.path: weights of LPIPS"),
        ({"type": "clip"}, "needs config.perceptual.path: a CLIP"),
        ({"type": "clip", "path": "nowhere"}, "nowhere: no such file"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        open_distance(**options)
    assert open_distance(type="none") is None


def test_clip_s_distance_is_that_of_its_blocks_features(tmp_path):
    shutil.copytree(CLIP, tmp_path / "clip")
    clip_distance = open_distance(type="clip", path=str(tmp_path / "clip"))
    clip = clip_jax.load(tmp_path / "clip")
    size, depth = clip.module.options.image.size, clip.module.options.image.depth
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32) for _ in range(2))
    distance = jax.jit(jax.value_and_grad(lambda a, b: clip_distance.function(clip_distance.weights, a, b)))
    value, gradient = distance(a, a)
    assert value < 1e-12 and np.isfinite(gradient).all()

    # The same from towers that end after a third and after two thirds of the blocks.
    mean, std = (np.asarray(x, np.float32)[None, None, None] for x in (clip.preprocess.mean, clip.preprocess.std))
    vision = clip.variables["params"]["vision"]
    params = {**vision, "transformer": unstack_blocks(vision["transformer"])}

    def features(count, x):
        """Unit features after so many blocks."""
        options = clip.module.options
        image = dataclasses.replace(options.image, depth=count)
        module = VisionTower(
            dataclasses.replace(options, image=image), CLIPCompute(scan=False), dropout=0.0, patch_dropout=0.0
        )
        _, state = module.apply({"params": params}, x, capture_intermediates=lambda part, _: part.name == "transformer")
        blocks = state["intermediates"]["transformer"]["__call__"][0]
        return blocks / jnp.linalg.norm(blocks, axis=-1, keepdims=True)

    counts = sorted({max(1, round(depth / 3)), max(1, round(2 * depth / 3))})
    x = (np.concatenate([a, b]) / 2 + 0.5 - mean) / std
    pairs = [np.split(f, 2) for f in jax.jit(lambda x: [features(count, x) for count in counts])(x)]
    expected = np.mean([np.mean(np.sum((f - g) ** 2, axis=-1)) for f, g in pairs])
    actual, reversed_pair = distance(a, b)[0], distance(b, a)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert 0 < actual <= 4  # squared distance of unit vectors, averaged
    np.testing.assert_allclose(actual, reversed_pair, rtol=1e-6)
