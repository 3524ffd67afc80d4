"""Paintings of an unCLIP's embedding, by the decoder of a short run, beside its own sampling."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import clip_jax
from dalle_jax.unclip.loading import load_unclip
from dalle_jax.unclip.unclip import Unclip
from train_jax.errors import ConfigError, LoadError
from vqgan_jax import cli, guided
from vqgan_jax.guided import options
from vqgan_jax.guided.cli import request
from vqgan_jax.guided.drawers.drawer import Context

KARLO = Path(__file__).resolve().parents[2] / "golden" / "unclip" / "karlo"
PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0, "cut_min": 1.0}
FEW = PLAIN | {"size": (8, 8), "steps": 4, "save_every": 2, "cuts": 2, "average": 0.5, "progress": False}


@pytest.fixture(scope="module")
def run(tiny_decoder) -> str:
    return str(tiny_decoder[1])


@pytest.fixture(scope="module")
def unclip(run) -> Unclip:
    return load_unclip(run, dtype="float32")


@pytest.fixture(scope="module")
def guide(run):
    """The CLIP of the run on the first device only: programs for one are quick to compile."""
    clip = clip_jax.load(f"{run}/clip.safetensors")
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    variables = jax.tree.map(np.asarray, clip.variables)
    return dataclasses.replace(clip, variables=jax.device_put(variables, NamedSharding(mesh, P())))


def make_drawer(run: str, steps: int = 3):
    return options.make_drawer("unclip", {"run": run, "steps": steps})


def test_pictures_are_those_of_the_decoder(run, unclip):
    drawer = make_drawer(run)
    z = drawer.init((8, 8), [0, 1])
    render = drawer.without_weights().render
    weights = jax.device_put(jax.tree.map(np.asarray, drawer.weights), jax.devices()[0])
    direction = np.random.default_rng(1).standard_normal((8, 8, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=2)
    def show(weights, z, size):
        return render(z, Context(size, weights))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=1)
    def along(weights, z):
        return jnp.sum(direction * render(z, Context((8, 8), weights)))

    def value(z, size=(8, 8)):
        return show(weights, z, size)

    mean, covariance = unclip.moments
    variances, axes = np.linalg.eigh(covariance.astype(np.float64))
    embeddings = mean + z["embedding"] @ (axes * np.sqrt(np.maximum(variances, 1e-4 * variances[-1]))).T
    ids = np.repeat(unclip.tokenizer.encode([""]), 2, 0)
    pixels = unclip.decoder.decode(
        embeddings.astype(np.float32), ids, np.zeros((2, 3), np.uint32), noise=z["noise"], steps=3, guidance=1.0, eta=0.0,
        batch_size=2,
    )  # fmt: skip
    first, second = (jax.tree.map(lambda x, i=i: x[i], z) for i in range(2))
    np.testing.assert_allclose(np.stack([value(first), value(second)]), (pixels + 1) / 2, atol=1e-5)
    assert np.abs(pixels[0] - pixels[1]).max() > 0.1
    # A start picture is the embedding of its CLIP and the noise to which it inverts, as in a reconstruction.
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    start = drawer.encode((8, 8), np.float32(images / 255), z)
    shown = [255 * value(jax.tree.map(lambda x, i=i: x[i], start)) for i in range(2)]
    np.testing.assert_allclose(np.clip(shown, 0, 255), unclip.reconstruct(list(images), steps=3), atol=0.6)
    # The gradient is that of differences, along itself; the noise has none.
    _, gradient = along(weights, first)
    assert (np.asarray(gradient["noise"]) == 0).all() and (np.asarray(gradient["embedding"]) != 0).any()
    unit = gradient["embedding"] / np.linalg.norm(gradient["embedding"])
    ahead, behind = (along(weights, first | {"embedding": first["embedding"] + s * unit})[0] for s in (0.01, -0.01))
    np.testing.assert_allclose((ahead - behind) / 0.02, np.linalg.norm(gradient["embedding"]), rtol=0.02)
    assert value(first, (12, 12)).shape == (12, 12, 3)
    assert float(drawer.regularise({"embedding": jnp.array([3.0, -1.0])}, None)) == 5.0


def test_paintings_improve_resume_and_repeat(run, guide, tmp_path, monkeypatch, capsys):
    paint = functools.partial(
        guided.paint, None, guide, "the digit 3", drawer="unclip", drawer_options={"run": run, "steps": 3}, **FEW
    )
    painting = paint()
    assert painting.images.shape == (1, 8, 8, 3) and painting.losses[0, -1] < painting.losses[0, 0]
    np.testing.assert_allclose(painting.latents["noise"], make_drawer(run).init((8, 8), [0])["noise"], atol=1e-6)
    state = tmp_path / "state.npz"
    paint(state_file=state, steps=2)
    resumed = paint(resume_from=state)
    np.testing.assert_array_equal(resumed.images, painting.images)
    with pytest.raises(LoadError, match="options drawer_options steps is 3 in the file and 4 in this painting"):
        paint(resume_from=state, drawer_options={"run": run, "steps": 4})

    monkeypatch.setattr(clip_jax, "load", lambda path, dtype="auto": guide)
    words = [word for name, value in FEW.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words[words.index("--size") + 1] = "8x8"
    del words[-2:]  # --progress
    first, again = str(tmp_path / "first.png"), str(tmp_path / "again.png")
    models = ["--clip", f"{run}/clip.safetensors", "--drawer", "unclip", "--drawer-options", f"run={run},steps=3"]
    assert cli.main(["paint", "the digit 3", *models, *words, "--out", first]) == 0
    assert cli.main(["paint", "--repeat", first, "--out", again]) == 0
    with open(first, "rb") as a, open(again, "rb") as b:
        assert a.read() == b.read()
    assert run in request._read_painted(first)[0]["drawer_options"]["run"]
    monkeypatch.setattr("vqgan_jax.guided.metadata.hash_run", lambda path: "other")
    assert cli.main(["paint", "--repeat", first, "--out", again]) == 2
    assert f"{first} was painted with {run} of SHA-256" in capsys.readouterr().err


def test_what_is_no_decoder_is_refused_by_name(run, tiny_prior, guide):
    paint = functools.partial(guided.paint, None, guide, "a", drawer="unclip", **FEW)
    with pytest.raises(ConfigError, match="drawer = 'unclip' needs a decoder: name its run directory by drawer_options"):
        paint()
    for path, reason in (
        (str(tiny_prior[1]), "a decoder of unCLIP"),
        (str(KARLO), "it has no moments of embeddings, which runs have"),
        ("nowhere", "nowhere"),
    ):
        with pytest.raises(ConfigError, match=f"drawer = 'unclip', run = {path}: .*{reason}"):
            paint(drawer_options={"run": path})
    with pytest.raises(ConfigError, match="steps = 1001: it must be at most 1000, as in training"):
        paint(drawer_options={"run": run, "steps": 1001})
    with pytest.raises(ConfigError, match="size = 8 x 16: an unCLIP paints squares"):
        paint(drawer_options={"run": run}, size=(8, 16))
