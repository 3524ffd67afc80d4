"""Summaries over seeds: means, intervals against closed forms and resampling by hand, differences against a double loop."""

import itertools
import math
import statistics

import numpy as np
import pytest
from written_runs import seeds_and_rates, write_run

from train_jax import runs
from train_jax.errors import UserError
from train_jax.runs.summaries import bootstrap_interval


def exact_interval(values):
    """Percentiles 2.5 and 97.5 of the mean over all n^n resamples."""
    means = [statistics.fmean(resample) for resample in itertools.product(values, repeat=len(values))]
    return np.percentile(means, [2.5, 97.5], method="inverted_cdf")


@pytest.mark.parametrize("values", [[1.0, 4.0], [0.5, 0.9, 1.0], [3.0, 1.0, 4.0, 1.0, 5.0], [2.0, 2.0]])
def test_the_interval_is_that_of_all_resamples(values):
    # 9,999 random ones of them: percentiles move by at most one step between neighbouring means.
    np.testing.assert_allclose(bootstrap_interval(values), exact_interval(values), atol=0.1 * np.ptp(values))


def test_the_interval_of_two_values_is_their_range():
    """Each of both means that are not the middle has probability 1/4 > 2.5 %."""
    assert bootstrap_interval([4.0, 1.0]) == (1.0, 4.0)


def test_a_large_sample_has_the_interval_of_the_central_limit_theorem():
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.1 * half)
    assert bootstrap_interval(values) == (low, high), "the same resamples each time"


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_no_interval_without_two_finite_values(values):
    assert all(map(math.isnan, bootstrap_interval(values)))


def test_mean_over_seeds(tmp_path):
    values = seeds_and_rates(tmp_path)
    frame = runs.summary(tmp_path, "test/top1", ["optim.lr"])
    assert list(frame.columns) == ["optim.lr", "runs", "left_out", "seeds", "mean", "low", "high"]
    for row, lr in zip(frame.to_dict("records"), (0.1, 0.3), strict=True):
        group = [value for (rate, _), value in values.items() if rate == lr]
        assert (row["optim.lr"], row["runs"], row["left_out"], row["seeds"]) == (lr, 3, 0, 3)
        assert row["mean"] == pytest.approx(statistics.fmean(group))
        assert (row["low"], row["high"]) == bootstrap_interval(group)
        assert min(group) - 1e-9 < row["low"] < row["mean"] < row["high"] < max(group) + 1e-9
    best = runs.summary(runs.table(tmp_path), "test/top1", ["optim.lr"], value="best")
    np.testing.assert_allclose(best["mean"], frame["mean"] + 0.1)
    np.testing.assert_allclose(runs.summary(tmp_path, "loss", ["optim.lr"], value=20)["mean"], 1)


def test_runs_without_a_value_are_left_out_and_counted(tmp_path):
    write_run(tmp_path / "0", {"loss": [2, 1]}, {"seed": 0})
    write_run(tmp_path / "1", {"loss": [2, 1]}, {"seed": 1}, steps=90)
    write_run(tmp_path / "2", {"loss": [2, "nan"]}, {"seed": 2})
    write_run(tmp_path / "3", {"loss": [8]}, {"seed": 3})
    assert runs.summary(tmp_path, "loss", ["steps"]).to_dict("list")["left_out"] == [0, 1, 1]
    frame = runs.summary(tmp_path, "loss", ["data.batch_size"])
    assert frame[["runs", "left_out", "seeds", "mean"]].to_numpy().tolist() == [[2, 2, 2, 4.5]]
    at_10 = runs.summary(tmp_path, "loss", ["data.batch_size"], value=10)
    assert at_10[["runs", "left_out", "mean"]].to_numpy().tolist() == [[4, 0, 3.5]], "unfinished runs have this value"


def test_a_single_seed_has_no_interval(tmp_path):
    for lr in (0.1, 0.2):
        for width in (8, 16):
            write_run(tmp_path / f"{lr}-{width}", {"loss": [lr * width]}, {"optim": {"lr": lr}, "width": width, "seed": 3})
    frame = runs.summary(tmp_path, "loss", ["optim.lr"], {"optim.lr": 0.1})
    assert frame["seeds"].tolist() == [1, 1] and frame["runs"].tolist() == [2, 2]
    assert frame[["low", "high", "difference_low"]].isna().all(axis=None)
    np.testing.assert_allclose(frame["mean"], [1.2, 2.4])
    np.testing.assert_allclose(frame["difference"], [np.nan, 1.2])


def test_paired_differences_by_brute_force(tmp_path):
    """Rates x widths x seeds with some runs missing, some repeated, some unfinished."""
    rng = np.random.default_rng(0)
    table = []
    for number, (lr, width, seed) in enumerate([*itertools.product((0.1, 0.3, 1), (8, 16), range(4)), (0.3, 8, 1)]):
        if number in (2, 13, 21):
            continue
        value, is_finished = float(rng.standard_normal()), number not in (5, 10)
        config = {"optim": {"lr": lr}, "model": {"width": width}, "seed": seed}
        write_run(tmp_path / f"{number:02}", {"psnr": [value]}, config, steps=10 if is_finished else 20)
        if is_finished:
            table.append((lr, width, seed, value))

    def differences(is_member, key):
        """seed -> mean over pairs of (mean of equal runs) - (mean of the baseline's runs with the same key)."""
        pairs = {}
        for k in sorted({key(*row[:3]) for row in table}):
            ours = [row[3] for row in table if is_member(*row[:2]) and key(*row[:3]) == k]
            others = [row[3] for row in table if row[0] == 0.3 and key(*row[:3]) == k]
            if ours and others:
                pairs.setdefault(k[-1], []).append(statistics.fmean(ours) - statistics.fmean(others))
        return pairs

    by_rate = runs.summary(tmp_path, "psnr", ["optim.lr"], {"optim.lr": 0.3}).set_index("optim.lr")
    by_both = runs.summary(tmp_path, "psnr", ["optim.lr", "model.width"], {"optim.lr": 0.3}).set_index(
        ["optim.lr", "model.width"]
    )
    assert by_rate["left_out"].sum() == 2
    for lr in (0.1, 1):
        check(by_rate.loc[lr], differences(lambda r, w, lr=lr: r == lr, lambda r, w, s: (w, s)))
        for width in (8, 16):
            pairs = differences(lambda r, w, lr=lr, width=width: (r, w) == (lr, width), lambda r, w, s: (w, s))
            check(by_both.loc[(lr, width)], pairs)
    assert by_rate.loc[0.3, "pairs"] == 0 and math.isnan(by_rate.loc[0.3, "difference"])


def check(row, pairs):
    by_seed = [statistics.fmean(values) for values in pairs.values()]
    assert row["pairs"] == sum(map(len, pairs.values()))
    assert row["difference"] == pytest.approx(statistics.fmean(by_seed))
    np.testing.assert_allclose((row["difference_low"], row["difference_high"]), bootstrap_interval(by_seed))


def test_options_that_change_together_are_a_baseline_together(tmp_path):
    for lr, size, value in ((0.1, 8, 1.0), (0.2, 16, 3.0)):
        for seed in (0, 1):
            config = {"optim": {"lr": lr}, "data": {"batch_size": size}, "seed": seed}
            write_run(tmp_path / f"{lr}-{seed}", {"psnr": [value + seed]}, config)
    by = ["data.batch_size", "optim.lr"]
    alone = runs.summary(tmp_path, "psnr", by, {"optim.lr": 0.1})
    assert alone["pairs"].tolist() == [0, 0], "no run has the other rate and the same batch"
    together = runs.summary(tmp_path, "psnr", by, {"optim.lr": 0.1, "data.batch_size": 8})
    assert together["pairs"].tolist() == [0, 2] and together["difference"].tolist()[1] == 2


def test_mistakes(tmp_path):
    seeds_and_rates(tmp_path)
    frame = runs.table(tmp_path)
    with pytest.raises(UserError, match=r"no run has an option 'optim.rate'"):
        runs.summary(tmp_path, "loss", ["optim.rate"])
    with pytest.raises(UserError, match="the table has no column 'loss .at 5.'"):
        runs.summary(frame, "loss", ["optim.lr"], value=5)
    with pytest.raises(UserError, match="'seed' of the baseline is not one of by = optim.lr"):
        runs.summary(frame, "loss", ["optim.lr"], {"seed": 0})
    with pytest.raises(UserError, match=r"no run with a value of 'loss' is the baseline, optim.lr = 0.2"):
        runs.summary(frame, "loss", ["optim.lr"], {"optim.lr": 0.2})
    frame.attrs.clear()
    with pytest.raises(UserError, match="make it with train_jax.runs.table"):
        runs.summary(frame, "loss", ["optim.lr"])
