"""Features for comparing collections: FID's Inception beside pytorch-fid's figures, and a CLIP."""

import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import clip_jax
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.errors import ConfigError
from train_jax.evaluation import evaluators
from vqgan_jax import features, inception, task
from vqgan_jax.distribution import cmmd, frechet_distance

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights():
    return runpy.run_path(str(GOLDEN / "make_inception.py"))["weights"](inception.expected_shapes())


def test_inception_has_pytorch_fid_s_features(weights):
    with np.load(GOLDEN / "inception.npz") as golden:
        features = jax.jit(inception.extract_features)(weights, golden["images"])
        scale = np.abs(golden["features"]).max()
        np.testing.assert_allclose(features, golden["features"], atol=1e-4 * scale)


def test_inception_s_file_is_checked(weights, tmp_path):
    assert sum(int(np.prod(shape)) for shape in inception.expected_shapes().values()) == 21_802_784 + 17_216
    np.savez(tmp_path / "w.npz", **{name: x for name, x in list(weights.items())[:40] if "2a" not in name})
    with pytest.raises(
        ConfigError, match=r"no Inception-v3 of FID: Conv2d_2a_3x3.conv.weight missing, expected \[32, 32, 3, 3\]"
    ):
        features.open_features(f"inception:{tmp_path / 'w.npz'}")


def test_a_network_must_be_named():
    with pytest.raises(ConfigError, match="names no network: give a CLIP"):
        features.open_features("")
    with pytest.raises(ConfigError, match="features = 'nowhere': nowhere: no such file"):
        features.open_features("nowhere")


def test_reconstructions_are_compared_with_the_originals(tiny, trained, tmp_path, compilations):
    shutil.copytree(GOLDEN / "clip" / "hf-clip", tmp_path / "clip")
    clip = clip_jax.load(tmp_path / "clip")
    config = tiny[0].copy_and_resolve_references()
    config.evals = {"far": {"type": "distribution", "features": str(tmp_path / "clip"), "most": 10, "batch_size": 4}}
    config = config_lib.resolve(config)
    mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "tensor": 1}), jax.devices()[:1])
    made = task.make(config, None)
    options = config.evals.far
    evaluator = made.evaluators["distribution"](options, evaluators.Context(mesh, config))
    params = {"generator": trained.variables["params"]}
    extra = {"generator": {"codebook": trained.variables["codebook"]}}
    with jax.set_mesh(mesh):
        metrics, _ = evaluator(*jax.device_get((params, extra)))
        compilations.clear()
        assert evaluator(*jax.device_get((params, extra)))[0] == metrics
        assert not compilations, "neither for the last batch nor for originals"
    source = evaluators.Context(mesh, config).source("", "test")
    images = trained.preprocess([task.images.decode(source[i]["image"]) for i in range(10)])
    a = clip.encode_image(list(np.round(255 * trained.reconstruct(images)).astype(np.uint8)))
    b = clip.encode_image(list(images))
    name = f"clip-{clip.fingerprint[:8]}"
    assert metrics[f"frechet/{name}"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert metrics[f"cmmd/{name}"] == pytest.approx(cmmd(a, b), rel=1e-3)
    assert metrics["images"] == 10 and frechet_distance(a, b) > 0
