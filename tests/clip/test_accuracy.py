"""Accuracies, their intervals and nearest neighbours, against SciPy, scikit-learn, simulations and loops."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from clip_jax import accuracy, probes


@pytest.mark.parametrize("correct, count", [(0, 1), (1, 1), (0, 40), (13, 40), (40, 40), (9_999, 50_000)])
def test_wilson_limits_are_those_of_scipy(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(method="wilson")
    metrics = accuracy.compute_accuracy("top1", np.arange(count) < correct, True)
    limits = pytest.approx((expected.low, expected.high), abs=1e-12)
    assert metrics["top1"] == correct / count and (metrics["top1/low"], metrics["top1/high"]) == limits
    assert accuracy.compute_accuracy("top1", np.arange(count) < correct, False) == {"top1": correct / count}


def test_the_mean_per_class_is_the_balanced_accuracy():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.choice([0, 0, 0, 2, 5], 80), [7]])
    predicted = np.where(rng.random(81) < 0.6, labels, 0)
    metrics = accuracy.compute_mean_per_class(predicted == labels, labels, False)
    assert metrics == {"mean_per_class": pytest.approx(balanced_accuracy_score(labels, predicted))}


def test_the_interval_of_one_class_is_wilsons():
    correct = np.arange(30) < 12
    metrics = accuracy.compute_mean_per_class(correct, np.full(30, 3), True)
    expected = accuracy.compute_accuracy("mean_per_class", correct, True)
    assert metrics == pytest.approx(expected)


def test_the_interval_of_the_mean_per_class_covers_the_true_mean():
    """Of 600 simulated data sets with classes of different size and difficulty, 95 % +- 2.7 % (3 standard errors)."""
    shares, counts = np.array([0.15, 0.5, 0.95]), np.array([20, 50, 120])
    labels, rng, covered = np.repeat(np.arange(3), counts), np.random.default_rng(0), 0
    for _ in range(600):
        metrics = accuracy.compute_mean_per_class(rng.random(len(labels)) < shares[labels], labels, True)
        covered += metrics["mean_per_class/low"] <= shares.mean() <= metrics["mean_per_class/high"]
    assert abs(covered / 600 - 0.95) < 0.027


@pytest.mark.parametrize("k", [1, 5, 30, 99])
def test_nearest_items_are_those_of_a_stable_sort(k):
    """Also where many similarities are equal, and some are not numbers."""
    rng = np.random.default_rng(0)
    queries, items = rng.integers(-1, 2, (20, 3)).astype(np.float32), rng.integers(-1, 2, (40, 3)).astype(np.float32)
    items[[3, 20, 21]] = np.nan
    expected = np.argsort(-(queries @ items.T), axis=1, kind="stable")[:, :k]  # NaN is last
    np.testing.assert_array_equal(accuracy.find_nearest(queries, items, k), expected)


@pytest.mark.parametrize("peak", [0, 1, 37, 64, 90, 96])
def test_the_sweep_finds_the_peak_of_a_hill(peak):
    tried = []

    def validate(strength: float) -> float:
        tried.append(strength)
        return -abs(np.log10(strength) - np.log10(probes.STRENGTHS[peak]))

    assert probes.choose_strength(validate) == probes.STRENGTHS[peak]
    assert len(tried) == len(set(tried)) <= 15 and set(probes.STRENGTHS[::16]) <= set(tried)
    np.testing.assert_allclose(probes.STRENGTHS, np.logspace(-6, 6, 97))


def test_a_plateau_gives_the_smallest_strength():
    assert probes.choose_strength(lambda strength: 0.5) == probes.STRENGTHS[0]


def test_the_mean_over_samples_has_students_interval():
    values = np.array([0.5, 0.6, 0.55, 0.7])
    metrics = probes.mean_over_samples("top1", values, True)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert metrics == pytest.approx({"top1": values.mean(), "top1/low": low, "top1/high": high})
    assert probes.mean_over_samples("top1", values[:1], True) == {"top1": 0.5}
