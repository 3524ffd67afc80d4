"""How good a CLIP is: zero-shot classification with prompt ensembling, and retrieval both ways."""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from train_jax.data.images import Preprocess
from train_jax.data.images import normalize as normalize_pixels
from train_jax.data.sources import DataError, Source
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError

RANKS = (1, 5, 10)


def defaults() -> ConfigDict:
    """Evaluator type -> its options."""
    c = ConfigDict()
    data = {"source": "", "split": "test", "batch_size": 256}  # source "": that of the training data
    c.zero_shot = ConfigDict(data | {"templates": ("a photo of a {}.",)})
    c.zero_shot.per_class = False  # also each class's own top1
    c.retrieval = ConfigDict(data | {"gallery": 1000})  # gallery: the first so many images; 0: all
    return c


def factories(module: nn.Module, tokenizer: Tokenizer, preprocess: Preprocess) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`, for `train_jax.task.Task`.

    Args:
      module: has the methods `encode_image` and `encode_text` of `clip_jax.model.CLIP`.
    """

    def embed_image(params, batch):
        pixels = normalize_pixels(batch["image"], preprocess.mean, preprocess.std)
        return module.apply({"params": params["clip"]}, pixels, method="encode_image")

    def embed_text(params, batch):
        return module.apply({"params": params["clip"]}, batch["text"], method="encode_text")

    def image_example(record, rng):
        return {"image": preprocess(record["image"])}

    def text_example(text, rng):
        return {"text": tokenizer.encode([text])[0]}

    def zero_shot(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        if source.label_names is None:
            raise DataError(f"{source.name} has no classes: zero_shot needs a source with labels")
        if not options.templates:
            raise ConfigError("zero_shot needs templates, such as ('a photo of a {}.',)")
        for template in options.templates:
            if "{}" not in template:
                raise ConfigError(f"zero_shot template {template!r} has no {{}} for the name of the class")
        names = source.label_names
        labelled, labels = _labelled(source)
        sentences = [template.replace("{}", name) for name in names for template in options.templates]
        embed_images = _embedder(context, embed_image, image_example, options.batch_size)
        embed_texts = _embedder(context, embed_text, text_example, options.batch_size)

        def evaluate(params, extra):
            classes = embed_texts(params, sentences).reshape(len(names), len(options.templates), -1).mean(axis=1)
            classes /= np.linalg.norm(classes, axis=1, keepdims=True)
            nearest = _nearest(embed_images(params, labelled), classes, 5)
            right = nearest == labels[:, None]
            metrics = {"top1": float(right[:, 0].mean()), "images": len(labels)}
            if len(names) > 5:
                metrics["top5"] = float(right.any(axis=1).mean())
            if options.per_class:
                found = np.unique(labels)
                metrics |= {f"top1/{names[label]}": float(right[labels == label, 0].mean()) for label in found}
            return metrics, {}

        return evaluate

    def retrieval(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        gallery = _First(source, options.gallery or len(source))
        captions, owners = _captions(gallery)
        truths = None
        if source.is_true is not None:
            records = (gallery[number] for number in range(len(gallery)))
            truths = [{key: value for key, value in record.items() if key != "image"} for record in records]
        embed_images = _embedder(context, embed_image, image_example, options.batch_size)
        embed_texts = _embedder(context, embed_text, text_example, options.batch_size)

        def relevant(caption: int, image: int) -> bool:
            if truths is not None:
                return source.is_true(captions[caption], truths[image])
            return image in owners[caption]

        def evaluate(params, extra):
            images, texts = embed_images(params, gallery), embed_texts(params, captions)
            metrics = {"images": len(gallery), "captions": len(captions)}
            metrics |= _recall(texts, images, relevant, "text_to_image")
            metrics |= _recall(images, texts, lambda image, caption: relevant(caption, image), "image_to_text")
            return metrics, {}

        return evaluate

    return {"zero_shot": zero_shot, "retrieval": retrieval}


def _embedder(context, function: Callable, example: Callable, batch_size: int) -> Callable:
    """`embed(params, records) -> float32 [len(records), dim]`, on every host; compiled once, for all evaluations."""
    run = context.jit(function)

    def embed(params, records: Sequence) -> np.ndarray:
        # The device computes one batch while the next is read.
        found = [(run(params, batch), real) for batch, real in context.batches(records, example, batch_size)]
        return np.concatenate([np.asarray(x)[:real] for x, real in found])

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


def _recall(queries: np.ndarray, items: np.ndarray, relevant: Callable, name: str) -> dict[str, float]:
    """Share of queries with a relevant item among the k nearest; only those k are looked at."""
    nearest = _nearest(queries, items, max(RANKS))
    first = np.full(len(queries), max(RANKS))
    for query, row in enumerate(nearest):
        hits = (rank for rank, item in enumerate(row) if relevant(query, int(item)))
        first[query] = next(hits, max(RANKS))
    return {f"{name}/r{k}": float((first < k).mean()) for k in RANKS if k <= len(items)}


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

    def __init__(self, source: Source, places: np.ndarray):
        self._source, self._places = source, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int):
        return self._source[int(self._places[index])]


def _labelled(source: Source) -> tuple[_At, np.ndarray]:
    """The records that have a class, and their classes."""
    labels = np.array([source[i].get("label", -1) for i in range(len(source))])
    places = np.flatnonzero(labels >= 0)
    if not len(places):
        raise DataError(f"{source.name}: no record has a label")
    return _At(source, places), labels[places]


def _captions(records: Sequence) -> tuple[list[str], list[set[int]]]:
    """The distinct captions of some records, and for each the records it belongs to."""
    owners: dict[str, set[int]] = {}
    for number in range(len(records)):
        for caption in records[number]["captions"]:
            owners.setdefault(caption, set()).add(number)
    return list(owners), list(owners.values())
