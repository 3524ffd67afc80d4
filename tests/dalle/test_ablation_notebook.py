"""The notebook of the ablation trains and judges its points, and says of them what its runs and samples say."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tiny, workdir, run_notebook):
    data = str(tiny[0].data.data_dir)
    return run_notebook("ablation_dalle.ipynb", FAST="1", ABLATION_RUNS=str(workdir), TFDS_DATA_DIR=data)


def test_its_runs_share_one_tokenizer(outputs, workdir):
    assert outputs('"dalle/digits"')[0].startswith("2 of 2 runs are finished")
    runs = [json.loads(file.read_text()) for file in workdir.glob("*-codes/*/config.json")]
    assert {run["vqgan"]["path"] for run in runs} == {str(path) for path in (workdir / "tokenizers").glob("size=*")}
    assert sorted(run["condition_dropout"] for run in runs) == [0, 0.1]


@pytest.mark.parametrize("word, count", [("plot_grid", 2), ("image_grid(", 1), ("axes.hlines", 1)])
def test_it_shows_its_figures(outputs, shown, word, count):
    shown(outputs, word, count)


def test_only_runs_with_caption_dropout_are_guided(outputs):
    # Two guidances of one run, and one of the other.
    assert outputs("dalle.generate(DIGITS, SAMPLES")[0].startswith("3 combinations of a run and a setting, 20 samples each")


def test_its_sentences_say_that_one_seed_has_no_interval(outputs):
    text = outputs("def describe(")[0]
    change = "a caption dropout of 0.1 instead of none changes correct samples by "
    assert text.startswith(f"After 2 updates, with 1 seed: {change}")
    assert text.count(" in a single seed, which has no interval") == 4
