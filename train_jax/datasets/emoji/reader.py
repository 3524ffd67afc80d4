"""Reader of emoji: names the nearest drawing, by handcrafted features. It shares nothing with the models that it grades.

Pictures are described by `features`. Differences between artists' drawings of the same concept are made equally large in all
directions (within-class covariance normalisation: A. Hatch et al., Interspeech 2006), and drawings are compared by cosine.
Who drew a picture is told from its style by linear discriminant analysis.

A reader makes mistakes. `measure_accuracy` tells how many, on artists that it does not know, and `measure_artist_accuracy`
on things that it does not know. Evaluators report both.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from train_jax.datasets.emoji.captions import split_style
from train_jax.datasets.emoji.features import describe, describe_style
from train_jax.paths import AnyPath

FILE = "reader.npz"  # beside the records
_SHRINKAGE = 0.1  # share of the mean variance that is added to each direction
_CHUNK = 256  # pictures that are compared at a time


class NearestDrawing:
    """Gallery of described drawings, among which the nearest is found.

    Attributes:
      transform: float32 [features, features], the normalisation of differences between artists.
    """

    def __init__(self, features: Float[np.ndarray, "n features"], concepts: Sequence[str] | np.ndarray):
        self._mean = features.mean(axis=0)
        self.transform = _normalize_within(features - self._mean, np.unique(concepts, return_inverse=True)[1])
        self._gallery = self._embed(features)

    def _embed(self, features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n features"]:
        """Transforms features to vectors of unit norm."""
        vectors = (features - self._mean) @ self.transform
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)

    def find(self, features: Float[np.ndarray, "m features"]) -> Int[np.ndarray, "m"]:
        """Returns the index of the nearest drawing for each picture."""
        starts = range(0, len(features), _CHUNK)
        parts = [np.argmax(self._embed(features[i : i + _CHUNK]) @ self._gallery.T, axis=1) for i in starts]
        return np.concatenate([np.zeros(0, np.int64), *parts])


def _normalize_within(
    features: Float[np.ndarray, "n features"], labels: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "features features"]:
    """Returns the inverse square root of the covariance of features around the means of their classes, with shrinkage."""
    counts = np.bincount(labels)
    means = np.zeros((len(counts), features.shape[1]))
    np.add.at(means, labels, features)
    rest = features - (means / counts[:, None])[labels]
    covariance = rest.T @ rest / max(len(features) - len(counts), 1)
    scale = np.trace(covariance) / len(covariance) or 1.0
    values, vectors = np.linalg.eigh(covariance + _SHRINKAGE * scale * np.eye(len(covariance)))
    return ((vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)


def measure_accuracy(
    features: Float[np.ndarray, "n features"], values: np.ndarray, things: np.ndarray, artists: np.ndarray
) -> dict[str, float]:
    """Measures, for each artist, how often a reader that knows only the other artists tells a value, such as the concept.

    Args:
      values: what is told of each drawing: that of the nearest drawing.
      things: concepts. Only those that another artist draws count; artists without such a concept are left out.
    """
    accuracy = {}
    for artist in np.unique(artists).tolist():
        known = artists != artist
        asked = ~known & np.isin(things, things[known])
        if asked.any():
            nearest = NearestDrawing(features[known], things[known]).find(features[asked])
            accuracy[artist] = float(np.mean(values[known][nearest] == values[asked]))
    return accuracy


class ArtistClassifier:
    """Linear discriminant analysis of styles by artist, with equal priors and shrinkage.

    With fewer pictures than it needs, more than there are artists, the answer is always the first picture's artist.
    """

    def __init__(self, features: Float[np.ndarray, "n features"], artists: np.ndarray):
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        count = len(np.unique(artists))
        analysis = LinearDiscriminantAnalysis("lsqr", shrinkage=_SHRINKAGE, priors=np.full(count, 1 / count))
        self._analysis = analysis.fit(features, artists) if 1 < count < len(features) else None
        self._only = str(artists[0])

    def find(self, features: Float[np.ndarray, "m features"]) -> np.ndarray:
        """Returns the artist of each picture."""
        return np.full(len(features), self._only) if self._analysis is None else self._analysis.predict(features)


def measure_artist_accuracy(
    features: Float[np.ndarray, "n features"], artists: np.ndarray, families: np.ndarray, folds: int = 5
) -> float:
    """Measures how often the artist is told, the mean over artists, of things that the classifier does not know.

    Args:
      families: what is drawn; no family is in the training part and the test part of a fold.
    """
    names, family = np.unique(families, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[family] % folds
    found = np.empty(len(artists), artists.dtype)
    for number in range(min(folds, fold.max() + 1)):
        asked = fold == number
        found[asked] = ArtistClassifier(features[~asked], artists[~asked]).find(features[asked])
    return float(np.mean([np.mean(found[artists == artist] == artist) for artist in np.unique(artists)]))


def write(
    folder: AnyPath,
    ids: Sequence[str],
    features: np.ndarray,
    styles: np.ndarray,
    accuracy: Mapping[str, float],
) -> None:
    """Writes what `Reader` reads: features and style of each record by its id, and the accuracy of each part."""
    arrays = {"ids": np.asarray(ids), "features": features.astype(np.float16), "styles": styles.astype(np.float16)}
    arrays["accuracy"] = np.asarray(json.dumps(dict(accuracy)))
    with (folder / FILE).open("wb") as stream:
        np.savez(stream, **arrays)


class Reader:
    """Reader of pictures of a prepared data set; it knows the drawings of all artists and splits.

    Attributes:
      accuracy: "concept": share of drawings without skin tone, by an artist that the reader does not know, whose concept it
        tells; "tone": the same of skin tones; both are means over artists. "artist": share of drawings of things that it
        does not know whose artist it tells. Only what was measured.
    """

    def __init__(self, folder: AnyPath, load_records: Callable[[], Sequence[Mapping]]):
        """Reads the accuracy; drawings are read on first use.

        Args:
          load_records: `() -> records` of all splits, without pictures.
        """
        self._file, self._load_records = folder / FILE, load_records
        with self._file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            self.accuracy = json.loads(str(arrays["accuracy"]))
        self._nearest = self._artists = self._records = self._meanings = None

    def read(self, image: UInt8[np.ndarray, "size size 3"]) -> str:
        """Returns the concept of the nearest drawing."""
        return self._find(image)["concept"]

    def judge(self, image: UInt8[np.ndarray, "size size 3"], caption: str) -> dict[str, bool]:
        """Compares a caption with an image.

        Parts:
          concept: the nearest drawing is of a concept that has this name or keyword.
          tone: it has the skin tone that the caption names, if it names one.
          artist: the drawing is told to be by the artist whose style the caption names, if it does.
          correct: all of them.

        An article and capitals do not matter. Raises ValueError for a caption of no drawing.
        """
        record = self._find(image)
        text, artist = split_style(caption)
        meaning = self._meanings.get(text) or self._meanings.get(_simplify(text))
        if meaning is None:
            raise ValueError(f"{caption!r} is the caption of no emoji: write a name such as 'red apple', or a keyword")
        concepts, tones = meaning
        parts = {"concept": record["concept"] in concepts}
        if len(tones) == 1 and "" not in tones:
            parts["tone"] = record["tone"] in tones
        if artist:
            parts["artist"] = self._artists.find(describe_style(image)[None])[0] == artist
        return {"correct": all(parts.values())} | parts

    def _find(self, image: UInt8[np.ndarray, "size size 3"]) -> Mapping:
        """Returns the record of the nearest drawing."""
        if self._nearest is None:
            self._load()
        return self._records[int(self._nearest.find(describe(image)[None])[0])]

    def _load(self) -> None:
        by_id = {record["id"]: record for record in self._load_records()}
        with self._file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            self._records = [by_id[key] for key in arrays["ids"].tolist()]
            known, styles = (arrays[name].astype(np.float32) for name in ("features", "styles"))
        # Text without style -> concepts and skin tones of the drawings that it names.
        self._meanings: dict[str, tuple[set[str], set[str]]] = {}
        for record in self._records:
            texts = {split_style(caption)[0] for caption in record["captions"]} | set(record["keywords"])
            for text in texts | {_simplify(text) for text in texts}:
                concepts, tones = self._meanings.setdefault(text, (set(), set()))
                concepts.add(record["concept"])
                tones.add(record["tone"])
        self._artists = ArtistClassifier(styles, np.array([record["artist"] for record in self._records]))
        self._nearest = NearestDrawing(known, np.array([record["concept"] for record in self._records]))


def _simplify(text: str) -> str:
    """Returns a text without article and capitals."""
    return re.sub(r"^(an?|the) ", "", text.strip().casefold())
