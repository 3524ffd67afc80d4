"""The notebook of scaling trains its sizes, fits its law to their losses, and measures speed."""

import json
import re

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tiny, workdir, run_notebook):
    return run_notebook("scaling.ipynb", FAST="1", SCALING_RUNS=str(workdir), VQGAN_RUN=str(tiny[1]))


def last_losses(workdir) -> dict[int, float]:
    """Depth of a run -> its last bits per code, read without the package."""
    losses = {}
    for file in workdir.glob("sizes/*/metrics.jsonl"):
        model = json.loads((file.parent / "config.json").read_text())["model"]
        assert model["width"] == 16 * model["depth"]
        losses[model["depth"]] = json.loads(file.read_text().splitlines()[-1])["test/bits_per_code"]
    return losses


def test_it_trains_its_sizes(outputs, workdir):
    assert outputs("sweep.run(")[0].startswith("2 of 2 runs are finished")
    assert sorted(last_losses(workdir)) == [1, 2]


@pytest.mark.parametrize("word, count", [("plot_pareto", 2), ("frontier = ", 1)])
def test_it_shows_its_figures(outputs, shown, word, count):
    shown(outputs, word, count)


def test_its_sentences_tell_the_losses_of_the_runs(outputs, workdir):
    losses = last_losses(workdir)
    first, second, third = outputs("def compare_speed(")[0].splitlines()
    assert first.startswith("From 2 runs of 2 sizes with 1 seed: the loss falls with parameters by the exponent ")
    assert re.search(rf"and it is {losses[2]:.3f}: off by .* than the {losses[1] - losses[2]:.3f} that it gains", second)
    same, spread = "1.00 times the examples a second", "within the spread between log lines"
    assert third == f"On this CPU, on one device, a batch of 8 instead of 8 trains {same}, {spread}."
