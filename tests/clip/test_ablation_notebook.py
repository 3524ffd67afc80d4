"""The notebook of the ablation trains its points, and says of them what their metrics say."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tiny, workdir, run_notebook):
    data = str(tiny[0].data.data_dir)
    return run_notebook("ablation_clip.ipynb", FAST="1", ABLATION_RUNS=str(workdir), TFDS_DATA_DIR=data)


def last_metrics(workdir) -> dict[str, dict]:
    """Loss of a run -> its last metrics, read without the package."""
    runs = {}
    for file in workdir.glob("*/metrics.jsonl"):
        loss = json.loads((file.parent / "config.json").read_text())["model"]["loss"]
        runs[loss] = json.loads(file.read_text().splitlines()[-1])
    return runs


def test_it_trains_its_points(outputs, workdir):
    assert outputs("sweep.run(")[0].startswith("2 of 2 runs are finished")
    assert {name: row["step"] for name, row in last_metrics(workdir).items()} == {"softmax": 2, "sigmoid": 2}


@pytest.mark.parametrize("word", ["plot_curves", "axes.hlines"])
def test_it_shows_its_figures(outputs, shown, word):
    shown(outputs, word, 1)


def test_its_sentence_tells_the_difference_of_the_runs(outputs, workdir):
    runs = last_metrics(workdir)
    novel = 100 * (runs["sigmoid"]["novel/top1"] - runs["softmax"]["novel/top1"])
    gap = novel - 100 * (runs["sigmoid"]["test/top1"] - runs["softmax"]["test/top1"])
    text = outputs("clauses = ")[0]
    change = "the sigmoid loss instead of softmax changes"
    assert f"{change} the accuracy on unseen pairs by {novel:+.1f} points in a single seed, which has no interval." in text
    assert f"{change} the gap by {gap:+.1f} points in a single seed" in text
