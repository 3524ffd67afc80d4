"""The tasks of decoder and upsampler: losses by hand, dropped conditions, what they learn, evaluators, FLOPs."""

import functools
import json
import shutil
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageFilter

import clip_jax
import train_jax
from clip_jax.clip import Clip
from clip_jax.options import CLIPOptions, TextOptions
from dalle_jax.unclip import decoder_evaluators, decoder_task, upsampler_task
from dalle_jax.unclip.context import Context
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.flops import unet_flops
from dalle_jax.unclip.options import DecoderOptions, PriorOptions, UNetOptions
from dalle_jax.unclip.prior_model import build
from dalle_jax.unclip.prior_networks import make_inputs
from dalle_jax.unclip.text_features import TextFeatures
from dalle_jax.unclip.unet import UNet
from tests.shared_run import on_one_device
from train_jax import config as config_lib
from train_jax import run_directory
from train_jax.compute import TransformerCompute
from train_jax.data import sources
from train_jax.data.images import decode
from train_jax.errors import ConfigError

TASKS = {"decoder": decoder_task, "upsampler": upsampler_task}


def make(tiny, kind="decoder", workdir=None, **changes):
    """`(task, config)` of a tiny config with changes."""
    plain = tiny[0].to_dict()
    merged = {key: plain.get(key, {}) | x if isinstance(x, dict) else x for key, x in changes.items()}
    config = config_lib.resolve(ConfigDict(plain | merged))
    return TASKS[kind].make(config, workdir), config


@pytest.fixture(scope="module")
def batch(tiny_decoder):
    """Eight digits with their embeddings and captions."""
    task, config = make(tiny_decoder)
    records = task.records(sources.from_config(config.data))
    rows = [task.example(records[i], np.random.default_rng(i)) for i in range(8)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def state(tiny_decoder):
    """Trained parameters and the frozen state."""
    params, extra, _ = run_directory.load_weights(tiny_decoder[1])
    return jax.tree.map(jnp.asarray, (params, extra))


def read_history(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_eight_images_and_grades_its_own(tiny_decoder):
    history = read_history(tiny_decoder[1])
    assert {"loss", "mse", "bound", "truncated"} <= history[0].keys()
    losses = [line["mse"] for line in history if "mse" in line]
    assert np.mean(losses[:3]) > 0.7 and np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    last = history[-1]
    assert 0 <= last["draw/correct"] <= 1 and last["draw/prompts"] == 8
    assert -1 <= last["back/cosine"] <= 1 and last["back/images"] == 20
    names = {file.name.split(".")[0].split("-", 1)[1] for file in (tiny_decoder[1] / "samples").iterdir()}
    assert any("drawings" in name for name in names) and any("reconstructions" in name for name in names)
    files = sorted(p.name for p in tiny_decoder[1].glob("*.safetensors"))
    assert files == ["clip.safetensors", "prior.safetensors"]


def test_dropped_conditions_do_not_matter_and_without_prediction_the_error_is_the_noise(tiny_decoder, batch, state):
    """Embeddings and captions are dropped apart: of each the other one matters still."""
    params, extra = state
    rng = np.random.default_rng(0)
    big = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
    batch = jax.tree.map(jnp.asarray, batch)
    other = {"embedding": batch["embedding"][::-1], "text": jnp.roll(batch["text"], 1, axis=0)}
    key = jax.random.key(1)

    def make_program(**changes):
        task, _ = make(tiny_decoder, **changes)
        return jax.jit(lambda p, b: task.loss(p, extra, b, key, 0))

    def losses(program):
        names = (), ("embedding",), ("text",)
        return [float(program(big, batch | {name: other[name] for name in some})[0]) for some in names]

    without_images, without_captions = make_program(image_dropout=0.99999), make_program(caption_dropout=0.99999)
    plain, with_embedding, with_text = losses(without_images)
    assert plain == pytest.approx(with_embedding, rel=1e-6) and abs(plain - with_text) > 1e-5 * plain
    plain, with_embedding, with_text = losses(without_captions)
    assert plain == pytest.approx(with_text, rel=1e-6) and abs(plain - with_embedding) > 1e-5 * plain
    silent = jax.tree.map(lambda x: x, params)
    silent["decoder"]["unet"]["conv_out"] = jax.tree.map(jnp.zeros_like, params["decoder"]["unet"]["conv_out"])
    _, (metrics, statistics) = without_images(silent, batch)
    noise = jax.random.normal(jax.random.split(key, 5)[3], (8, 8, 8, 3))
    assert metrics["mse"] == pytest.approx(float(np.mean(np.square(noise))), rel=1e-5) and statistics == {}


def test_a_run_needs_its_originals_no_more(tiny_decoder):
    gone = {"clip": {"path": "not-there"}, "prior": {"path": "not-there"}}
    task, _ = make(tiny_decoder, workdir=tiny_decoder[1], **gone)
    assert task.artifacts == {name: (tiny_decoder[1] / name).read_bytes() for name in task.artifacts}
    assert task.artifacts.keys() == {"clip.safetensors", "prior.safetensors"}


@pytest.mark.parametrize("kind", TASKS)
def test_a_run_resumes_exactly(request, kind, tmp_path):
    """From the checkpoint after 30 updates: the averages after 40, in all bits."""
    config, run = request.getfixturevalue(f"tiny_{kind}")
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    with on_one_device():
        train_jax.run(ConfigDict(config.to_dict() | {"evals": {}}), tmp_path / "run")
    again, once = (run_directory.load_weights(folder)[:2] for folder in (tmp_path / "run", run))
    jax.tree.map(np.testing.assert_array_equal, again, once)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prior": {"path": ""}, "evals": {"draw": {"type": "drawing"}}}, None),
        ({"model": {"groups": 3}}, "groups = 3; it must be a divisor"),
        ({"image_dropout": 1.0}, "image_dropout = 1.0"),
        ({"min_snr": -1.0}, "min_snr = -1.0"),
        ({"evals": {"draw": {"type": "drawing", "n": 2}}}, "n = 2; it must be 1 without a clip"),
    ],
)
def test_wrong_options_are_refused(tiny_decoder, changes, message):
    if message is None:
        task, config = make(tiny_decoder, **changes)
        with pytest.raises(ConfigError, match="config.prior.path is empty: the evaluator 'drawing' needs a prior"):
            task.evaluators["drawing"](config.evals.draw, FakeContext(config))
        return
    with pytest.raises(ConfigError, match=message):
        make(tiny_decoder, **changes)


class FakeContext:
    """A context that has the source of the config alone."""

    def __init__(self, config):
        self.config = config

    def source_of(self, options):
        return sources.from_config(self.config.data, split="test[:20]")


def test_a_repeated_prompt_is_another_sample(monkeypatch):
    """As in a call of `imagine`: the number of a sample is that of its prompt's repetition."""

    class Seeds:
        def __init__(self, model, options, context):
            pass

        def decode(self, params, extra, rows, make_example):
            return np.stack([make_example(row, None)["seeds"] for row in rows])[:, None, None].astype(np.uint8)

    monkeypatch.setattr(decoder_evaluators, "_Decoder", Seeds)
    prior = SimpleNamespace(build=lambda: SimpleNamespace(timesteps=100))
    drawn = SimpleNamespace(draw=lambda ids, seeds, **options: seeds.copy())
    tokenizer = SimpleNamespace(encode=lambda texts: np.zeros((len(texts), 3), np.int32))
    model = mock.Mock(decoder_evaluators.EvaluatedDecoder)
    model.prior, model.loaded_prior, model.frozen = prior, drawn, SimpleNamespace(tokenizer=tokenizer)
    options = {"n": 2, "seed": 5, "prior_guidance": 1.0, "prior_steps": 10, "candidates": 1, "batch_size": 4}
    factory = functools.partial(decoder_evaluators._make_painter, model, ConfigDict(options), None)
    seeds = factory(["a", "b", "a"])(None, None)[:, :, 0, 0]
    assert seeds[..., 2].tolist() == [[0, 1], [0, 1], [2, 3]] and np.all(seeds[0, :, 1] == seeds[2, :, 1])


def test_a_prior_for_another_clip_is_refused(tiny_decoder, tmp_path):
    clip = clip_jax.load(tiny_decoder[0].clip.path)
    variables = jax.tree.map(lambda x: np.asarray(x) * 1.5, clip.variables)
    other = Clip.assemble(clip.module, variables, clip.tokenizer, clip.preprocess, "other")
    clip_jax.save(other, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="is a prior for another CLIP than config.clip.path"):
        make(tiny_decoder, clip={"path": str(tmp_path / "x.safetensors")})


# ---------------------------------------------------------------------------------------------------------------------
# Upsampler


def test_an_upsampler_learns_and_reports_its_error(tiny_upsampler):
    history = read_history(tiny_upsampler[1])
    last, losses = history[-1], [line["loss"] for line in history if "loss" in line]
    assert last["test/bicubic_psnr"] > 8 and last["test/images"] == 20 and np.isfinite(last["test/psnr"])
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])


def test_small_images_are_pillows(tiny_upsampler):
    """Reduction by Pillow's bicubic filter; a blur that keeps constants and spreads a point as a Gaussian does."""
    rng = np.random.default_rng(0)
    images = np.asarray(Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).filter(ImageFilter.GaussianBlur(2)))
    sharp = np.asarray(upsampler_task.reduce(jnp.asarray(images[None], jnp.float32), 2, jnp.zeros(1, bool)))[0]
    expected = np.asarray(Image.fromarray(images).resize((8, 8), Image.Resampling.BICUBIC), np.float32)
    assert abs(sharp - expected).max() < 1.01, "Pillow rounds"
    point = jnp.zeros((2, 8, 8, 1)).at[:, 4, 4].set(1)
    reduced = jax.image.resize(point, (2, 4, 4, 1), "cubic")
    sharp, blurred = upsampler_task.reduce(point, 2, jnp.array([False, True]))
    np.testing.assert_allclose(sharp, reduced[0], atol=1e-6)
    kernel = np.exp(-np.arange(-1, 2) ** 2 / (2 * 0.6**2))
    kernel /= kernel.sum()
    padded = np.pad(np.asarray(reduced[1, ..., 0]), 1, mode="edge")
    expected = sum(kernel[i] * kernel[j] * padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3))
    np.testing.assert_allclose(blurred[..., 0], expected, atol=1e-6)


def test_a_factor_must_divide_the_size(tiny_upsampler):
    with pytest.raises(ConfigError, match="factor = 3; it must be a divisor of model.size = 16"):
        make(tiny_upsampler, "upsampler", factor=3)


# ---------------------------------------------------------------------------------------------------------------------


def test_flops_are_those_that_xla_counts():
    """Of networks so wide that products are nearly all of it; nothing is compiled."""

    def count(function, *inputs) -> float:
        return jax.jit(function).lower(*inputs).cost_analysis()["flops"]

    def abstract(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    def of(module, *inputs):
        params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return count(module.apply, params, *inputs)

    t, compute = abstract(1, dtype=jnp.int32), TransformerCompute(scan=False)
    sizes = {"size": 64, "channels": (64, 128), "blocks": 2, "groups": 8}
    upsampler = UNetOptions(**sizes)
    assert unet_flops(upsampler, 6, 6) == pytest.approx(of(UNet(upsampler, 6), abstract(1, 64, 64, 6), t), rel=0.05)
    patched = UNetOptions(**sizes | {"size": 128}, patch=2)
    assert unet_flops(patched, 6, 6) == pytest.approx(of(UNet(patched, 6), abstract(1, 128, 128, 6), t), rel=0.05)
    decoder = DecoderOptions(**sizes, attention=(1,), context_dim=96, image_tokens=4)
    clip = CLIPOptions(text=TextOptions(context_length=20))
    context = Context(abstract(1, 256), abstract(1, 24, 96), abstract(1, 24, dtype=bool))
    flops = of(UNet(decoder, 6), abstract(1, 64, 64, 3), t, context)
    assert unet_flops(decoder, 6, 3, clip) == pytest.approx(flops, rel=0.05)
    sizes = {"width": 512, "depth": 2, "heads": 2, "embed_dim": 64, "text_length": 20}
    diffusion = build(PriorOptions(**sizes), Diffusion(), compute)
    inputs = jax.tree.map(lambda x: abstract(*x.shape, dtype=x.dtype), make_inputs(diffusion.network.options, 48))
    assert diffusion.flops(48) == pytest.approx(of(diffusion.network, *inputs), rel=0.05)
    autoregressive = build(PriorOptions(**sizes, type="autoregressive", components=30, buckets=128), Diffusion(), compute)
    inputs = TextFeatures(*inputs[2:]), abstract(1, 31, dtype=jnp.int32)
    assert autoregressive.flops(48) == pytest.approx(of(autoregressive.network, *inputs), rel=0.05)


def test_an_image_of_the_batch_is_the_records(tiny_decoder, batch):
    config = config_lib.resolve(tiny_decoder[0])
    source = sources.from_config(config.data)
    expected = np.asarray(decode(source[0]["image"]).resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(batch["image"][0], expected)
