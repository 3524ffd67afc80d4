"""Evaluators of frozen image features: linear probe, few-shot classification, weighted nearest neighbours.

Features are embeddings of unit norm, after the projection. The published probes of CLIP use features before it.
"""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from clip_jax.accuracy import AccuracyOptions, compute_accuracy, compute_mean_per_class, vote
from clip_jax.encoders import Encoders, select_labelled
from train_jax.data.sources import DataError, Source
from train_jax.data.subset import Subset
from train_jax.options import option

# Grid of the sweep over the strength of the L2 penalty: 1e-6 to 1e6, 8 steps per decade (arXiv 2103.00020, appendix A.3).
STRENGTHS = tuple(float(10.0 ** (-6 + step / 8)) for step in range(97))
_FIRST_STRIDE = 16  # the sweep starts with every second decade
_VALIDATED = 5  # every fifth image of a class is in the validation part of a sweep


@dataclasses.dataclass(frozen=True)
class ProbeOptions(AccuracyOptions):
    """Options of evaluators that learn from labelled images."""

    train_split: str = option("train", "split of the source to learn from")
    most: int = option(10_000, "maximum number of images to learn from, a random sample; 0: all", least=0)


@dataclasses.dataclass(frozen=True)
class LinearProbeOptions(ProbeOptions):
    """Options of the linear probe."""

    # CLIP's value for ImageNet; the inverse of scikit-learn's C.
    strength: float = option(
        0.316, "strength of the L2 penalty; 0: the best for a fifth of the training images, of 97 values", least=0
    )


@dataclasses.dataclass(frozen=True)
class FewShotOptions(AccuracyOptions):
    """Options of few-shot classification by a linear probe."""

    train_split: str = option("train", "split of the source to learn from")
    shots: tuple[int, ...] = option((1, 2, 4, 8, 16), "numbers of images per class", least=1)
    samples: int = option(5, "number of random samples of the images", least=1)
    strength: float = option(0.316, "strength of the L2 penalty", above=0)


@dataclasses.dataclass(frozen=True)
class KNNOptions(ProbeOptions):
    """Options of the weighted nearest-neighbour classifier."""

    k: int = option(20, "number of neighbours", least=1)
    temperature: float = option(0.07, "temperature of the neighbours' weights", above=0)


class _Probe:
    """Evaluator that learns from the images of one split and is tested on those of another."""

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options = options
        train, test = (context.source_of(options, split) for split in (options.train_split, options.split))
        self._train, self._train_labels = select_labelled(train, options.most)
        self._test, self._test_labels = select_labelled(test)
        self._classes = len(train.label_names or ()) or 1 + int(max(self._train_labels.max(), self._test_labels.max()))
        if len(np.unique(self._train_labels)) < 2:
            raise DataError(f"{train.name}: this evaluator needs images of at least two classes")
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)

    def _encode(self, params, mutable_variables) -> tuple[np.ndarray, np.ndarray]:
        variables = {"params": params["clip"], **mutable_variables}
        return self._encode_images(variables, self._train), self._encode_images(variables, self._test)

    def _measure(self, correct: np.ndarray) -> dict[str, float | int]:
        intervals = self._options.intervals
        metrics = compute_accuracy("top1", correct, intervals)
        metrics |= compute_mean_per_class(correct, self._test_labels, intervals)
        return metrics | {"images": len(correct), "train": len(self._train_labels)}


class LinearProbe(_Probe):
    """Accuracy of a logistic regression on frozen image features (arXiv 2103.00020, section 3.2 and appendix A.3)."""

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        super().__init__(encoders, options, context)
        self._validated = None
        if not options.strength:
            self._validated = split_validation(self._train_labels)
            if not self._validated.any() or len(np.unique(self._train_labels[~self._validated])) < 2:
                raise DataError(
                    f"{options.train_split}: to choose the strength of its penalty, a linear probe needs {_VALIDATED} "
                    "or more images of a class, a fifth of which validate it: use a larger split or a config with a strength"
                )

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        """Returns accuracies as fractions, and the strength of the penalty; no pictures."""
        train, test = self._encode(params, mutable_variables)
        strength, chosen = self._options.strength, {}
        if self._validated is not None:
            strength = choose_strength(lambda strength: self._validate(train, strength))
            chosen = {"strength": strength}
        correct = fit(train, self._train_labels, strength).predict(test) == self._test_labels
        return self._measure(correct) | chosen, {}

    def _validate(self, features: np.ndarray, strength: float) -> float:
        """Returns the accuracy on the validation part of a probe that learns from the other training images."""
        held, labels = self._validated, self._train_labels
        return float(np.mean(fit(features[~held], labels[~held], strength).predict(features[held]) == labels[held]))


class FewShot:
    """Accuracy of logistic regressions on few images per class (arXiv 2103.00020, figure 6): means over random samples.

    The limits of `intervals` are those of Student's t for the mean over samples.
    """

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options = options
        train, test = (context.source_of(options, split) for split in (options.train_split, options.split))
        self._test, self._test_labels = select_labelled(test)
        records, labels = select_labelled(train)
        drawn = [sample_per_class(labels, max(options.shots), seed, train) for seed in range(options.samples)]
        used = np.unique(np.concatenate([index.ravel() for index in drawn]))
        self._train, self._train_labels = Subset(train, np.asarray(records.indices)[used]), labels[used]
        self._drawn = [np.searchsorted(used, index) for index in drawn]
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        """Returns accuracies as fractions for each number of images per class; no pictures."""
        variables = {"params": params["clip"], **mutable_variables}
        train, test = self._encode_images(variables, self._train), self._encode_images(variables, self._test)
        metrics = {"images": len(test), "samples": len(self._drawn)}
        for shots in self._options.shots:
            accuracies = []
            for drawn in self._drawn:
                rows = drawn[:, :shots].ravel()  # more shots include fewer
                probe = fit(train[rows], self._train_labels[rows], self._options.strength)
                accuracies.append(float(np.mean(probe.predict(test) == self._test_labels)))
            metrics |= mean_over_samples(f"shots{shots}/top1", np.array(accuracies), self._options.intervals)
        return metrics, {}


class KNN(_Probe):
    """Accuracy of the weighted nearest-neighbour classifier of DINO (arXiv 2104.14294, section 4.1)."""

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict]:
        """Returns accuracies as fractions; no pictures."""
        train, test = self._encode(params, mutable_variables)
        options = {"classes": self._classes, "k": self._options.k, "temperature": self._options.temperature}
        ranked = np.argsort(-vote(test, train, self._train_labels, **options), axis=1, kind="stable")
        correct = ranked[:, :5] == self._test_labels[:, None]
        metrics = self._measure(correct[:, 0])
        if self._classes > 5:
            metrics |= compute_accuracy("top5", correct.any(axis=1), self._options.intervals)
        return metrics, {}


def fit(features: np.ndarray, labels: np.ndarray, strength: float):
    """Fits a logistic regression by L-BFGS in at most 1,000 iterations, as in CLIP's paper (appendix A.3).

    Args:
      strength: weight of half the squared norm of the coefficients, beside the sum of the losses of all images.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # lazy import: takes as long as all others together

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the protocol
        warnings.filterwarnings("ignore", "The number of unique classes is greater")  # of one image per class
        return LogisticRegression(C=1 / strength, max_iter=1000).fit(features, labels)


def choose_strength(validate: Callable[[float], float]) -> float:
    """Chooses a value of STRENGTHS by the search of CLIP's paper (appendix A.3): around the peak, in ever smaller steps.

    Args:
      validate: function that returns the validation accuracy of a strength; the first of equal ones is chosen.
    """
    scores: dict[int, float] = {}
    stride, tried = _FIRST_STRIDE, range(0, len(STRENGTHS), _FIRST_STRIDE)
    while stride:
        for step in tried:
            if step not in scores:
                scores[step] = validate(STRENGTHS[step])
        peak = max(sorted(scores), key=lambda step: scores[step])
        stride //= 2
        tried = [step for step in (peak - stride, peak + stride) if 0 <= step < len(STRENGTHS)]
    return STRENGTHS[peak]


def split_validation(labels: np.ndarray) -> np.ndarray:
    """Returns a mask of the validation part, bool [n]: a random fifth of the images of each class, rounded down."""
    held = np.zeros(len(labels), bool)
    rng = np.random.default_rng(0)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held[members[: len(members) // _VALIDATED]] = True
    return held


def sample_per_class(labels: np.ndarray, count: int, seed: int, source: Source) -> np.ndarray:
    """Samples images of each class: int [classes, count], indices into `labels`.

    Raises DataError for a class with fewer images.
    """
    rng, rows = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            name = source.label_names[label] if source.label_names else label
            raise DataError(f"{source.name}: class {name!r} has {len(members)} image(s), fewer than {count} shots")
        rows.append(rng.permutation(members)[:count])
    if len(rows) < 2:
        raise DataError(f"{source.name}: this evaluator needs images of at least two classes")
    return np.stack(rows)


def mean_over_samples(name: str, values: np.ndarray, intervals: bool) -> dict[str, float]:
    """Computes the mean of independent samples and, for two or more of them, its 95 % interval by Student's t."""
    metrics = {name: float(values.mean())}
    if intervals and len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        metrics |= {f"{name}/low": metrics[name] - half, f"{name}/high": metrics[name] + half}
    return metrics
