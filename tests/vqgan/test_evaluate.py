"""`train-jax evaluate` of a VQGAN: a run, and public weights."""

from pathlib import Path

import pytest

import vqgan_jax
from train_jax import metrics
from train_jax.evaluation import blend
from train_jax.evaluation import command as evaluate_command
from train_jax.evaluation.results import read_evaluations

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "vqgan"


def test_a_run_has_the_results_of_its_training(tiny, tmp_path, capsys):
    assert evaluate_command.main([str(tiny[1]), f"--out={tmp_path / 'results.jsonl'}"]) == 0, capsys.readouterr().err
    rows, trained = read_evaluations(tmp_path / "results.jsonl"), metrics.read(tiny[1])
    assert [row["evaluator"] for row in rows] == ["oracle", "test"]
    for row in rows:
        expected = {name: trained.last(f"{row['evaluator']}/{name}") for name in row["metrics"]}
        assert row["metrics"] == pytest.approx(expected, rel=1e-5) and row["metrics"]
        assert row["step"] == 4 and row["family"] == "vqgan" and row["source"] == "shapes/32"


def test_public_weights_are_evaluated(tiny, tmp_path, capsys):
    """The reconstruction errors are those of the loaded model."""
    import numpy as np

    from train_jax.data import sources

    out, data_dir = tmp_path / "results.jsonl", tiny[0].data.data_dir
    words = ["--evals=reconstruction", "--data=shapes/32", f"--config.data.data_dir={data_dir}", f"--out={out}"]
    assert evaluate_command.main([str(GOLDEN / "diffusers"), *words]) == 0, capsys.readouterr().err
    (row,) = read_evaluations(out)
    vq, source = vqgan_jax.load(GOLDEN / "diffusers"), sources.open_source("shapes/32", "test", data_dir=data_dir)
    images = vq.preprocess([sources.images.decode(record["image"]) for record in source])
    distances = np.abs(np.clip(vq.reconstruct(images), 0, 1) - images / 255).mean()
    assert row["metrics"]["l1"] == pytest.approx(distances, rel=1e-4)
    assert row["family"] == "vqgan" and row["metrics"]["images"] == len(source)


def test_a_line_from_weights_without_a_discriminator_is_evaluated(tiny, trained, tmp_path, capsys):
    """Between a model and itself: public weights have neither a discriminator nor counts of codes."""
    vqgan_jax.save(trained, tmp_path / "start.safetensors")
    words = [str(tmp_path / "start.safetensors"), str(tiny[1]), "--alpha=0,1", "--evals=test", f"--save={tmp_path / 'half'}"]
    words += ["--at=0.5", f"--out={tmp_path / 'results.jsonl'}"]
    assert blend.main(words) == 0, capsys.readouterr().err
    first, last = (row["metrics"]["psnr"] for row in read_evaluations(tmp_path / "results.jsonl"))
    assert first == pytest.approx(last, rel=1e-6)
    assert vqgan_jax.load(tmp_path / "half").fingerprint == trained.fingerprint
