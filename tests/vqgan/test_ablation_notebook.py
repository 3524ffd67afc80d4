"""The notebook of the ablation trains its points, and says of them what their metrics say."""

import json

import pytest
from ml_collections import ConfigDict

import train_jax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(workdir, run_notebook):
    data_dir, clip = workdir.parent / "data", workdir.parent / "clip"
    config = ConfigDict({"task": "clip_jax.task", "steps": 1})
    config.data = {"source": "digits", "batch_size": 8, "data_dir": str(data_dir)}
    config.tokenizer = {"vocab_size": 560}
    config.model = {"embed_dim": 8, "image": {"size": 16, "patch": 8, "width": 8, "depth": 1, "heads": 1}}
    config.model.text = {"context_length": 16, "width": 8, "depth": 1, "heads": 1}
    train_jax.run(config, clip)
    paths = {"ABLATION_RUNS": workdir, "TFDS_DATA_DIR": data_dir, "PERCEPTUAL_RUN": clip, "HELD_OUT_RUN": clip}
    variables = {name: str(path) for name, path in paths.items()}
    variables["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device, for which programs are quicker to compile
    return run_notebook("ablation_vqgan.ipynb", FAST="1", **variables)


def last_metrics(workdir, option: str) -> dict:
    """Value of an option -> last metrics of the run that has it, read without the package."""
    runs = {}
    for file in workdir.glob("*/metrics.jsonl"):
        value = json.loads((file.parent / "config.json").read_text())
        for key in option.split("."):
            value = value[key]
        runs[value] = json.loads(file.read_text().splitlines()[-1])
    return runs


def test_it_trains_its_points(outputs):
    first = outputs('train("codebooks"')[0]
    assert "codebooks: 1 of 1 runs are finished" in first and "others: 1 of 1 runs are finished" in first
    assert "terms: 2 of 2 runs are finished" in outputs('train("terms"')[0]


@pytest.mark.parametrize(
    "word, count", [("def plot_points", 1), ("def show_reconstructions", 1), ("plot_points(losses", 2)]
)
def test_it_shows_its_figures(outputs, shown, word, count):
    shown(outputs, word, count)


def test_its_sentences_tell_the_differences_of_the_runs(outputs, workdir):
    text = outputs("def describe(")[0]
    nearest = last_metrics(workdir / "codebooks", "model.quantizer.type")["nearest"]
    fsq = last_metrics(workdir / "others", "model.quantizer.type")["fsq"]
    psnr = fsq["test/psnr"] - nearest["test/psnr"]
    assert f"against it: FSQ {psnr:+.1f} dB in a single seed, which has no interval." in text
    assert f"FSQ {fsq['test/perplexity'] - nearest['test/perplexity']:+.0f} in a single seed" in text
    terms = last_metrics(workdir / "terms", "loss.weight")
    assert f"pixels + adversarial {terms[0.5]['test/psnr'] - terms[0.0]['test/psnr']:+.2f} dB in a single seed" in text
