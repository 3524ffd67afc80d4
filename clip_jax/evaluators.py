"""How good a CLIP is: zero-shot classification with prompt ensembling, and retrieval both ways."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from clip_jax.model import CLIP
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
    c.retrieval = ConfigDict(data | {"gallery": 1000})  # gallery: the first so many images; 0: all
    return c


def factories(module: CLIP, tokenizer: Tokenizer, preprocess: Preprocess) -> Mapping[str, Callable]:
    """Evaluator type -> `(options, context) -> evaluator`, for `train_jax.task.Task`."""

    def embed_image(params, batch):
        pixels = normalize_pixels(batch["image"], preprocess.mean, preprocess.std)
        return module.apply({"params": params["clip"]}, pixels, method="encode_image")

    def embed_text(params, batch):
        return module.apply({"params": params["clip"]}, batch["text"], method="encode_text")

    def image_example(record, rng):
        return {"image": preprocess(record["image"])}

    def text_example(text, rng):
        return {"text": tokenizer.encode([text])[0]}

    def embed_texts(context, params, texts: Sequence[str], batch_size: int) -> np.ndarray:
        return context.compute(embed_text, params, texts, text_example, batch_size)

    def zero_shot(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        if source.label_names is None:
            raise DataError(f"{source.name} has no classes: zero_shot needs a source with labels")
        for template in options.templates:
            if "{}" not in template:
                raise ConfigError(f"zero_shot template {template!r} has no {{}} for the name of the class")
        labelled, labels = _labelled(source)
        sentences = [t.replace("{}", name) for name in source.label_names for t in options.templates]

        def evaluate(params, extra):
            text = embed_texts(context, params, sentences, options.batch_size)
            weights = text.reshape(len(source.label_names), len(options.templates), -1).mean(axis=1)
            weights /= np.linalg.norm(weights, axis=1, keepdims=True)

            def predict(weights, batch):
                params, weights = weights
                cosines = embed_image(params, batch) @ weights.T
                return jax.lax.top_k(cosines, min(5, cosines.shape[1]))[1]

            found = context.compute(predict, (params, weights), labelled, image_example, options.batch_size)
            right = found == labels[:, None]
            metrics = {"top1": float(right[:, 0].mean()), "images": len(labels)}
            return metrics | ({"top5": float(right.any(axis=1).mean())} if found.shape[1] == 5 else {}), {}

        return evaluate

    def retrieval(options: ConfigDict, context):
        source = context.source(options.source, options.split)
        gallery = _First(source, options.gallery or len(source))
        captions, owners = _captions(gallery)

        def relevant(caption: int, image: int) -> bool:
            if source.is_true is not None:
                return source.is_true(captions[caption], gallery[image])
            return image in owners[caption]

        def evaluate(params, extra):
            images = context.compute(embed_image, params, gallery, image_example, options.batch_size)
            texts = embed_texts(context, params, captions, options.batch_size)
            metrics = {"images": len(gallery), "captions": len(captions)}
            metrics |= _recall(texts, images, relevant, "text_to_image")
            metrics |= _recall(images, texts, lambda image, caption: relevant(caption, image), "image_to_text")
            return metrics, {}

        return evaluate

    return {"zero_shot": zero_shot, "retrieval": retrieval}


def _recall(queries: np.ndarray, items: np.ndarray, relevant: Callable, name: str) -> dict[str, float]:
    """Share of queries with a relevant item among the k nearest; only those k are looked at."""
    most = min(max(RANKS), len(items))
    similar = queries @ items.T
    nearest = np.argpartition(-similar, most - 1, axis=1)[:, :most]
    nearest = np.take_along_axis(nearest, np.argsort(-np.take_along_axis(similar, nearest, 1), axis=1), 1)
    first = np.full(len(queries), most)
    for query, row in enumerate(nearest):
        hits = (rank for rank, item in enumerate(row) if relevant(query, int(item)))
        first[query] = next(hits, most)
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
