"""Tables and curves of runs: what differs, final, best and at a step, time without gaps, cost; comparisons of two runs."""

import json
import math

import numpy as np
import pytest
from written_runs import COMMIT, seeds_and_rates, write_config, write_run

from train_jax import runs
from train_jax.errors import UserError
from train_jax.runs import tables


@pytest.fixture
def folder(tmp_path):
    seeds_and_rates(tmp_path)
    return tmp_path


def test_only_options_that_differ_are_columns(folder):
    frame = runs.table(folder)
    assert frame.attrs["options"] == ["optim.lr", "seed"]
    assert frame["optim.lr"].tolist() == [0.1] * 3 + [0.3] * 3 and frame["seed"].tolist() == [0, 1, 2] * 2
    assert frame["run"].tolist()[:2] == ["lr0.1-seed0", "lr0.1-seed1"]
    shown = runs.table(folder, options=["optim.betas", "seed"])
    assert shown.attrs["options"] == ["optim.betas", "seed", "optim.lr"] and set(shown["optim.betas"]) == {(0.9, 0.98)}
    with pytest.raises(UserError, match=r"no run has an option 'optim.rl'; did you mean optim.lr"):
        runs.table(folder, options=["optim.rl"])


def test_options_are_compared_by_value(tmp_path):
    a = {"one": 1, "nested": {"list": [1, [2]], "empty": {}}, "missing": 3, "flag": True, "nan": math.nan, "null": None}
    b = {"one": 1.0, "nested": {"list": [1, [3]]}, "flag": 1, "nan": math.nan, "null": 0}
    for name, config in (("a", a), ("b", b)):
        write_run(tmp_path / name, {"loss": [1]}, config)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text('{"step": 10}\n')  # without a config, which makes nothing differ
    frame = runs.table(tmp_path)
    assert frame.attrs["options"] == ["flag", "missing", "nested.list", "null"]
    assert frame["missing"].tolist() == [3, None, None] and frame["nested.list"].tolist() == [(1, (2,)), (1, (3,)), None]
    assert frame["status"].tolist() == ["finished", "finished", "damaged"]
    assert isinstance(frame["missing"][0], int)


def test_final_best_and_at_a_step(tmp_path):
    write_run(tmp_path / "a", {"loss": [3, 1, 2], "psnr": [7, "nan", 5], "loss/low": [0, 1, 2]})
    write_run(tmp_path / "b", {"loss": [4, "nan"], "psnr": [None, "inf"]}, steps=30)
    frame = runs.table(tmp_path, ["loss", "psnr"], at=25).set_index("run")
    assert frame.loc["a", ["loss", "loss (best)", "loss (best step)", "loss (at 25)"]].tolist() == [2, 1, 20, 1]
    assert frame.loc["a", ["psnr", "psnr (best)", "psnr (best step)"]].tolist() == [5, 7, 10]
    assert math.isnan(frame.loc["a", "psnr (at 25)"]), "the value at step 20"
    b = frame.loc["b"]
    assert math.isnan(b["loss"]) and b["loss (best)"] == 4 and math.isnan(b["loss (at 25)"]), "not reached"
    assert b["psnr"] == math.inf and math.isnan(b["psnr (best)"]) and math.isnan(b["psnr (best step)"])
    opposite = runs.table(tmp_path, ["loss"], goal="max")
    assert opposite["loss (best)"].tolist() == [3, 4]
    with pytest.raises(UserError, match="no run has a metric 'lsos'; did you mean loss"):
        runs.table(tmp_path, ["lsos"])


def test_default_metrics_are_loss_and_evaluations(folder):
    columns = list(runs.table(folder).columns)
    start, end = columns.index("seed") + 1, columns.index("seconds")
    assert columns[start:end] == [
        *("loss", "loss (best)", "loss (best step)"), *("test/top1", "test/top1 (best)", "test/top1 (best step)"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "goal"),
    [
        *((name, "min") for name in ("loss", "loss_codebook", "test/bits_per_code", "test/FID", "a/mean-rank")),
        *((name, "max") for name in ("test/top1", "psnr", "perplexity", "loss/psnr", "lossless", "test/top1/low")),
        ("test/loss/low", "min"),
    ],
)
def test_goals_by_name(metric, goal):
    assert tables.goal_of(metric) == goal


def test_seconds_count_sessions_and_not_what_lies_between_them(tmp_path):
    """Two sessions of 20 and 25 seconds; the first trained on for 7 seconds whose rows were lost with its process."""
    run = write_run(tmp_path / "a", {"loss": [4, 3, 2, 1]})
    times = [110.0, 120.0, 5015.0, 5025.0]
    rows = [{"step": 10 * (i + 1), "time": time, "loss": 1.0} for i, time in enumerate(times)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A third start, between them, logged nothing.
    starts = [{"time": time} for time in (100.0, 3000.0, 5000.0)]
    (run / "environment.json").write_text(json.dumps({"starts": starts}))
    assert runs.curves(run, "loss")["seconds"].tolist() == [10, 20, 35, 45]
    assert runs.table(run)["seconds"].tolist() == [45]
    for damaged in ({}, {"starts": "none"}, {"starts": [{"time": "noon"}, 3]}, {"starts": starts[1:]}):
        (run / "environment.json").write_text(json.dumps(damaged))
        assert math.isnan(runs.table(run)["seconds"][0]), "the time before the first start is unknown"


def test_costs_and_versions(tmp_path):
    speed = {"loss": [3, 2, 1], "examples_per_second": [1, 9, 8], "mfu": [0.1, 0.5, 0.4]}
    write_run(tmp_path / "a", speed, steps=50)
    write_run(tmp_path / "b", {"loss": [3]}, code={"commit": COMMIT, "dirty": True}, versions=None)
    (tmp_path / "b" / "config.json").write_text("{")
    a, b = runs.table(tmp_path).to_dict("records")
    assert (a["examples_per_second"], a["mfu"], a["peak_bytes"], a["parameters"]) == (8, 0.4, 3 * 2**20, 100)
    assert a["flops"] == 30 * 4 * 1e6 and a["seconds"] == 60
    assert (a["commit"], a["jax"], a["flax"], a["device"], a["error"]) == (COMMIT, "0.10.0", None, "cpu", None)
    assert b["commit"] == f"{COMMIT}+" and b["jax"] is None and "config.json" in b["error"]
    assert math.isnan(b["flops"]) and math.isnan(b["mfu"])


def test_metrics_with_the_name_of_an_option(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), {"seed": [7]}, {"seed": seed})
    frame = runs.table(tmp_path, ["seed"])
    assert frame["seed"].tolist() == [7, 7] and frame["config.seed"].tolist() == [0, 1]


def test_values_that_are_no_numbers_are_no_values(tmp_path):
    write_run(tmp_path / "a", {"loss": [1, "high", True, [2], {"x": 3}]})
    assert runs.curves(tmp_path, "loss")["value"].tolist() == [1]


def test_curves_of_different_lengths(tmp_path):
    write_run(tmp_path / "a", {"loss": [3, 2, "inf"]})
    write_run(tmp_path / "b", {"loss": [5], "other": [1]}, flops_per_example=None)
    write_run(tmp_path / "c", {"other": [1]})
    curves = runs.curves(tmp_path, "loss")
    assert list(curves.columns) == ["run", "step", "seconds", "examples", "flops", "value"]
    assert curves["run"].tolist() == ["a", "a", "a", "b"] and curves["step"].tolist() == [10, 20, 30, 10]
    assert curves["value"].tolist() == [3, 2, math.inf, 5] and curves["seconds"].tolist() == [20, 40, 60, 20]
    np.testing.assert_array_equal(curves["examples"], [40, 80, 120, 40])
    np.testing.assert_array_equal(curves["flops"], [4e7, 8e7, 12e7, np.nan])


def test_tables_of_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    frame = runs.table([tmp_path / "a", tmp_path / "none"], ["loss"])
    assert frame["status"].tolist() == ["empty", "empty"] and frame["loss"].isna().all()
    with pytest.raises(UserError, match="no runs"):
        runs.table([])


def test_what_differs_between_two_runs(tmp_path):
    values = {"loss": [3.0, 2.0, 1.0, 0.5], "same": [1, "nan"], "mfu": [0.1, 0.2], "late": [None, None, 4.0]}
    config = {"optim": {"lr": 0.1}, "data": {"source": "shapes", "batch_size": 4}, "only": 1}
    a = write_run(tmp_path / "a", values, config, records=100)
    values = {"loss": [3.0, 2.5, 1.25], "same": [1, "nan"], "mfu": [0.3, 0.4], "late": [1.0]}
    b = write_run(tmp_path / "b", values, {"optim": {"lr": 0.3}, "data": {"source": "digits", "batch_size": 4}}, records=90,
                  code={"commit": "f" * 40, "dirty": True}, versions={"jax": "0.12.0", "python": "3.11.0"})  # fmt: skip
    (a / "artifacts.json").write_text('{"tokenizer.json": "12ab"}')
    difference = runs.compare(a, b)
    assert difference.config == {"optim.lr": (0.1, 0.3), "only": (1, "absent"), "steps": (40, 30)}
    assert difference.code == {"commit": (COMMIT, f"{'f' * 40}+"), "jax": ("0.10.0", "0.12.0")}
    assert difference.data == {
        "data.source": ("shapes", "digits"), "records": (100, 90), "tokenizer.json": ("12ab", "absent"),
    }  # fmt: skip
    assert difference.curves.to_dict("records") == [
        {"metric": "loss", "step": 30, "a": 1.0, "b": 1.25, "first": 20, "largest": 0.5}
    ]
    assert (difference.equal, difference.separate, difference.uncommitted) == (1, ("late",), ("b",))
    text = str(difference)
    assert "optim.lr  0.1  0.3" in text and "without a common step: late" in text


def test_a_run_does_not_differ_from_itself(folder):
    difference = runs.compare(folder / "lr0.1-seed0", folder / "lr0.1-seed0")
    assert difference.config == difference.code == difference.data == {} and difference.curves.empty
    assert "no difference" in str(difference)
    write_config(folder / "new", {"steps": 1})
    assert "not recorded" in str(runs.compare(folder / "lr0.1-seed0", folder / "new"))
