"""How good a CLIP is: zero-shot classification with prompt ensembling, retrieval both ways, and a linear probe.

Every share comes with the bounds of its 95 % confidence interval where `bootstrap` says of how many resamples: `…/low` and
`…/high`.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

from clip_jax.templates import read_templates, sentences
from train_jax import inference
from train_jax.data.images import Preprocess
from train_jax.data.images import normalize as normalize_pixels
from train_jax.data.sources import DataError, Source
from train_jax.data.text import AnyTokenizer
from train_jax.errors import ConfigError

RANKS = (1, 5, 10)


def defaults() -> ConfigDict:
    """Evaluator type -> its options."""
    c = ConfigDict()
    # source "": that of the training data. bootstrap: resamples of the queries for the confidence interval; 0: none.
    data = {"source": "", "split": "test", "batch_size": 256, "bootstrap": 0}
    c.zero_shot = ConfigDict(data | {"templates": ("a photo of a {}.",)})  # "@FILE": the lines of a file
    c.zero_shot.per_class = False  # also each class's own top1
    c.retrieval = ConfigDict(data | {"gallery": 1000})  # gallery: the first so many images; 0: all
    c.linear_probe = ConfigDict(data | {"train_split": "train", "most": 10_000})  # most: training images that are used
    c.linear_probe.strength = (
        0.316  # of the L2 penalty, as CLIP's authors set it for ImageNet (scikit-learn's C inverted)
    )
    return c


def factories(module: nn.Module, tokenizer: AnyTokenizer, preprocess: Preprocess) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`, for `train_jax.task.Task`.

    Args:
      module: has the methods `encode_image` and `encode_text` of `clip_jax.model.CLIP`.
    """

    def embed_image(variables, batch):
        pixels = normalize_pixels(batch["image"], preprocess.mean, preprocess.std)
        return module.apply(variables, pixels, method="encode_image")

    def embed_text(variables, batch):
        return module.apply(variables, batch["text"], method="encode_text")

    def image_example(record, rng):
        return {"image": preprocess(record["image"])}

    def text_example(text, rng):
        return {"text": tokenizer.encode([text])[0]}

    def zero_shot(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        if source.label_names is None:
            raise DataError(f"{source.name} has no classes: zero_shot needs a source with labels")
        try:
            templates = read_templates(options.templates)
        except ValueError as error:
            raise ConfigError(f"zero_shot: {error}") from error
        names = source.label_names
        labelled, labels = _labelled(source)
        embed_images = _embedder(context, embed_image, image_example, options.batch_size)
        embed_texts = _embedder(context, embed_text, text_example, options.batch_size)

        def evaluate(params, extra):
            weights = {"params": params["clip"], **extra}
            classes = (
                embed_texts(weights, sentences(names, templates)).reshape(len(names), len(templates), -1).mean(axis=1)
            )
            classes /= np.linalg.norm(classes, axis=1, keepdims=True)
            nearest = _nearest(embed_images(weights, labelled), classes, 5)
            right = nearest == labels[:, None]
            metrics = _share("top1", right[:, 0], options.bootstrap) | {"images": len(labels)}
            if len(names) > 5:
                metrics |= _share("top5", right.any(axis=1), options.bootstrap)
            if options.per_class:
                found = np.unique(labels)
                metrics |= {f"top1/{names[label]}": float(right[labels == label, 0].mean()) for label in found}
            return metrics, {}

        return evaluate

    def retrieval(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        gallery = _First(source, options.gallery or len(source))
        records = [source.described(number) for number in range(len(gallery))]
        captions, owners = _captions(records)
        embed_images = _embedder(context, embed_image, image_example, options.batch_size)
        embed_texts = _embedder(context, embed_text, text_example, options.batch_size)

        def relevant(caption: int, image: int) -> bool:
            if source.is_true is not None:
                return source.is_true(captions[caption], records[image])
            return image in owners[caption]

        def evaluate(params, extra):
            weights = {"params": params["clip"], **extra}
            images, texts = embed_images(weights, gallery), embed_texts(weights, captions)
            metrics = {"images": len(gallery), "captions": len(captions)}
            metrics |= _recall(texts, images, relevant, "text_to_image", options.bootstrap)
            of_image = functools.partial(_swapped, relevant)
            metrics |= _recall(images, texts, of_image, "image_to_text", options.bootstrap)
            return metrics, {}

        return evaluate

    def linear_probe(options: ConfigDict, context):
        train, test = (context.source(options.source, split) for split in (options.train_split, options.split))
        train_images, train_labels = _labelled(train, options.most)
        images, labels = _labelled(test)
        if len(set(train_labels.tolist())) < 2:
            raise DataError(f"{train.name}: a linear probe needs pictures of two classes at least")
        embed_images = _embedder(context, embed_image, image_example, options.batch_size)

        def evaluate(params, extra):
            weights = {"params": params["clip"], **extra}
            probe = LogisticRegression(C=1 / options.strength, max_iter=1000)  # L-BFGS, as in section 3.2 of the paper
            probe.fit(embed_images(weights, train_images), train_labels)
            right = probe.predict(embed_images(weights, images)) == labels
            return _share("top1", right, options.bootstrap) | {"images": len(labels), "train": len(train_labels)}, {}

        return evaluate

    return {"zero_shot": zero_shot, "retrieval": retrieval, "linear_probe": linear_probe}


def _swapped(relevant: Callable[[int, int], bool], image: int, caption: int) -> bool:
    return relevant(caption, image)


def _share(name: str, right: np.ndarray, resamples: int) -> dict[str, float]:
    """The share of right answers and, with resamples, the 2.5 % and 97.5 % quantiles of their bootstrap."""
    found = {name: float(right.mean())}
    if resamples:
        # Of n answers, k of them right, a resample holds a binomial number of right ones.
        drawn = np.random.default_rng(0).binomial(len(right), right.mean(), resamples) / len(right)
        low, high = np.quantile(drawn, (0.025, 0.975))
        found |= {f"{name}/low": float(low), f"{name}/high": float(high)}
    return found


def _embedder(context, function: Callable, example: Callable, batch_size: int) -> Callable:
    """`embed(variables, records) -> float32 [len(records), dim]`, on every host; compiled once, for all evaluations."""
    run = context.jit(function)

    def embed(variables, records: Sequence) -> np.ndarray:
        outputs = ((run(variables, batch), real) for batch, real in context.batches(records, example, batch_size))
        return np.concatenate([rows[:real] for rows, real in inference.overlapped(outputs)])

    return embed


def _nearest(queries: np.ndarray, items: np.ndarray, most: int) -> np.ndarray:
    """Each query's nearest items, best first: int [queries, min(most, items)].

    Of equally near ones the first comes first: a model that maps everything to one place gets what chance would give.
    """
    rows = max(1, 2**24 // len(items))  # 64 MiB of similarities at a time
    parts = [
        np.argsort(-(queries[start : start + rows] @ items.T), axis=1, kind="stable")[:, :most]
        for start in range(0, len(queries), rows)
    ]
    return np.concatenate(parts)


def _recall(queries: np.ndarray, items: np.ndarray, relevant: Callable, name: str, resamples: int) -> dict[str, float]:
    """Share of queries with a relevant item among the k nearest; only those k are looked at."""
    nearest = _nearest(queries, items, max(RANKS))
    first = np.full(len(queries), max(RANKS))
    for query, row in enumerate(nearest):
        hits = (rank for rank, item in enumerate(row) if relevant(query, int(item)))
        first[query] = next(hits, max(RANKS))
    found: dict[str, float] = {}
    for k in RANKS:
        if k <= len(items):
            found |= _share(f"{name}/r{k}", first < k, resamples)
    return found


class _First(Sequence):
    """The first records of a source."""

    def __init__(self, source: Source, most: int):
        self._source, self._length = source, min(most, len(source))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int):
        return self._source[index]


class _At(Sequence):
    """The records of a source at some places."""

    def __init__(self, source: Source | Sequence, places: np.ndarray):
        self._source, self._places = source, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int):
        return self._source[int(self._places[index])]


def _labelled(source: Source, most: int | None = None) -> tuple[_At, np.ndarray]:
    """The records that have a class, and their classes; of more than `most`, so many at random."""
    places = np.arange(len(source)) if most is None else np.random.default_rng(0).permutation(len(source))
    described = ((place, source.described(int(place)).get("label", -1)) for place in places)
    found = sorted(itertools.islice((pair for pair in described if pair[1] >= 0), most))
    if not found:
        raise DataError(f"{source.name}: no record has a label")
    places, labels = np.array(found).T
    return _At(source, places), labels


def _captions(records: Sequence) -> tuple[list[str], list[set[int]]]:
    """The distinct captions of some records, and for each the records it belongs to."""
    owners: dict[str, set[int]] = {}
    for number, record in enumerate(records):
        for caption in record["captions"]:
            owners.setdefault(caption, set()).add(number)
    return list(owners), list(owners.values())
