"""`train-jax evaluate` of a DALL-E: a run, and public weights."""

from pathlib import Path

import numpy as np
import pytest

import dalle_jax
from train_jax import metrics
from train_jax.data import sources
from train_jax.evaluation import command as evaluate_command
from train_jax.evaluation.results import read_evaluations
from vqgan_jax.stage2.likelihood import NATS_PER_BIT

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "dalle" / "mindalle"


def test_a_run_has_the_results_of_its_training(tiny, tmp_path, capsys):
    assert evaluate_command.main([str(tiny[1]), f"--out={tmp_path / 'results.jsonl'}"]) == 0, capsys.readouterr().err
    rows, trained = read_evaluations(tmp_path / "results.jsonl"), metrics.read(tiny[1])
    assert [row["evaluator"] for row in rows] == ["look", "test"]
    for row in rows:
        expected = {name: trained.last(f"{row['evaluator']}/{name}") for name in row["metrics"]}
        assert row["metrics"] == pytest.approx(expected, rel=1e-5) and row["metrics"]
        assert row["step"] == 4 and row["family"] == "dalle" and row["source"] == "digits"


def test_public_weights_are_evaluated(tiny, tmp_path, capsys):
    """The bits per code are those of the loaded model."""
    out, data_dir = tmp_path / "results.jsonl", tiny[0].data.data_dir
    words = ["--evals=likelihood", "--data=digits", "--split=test[:6]", f"--config.data.data_dir={data_dir}", f"--out={out}"]
    words += ["--config.evals.likelihood.batch_size=8", f"--config.codes.dir={tmp_path / 'codes'}"]
    assert evaluate_command.main([str(GOLDEN), *words]) == 0, capsys.readouterr().err
    (row,) = read_evaluations(out)
    model, source = dalle_jax.load(GOLDEN), sources.open_source("digits", "test[:6]", data_dir=data_dir)
    images = model.vqgan.preprocess([sources.images.decode(record["image"]) for record in source])
    codes = model.vqgan.encode(images)
    tokens = model.condition.encode([record["captions"][0] for record in source])
    _, logits = model.logits(tokens, codes.reshape(len(codes), -1))
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_probabilities, codes.reshape(len(codes), -1, 1), axis=-1).mean()
    assert row["metrics"]["bits_per_code"] == pytest.approx(nats / NATS_PER_BIT, rel=1e-4)
    assert row["family"] == "dalle" and row["metrics"]["images"] == 6
