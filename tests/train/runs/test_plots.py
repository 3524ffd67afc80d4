"""Figures of runs, by what is on their axes; the Pareto front against its definition."""

import numpy as np
import pytest
from written_runs import seeds_and_rates, write_run

from train_jax import runs
from train_jax.errors import UserError
from train_jax.runs.plots import find_pareto_front


def lines(figure):
    return [np.asarray(line.get_xydata()) for line in figure.axes[0].get_lines()]


def legend(figure):
    return [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]


def test_a_line_for_each_run(tmp_path):
    write_run(tmp_path / "a", {"loss": [3, "inf", 1]})
    write_run(tmp_path / "b", {"loss": [5]})
    write_run(tmp_path / "c", {"other": [5]})
    figure = runs.plot_curves(tmp_path, "loss")
    a, b = lines(figure)
    np.testing.assert_array_equal(a, [[10, 3], [20, np.nan], [30, 1]])
    np.testing.assert_array_equal(b, [[10, 5]])
    assert legend(figure) == ["a", "b"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "loss")
    for x, values in (("seconds", [20, 40, 60]), ("examples", [40, 80, 120]), ("flops", [4e7, 8e7, 12e7])):
        np.testing.assert_array_equal(lines(runs.plot_curves(tmp_path, "loss", x=x))[0][:, 0], values)


def test_means_of_groups_at_the_steps_of_all_of_their_runs(tmp_path):
    values = {("x", 0): [4, 3, 2], ("x", 1): [2, 1], ("y", 0): [9]}
    for (kind, seed), curve in values.items():
        write_run(tmp_path / f"{kind}{seed}", {"loss": curve}, {"kind": kind, "seed": seed})
    figure = runs.plot_curves(tmp_path, "loss", by=["kind"])
    assert [line[:, 1].tolist() for line in lines(figure)] == [[4, 3, 2], [2, 1], [3, 2], [9]]
    assert lines(figure)[2][:, 0].tolist() == [10, 20]
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert colours[0] == colours[1] == colours[2] != colours[3]
    assert legend(figure) == ["kind = x", "kind = y"]
    with pytest.raises(UserError, match="no run has an option 'kinds'; did you mean kind"):
        runs.plot_curves(tmp_path, "loss", by=["kinds"])


def test_means_over_runs_of_different_batches_are_at_equal_examples(tmp_path):
    for batch_size, curve in ((4, [9, 8, 7, 6]), (8, [5, 4, 3])):  # at 40, 80, 120, 160 and at 80, 160, 240 examples
        write_run(tmp_path / f"{batch_size}", {"loss": curve}, {"data": {"batch_size": batch_size}, "kind": "x"})
    mean = lines(runs.plot_curves(tmp_path, "loss", by=["kind"], x="examples"))[-1]
    np.testing.assert_array_equal(mean, [[80, (8 + 5) / 2], [160, (6 + 4) / 2]])


def test_names_are_shown_as_they_are(tmp_path):
    for name in ("$x_{", "_b"):
        write_run(tmp_path / name, {r"loss$\nonsense": [1, 2]}, {"$x_{": f"$x_{{{name}"})
    figure = runs.plot_curves(tmp_path, r"loss$\nonsense")
    assert legend(figure) == ["$x_{", "_b"]
    figure.savefig(tmp_path / "curves.png")
    runs.plot_pareto(tmp_path, r"loss$\nonsense").savefig(tmp_path / "pareto.png")
    runs.plot_grid(tmp_path, r"loss$\nonsense", "$x_{", "steps").savefig(tmp_path / "grid.png")


def test_many_runs_have_no_legend(tmp_path):
    for number in range(21):
        write_run(tmp_path / f"{number}", {"loss": [1]})
    figure = runs.plot_curves(tmp_path, "loss")
    assert len(lines(figure)) == 21 and figure.axes[0].get_legend() is None


def test_a_grid_of_means(tmp_path):
    values = {(0.1, 8, 0): 1.0, (0.1, 8, 1): 3.0, (0.3, 8, 0): 5.0, (0.3, 16, 0): 7.0}
    for (lr, width, seed), value in values.items():
        config = {"optim": {"lr": lr}, "width": width, "seed": seed}
        write_run(tmp_path / f"{lr}-{width}-{seed}", {"psnr": [value]}, config)
    write_run(tmp_path / "unfinished", {"psnr": [9]}, {"optim": {"lr": 1}}, steps=20)
    figure = runs.plot_grid(tmp_path, "psnr", "optim.lr", "width")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.get_images()[0].get_array().filled(np.nan), [[2, 5], [np.nan, 7]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "2"), ((1, 0), "5"), ((1, 1), "7"),
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["8", "16"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("optim.lr", "width", "psnr")
    table = runs.table(tmp_path, ["psnr"])
    table["psnr"] += 1
    of_table = runs.plot_grid(table, "psnr", "optim.lr", "width").axes[0].get_images()[0].get_array()
    np.testing.assert_array_equal(of_table.filled(np.nan), [[3, 6], [np.nan, 8]])
    with pytest.raises(UserError, match="no finished run has a value of 'psnr'"):
        runs.plot_grid(tmp_path / "unfinished", "psnr", "optim.lr", "steps")


def test_quality_against_cost(tmp_path):
    """Costs 1, 2, 3 and 4 times 20 seconds; the third run is dominated by the second, and the fifth has no cost."""
    for name, curve in {"a": [5], "b": [9, 3], "c": [9, 9, 4], "d": [9, 9, 9, 1], "e": ["nan"]}.items():
        write_run(tmp_path / name, {"loss": curve})
    figure = runs.plot_pareto(tmp_path, "loss")
    axes = figure.axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_array_equal(points, [[20, 5], [40, 3], [60, 4], [80, 1]])
    np.testing.assert_array_equal(lines(figure)[0], [[20, 5], [40, 3], [80, 1]])
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c", "d"]
    flops = runs.plot_pareto(tmp_path, "loss", "flops", goal="max", value="best").axes[0]
    np.testing.assert_array_equal(flops.collections[0].get_offsets(), [[4e7, 5], [4e7, 9], [4e7, 9], [4e7, 9]])
    (tmp_path / "a" / "environment.json").unlink()
    with pytest.raises(UserError, match="no run has both a finite 'loss' and seconds of training"):
        runs.plot_pareto(tmp_path / "a", "loss")


def test_colours_of_quality_against_cost(tmp_path):
    seeds_and_rates(tmp_path)
    figure = runs.plot_pareto(tmp_path, "test/top1", by=["optim.lr"])
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [3, 3]
    assert legend(figure) == ["optim.lr = 0.1", "optim.lr = 0.3"]


@pytest.mark.parametrize("goal", ["min", "max"])
def test_the_pareto_front_by_its_definition(goal):
    sign = 1 if goal == "min" else -1
    costs, excess = np.random.default_rng(0).integers(0, 8, (2, 30)).astype(float)
    values = sign * (excess - costs)  # more cost, more quality; with ties
    points = list(zip(costs, sign * values, strict=True))
    expected = [not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points) for p in points]
    assert 2 < sum(expected) < 20
    np.testing.assert_array_equal(find_pareto_front(costs, values, goal), expected)
