"""The task of the prior: its loss by hand, dropped texts, what it learns; its run directory, loaded."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import train_jax
from clip_jax.embeddings import with_embeddings
from dalle_jax.unclip import prior as prior_lib
from dalle_jax.unclip import prior_task
from dalle_jax.unclip.frozen_clip import text_tower
from dalle_jax.unclip.prior import make_seeds
from dalle_jax.unclip.text_features import encode_text
from train_jax import config as config_lib
from train_jax import metrics
from train_jax.data import sources
from train_jax.datasets import digits
from train_jax.errors import ConfigError, LoadError
from train_jax.evaluation import command as evaluate_command
from train_jax.evaluation.results import read_evaluations


def make(tiny, workdir=None, **changes):
    """`(task, config)` of the tiny config with changes."""
    plain = tiny[0].to_dict()
    merged = {key: plain.get(key, {}) | x if isinstance(x, dict) else x for key, x in changes.items()}
    config = config_lib.resolve(ConfigDict(plain | merged))
    return prior_task.make(config, workdir), config


@pytest.fixture(scope="module")
def batch(tiny_prior):
    """Eight digits with their embeddings and first captions."""
    task, config = make(tiny_prior)
    records = task.records(sources.from_config(config.data))
    rows = [task.example(records[i], np.random.default_rng(i)) for i in range(8)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module", params=["diffusion", "autoregressive"])
def tiny(request):
    """`(config, run directory)` of a finished run of each type."""
    return request.getfixturevalue("tiny_prior" if request.param == "diffusion" else "tiny_autoregressive_prior")


@pytest.fixture(scope="module")
def prior(tiny, clip):
    checkpoint = prior_lib.open_checkpoint(tiny[1])
    return checkpoint.load(text_tower(clip.module), clip.variables["params"]["text"], clip.tokenizer, None)


def test_a_run_reports_cosines(tiny):
    history = [json.loads(line) for line in (tiny[1] / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "truncated", "bits_per_code" if tiny[0].model.get("type") else "mse"} <= history[0].keys()
    last = history[-1]
    assert last["test/examples"] == 20 and -1 <= last["test/cosine"] <= 1
    assert {"test/text_cosine", "test/true_text_cosine", "test/mse"} <= last.keys()


def test_evaluate_has_the_results_of_the_training(tiny_autoregressive_prior, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    assert evaluate_command.main([str(tiny_autoregressive_prior[1]), f"--out={out}"]) == 0, capsys.readouterr().err
    (row,), trained = read_evaluations(out), metrics.read(tiny_autoregressive_prior[1])
    assert row["metrics"] == pytest.approx({name: trained.last(f"test/{name}") for name in row["metrics"]}, rel=1e-4)
    assert row["evaluator"] == "test" and "cosine" in row["metrics"]


def test_statistics_are_those_of_the_training_embeddings(tiny_prior, clip):
    source = sources.from_config(config_lib.resolve(tiny_prior[0]).data)
    records = with_embeddings(clip, source, Path(tiny_prior[0].embeddings.dir))
    rows = np.asarray(records.arrays, np.float64)
    _, statistics = prior_lib.open_checkpoint(tiny_prior[1]).read()
    np.testing.assert_allclose(statistics["mean"], rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(statistics["std"], rows.std(axis=0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["diffusion", "linear"])
def test_a_prior_learns_the_embeddings_of_its_captions(tiny_prior, batch, learn, kind):
    """Of two captions the linear baseline reaches the mean of each; diffusion, which sees the noised embedding, more."""
    changes = {"model": {"type": kind}, "condition_dropout": 0.0, "optim": {"lr": 2e-2}, "ema": {"decay": 0.0}}
    task, config = make(tiny_prior, steps=150, **changes)
    batch = batch | {"text": np.repeat(batch["text"][:2], 4, axis=0)}
    _, history = learn(task, config, batch, 150)
    losses = [float(metrics["loss"]) for metrics in history]
    statistics = task.pretrained()[1]
    targets = (batch["embedding"] - statistics["mean"]) / statistics["std"]
    groups = targets.reshape(2, 4, -1)
    least = np.mean((groups - groups.mean(axis=1, keepdims=True)) ** 2)
    assert 0.1 < least < 0.95 * losses[0]
    if kind == "linear":
        assert losses[-1] == pytest.approx(least, rel=0.01)
    else:
        assert np.mean(losses[-20:]) < least


def test_the_loss_of_dropped_texts_is_that_of_empty_texts(tiny_prior, batch, clip):
    """With dropout 0.999… all texts are dropped: the loss does not depend on them."""
    task, _ = make(tiny_prior, condition_dropout=0.9999)
    keep, _ = make(tiny_prior, condition_dropout=0.0)
    params, extra = jax.tree.map(jnp.asarray, (prior_lib.open_checkpoint(tiny_prior[1]).read()[0], task.pretrained()[1]))
    programs = [jax.jit(lambda b, t=t: t.loss({"prior": params}, extra, b, jax.random.key(1), 0)[0]) for t in (task, keep)]
    null = batch | {"text": np.broadcast_to(clip.tokenizer.encode([""]), batch["text"].shape)}
    dropped, empty, kept = programs[0](batch), programs[1](null), programs[1](batch)
    assert float(dropped) == pytest.approx(float(empty), rel=1e-6) and abs(float(kept) - float(empty)) > 1e-5


def test_a_dropped_text_leaves_the_code_of_its_cosine(tiny_autoregressive_prior, batch, clip):
    """As both rows of a guided pair have the same codes: the network reads the empty text, the cosine is to the true one."""
    task, _ = make(tiny_autoregressive_prior, condition_dropout=0.9999)
    checkpoint = prior_lib.open_checkpoint(tiny_autoregressive_prior[1])
    params, extra = jax.tree.map(jnp.asarray, (checkpoint.read()[0], task.pretrained()[1]))
    model, ids = checkpoint.build(), jnp.asarray(batch["text"])
    empty = jnp.broadcast_to(clip.tokenizer.encode([""]), ids.shape)
    text, null = (jax.jit(lambda ids: encode_text(text_tower(clip.module), extra["text"], ids))(x) for x in (ids, empty))
    codes, other = (model.encode(extra, jnp.asarray(batch["embedding"]), x.embedding) for x in (text, null))
    assert (codes[:, 0] != other[:, 0]).any() and (codes[:, 1:] == other[:, 1:]).all()
    expected = jax.jit(lambda codes: model.loss(params, codes, null, jax.random.key(0))[0])
    loss = jax.jit(lambda batch: task.loss({"prior": params}, extra, batch, jax.random.key(1), 0)[0])(batch)
    assert float(loss) == pytest.approx(float(expected(codes)), rel=1e-5)
    assert abs(float(loss) - float(expected(other))) > 1e-4


def test_samples_do_not_depend_on_their_batch_and_guidance_1_is_none(prior, clip):
    texts = ["the digit one", "a handwritten two", "the digit one"]
    seeds, ids = make_seeds(texts, [0, 0, 2], 2, 5), clip.tokenizer.encode(texts)
    rows = np.repeat(ids, 2, axis=0)
    together = prior.draw(rows, seeds.reshape(-1, 3), steps=3, guidance=3.0)
    alone = prior.draw(ids[1:2], seeds[1, :1], steps=3, guidance=3.0)
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5)
    assert abs(together[0] - together[1]).max() > 1e-4 and abs(together[0] - together[4]).max() > 1e-4
    plain = prior.draw(rows, seeds.reshape(-1, 3), steps=3)
    assert abs(plain - together).max() > 1e-3
    near = prior.draw(rows, seeds.reshape(-1, 3), steps=3, guidance=1 + 1e-6)  # computed with pairs of rows
    np.testing.assert_allclose(near, plain, atol=1e-4)


def test_the_candidate_closest_to_the_text_is_kept(prior, clip):
    ids = clip.tokenizer.encode([f"the digit {name}" for name in digits.LABEL_NAMES[:6]])
    seeds = make_seeds(list("abcdef"), [0] * 6, 1, 0)[:, 0]
    text = np.asarray(clip.module.bind(clip.variables).text(jnp.asarray(ids)))
    one, two = (prior.draw(ids, seeds, steps=3, candidates=n) for n in (1, 2))
    assert ((two * text).sum(axis=1) >= (one * text).sum(axis=1) - 1e-5).all()
    changed = abs(two - one).max(axis=1) > 1e-4
    assert 0 < changed.sum() < len(ids), "the first candidate is the only sample; of some texts the second is closer"


def test_a_prior_is_one_file_too(tiny, clip, tmp_path):
    checkpoint = prior_lib.open_checkpoint(tiny[1])
    (tmp_path / "prior.safetensors").write_bytes(prior_lib.to_bytes(checkpoint))
    again = prior_lib.open_checkpoint(tmp_path / "prior.safetensors")
    assert again.clip == clip.fingerprint == checkpoint.clip
    assert dataclasses.replace(again, read=checkpoint.read, name=checkpoint.name) == checkpoint
    jax.tree.map(np.testing.assert_array_equal, again.read(), checkpoint.read())
    assert prior_lib.to_bytes(again) == prior_lib.to_bytes(checkpoint)
    for path in (tmp_path, tiny[0].clip.path):
        with pytest.raises(LoadError, match="is no prior: name a run directory of the task"):
            prior_lib.open_checkpoint(path)


def test_a_run_needs_its_original_clip_no_more_and_resumes_exactly(tiny, tmp_path):
    """From the checkpoint after two updates, without the CLIP's file: weights and statistics after four."""
    shutil.copytree(tiny[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    config = ConfigDict(tiny[0].to_dict() | {"evals": {}, "clip": {"path": "not-there.safetensors"}})
    train_jax.run(config, tmp_path / "run")
    again, once = (prior_lib.open_checkpoint(run).read() for run in (tmp_path / "run", tiny[1]))
    jax.tree.map(np.testing.assert_array_equal, again, once)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clip": {"path": ""}}, "config.clip.path is empty"),
        ({"model": {"heads": 3}}, "model.heads = 3; it must be a divisor"),
        ({"model": {"type": "linear"}, "diffusion": {"prediction": "v"}}, "type = 'linear'; it must be 'diffusion' where"),
        ({"model": {"type": "autoregressive"}}, r"model.components = 319; it must be in \[1, 12\], the dimension of CLIP"),
        ({"model": {"type": "autoregressive", "components": 0}}, "model.components = 0"),
        ({"model": {"type": "autoregressive", "buckets": 1}}, "model.buckets = 1"),
        ({"diffusion": {"learned_variance": True}}, "learned_variance = True; it must be False"),
        ({"condition_dropout": 1.0}, "condition_dropout = 1.0"),
        ({"evals": {"test": {"type": "embeddings", "steps": 1}}}, "steps = 1"),
    ],
)
def test_wrong_options_are_refused(tiny_prior, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(tiny_prior, **changes)
