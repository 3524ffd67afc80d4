"""Evaluator that draws the images nearest to some texts, so that a training shows what the model finds so far."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from clip_jax.accuracy import find_nearest
from clip_jax.encoders import Encoders
from train_jax.config import EvaluatorOptions
from train_jax.data.images import decode
from train_jax.data.sources import DataError
from train_jax.data.subset import first
from train_jax.options import option

_SIDE = 96  # of the drawn images in pixels


@dataclasses.dataclass(frozen=True)
class HitsOptions(EvaluatorOptions):
    """Options of the drawing of search results."""

    queries: tuple[str, ...] = option((), "texts to search with")
    gallery: int = option(400, "number of images, taken from the start of the split; 0: all", least=0)
    hits: int = option(8, "number of images drawn for each text", least=1)

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(bool(self.queries), path, "queries", "at least one text, such as ('a red circle',)")


class Hits:
    """Search by texts: a sheet of the nearest images, one row a text.

    Where the source says which texts are true of an image (`Source.is_true`), hits are marked as right or wrong, and
    `precision` is the share of those that are right.
    """

    def __init__(self, encoders: Encoders, options: ConfigDict, context):
        self._options, self._source = options, context.source_of(options)
        self._gallery = first(self._source, options.gallery)
        if self._source.is_true is not None:
            try:
                records = [self._source.metadata(index) for index in range(len(self._gallery))]
                self._truth = [[self._source.is_true(text, record) for record in records] for text in options.queries]
            except ValueError as error:
                raise DataError(f"{self._source.name} cannot tell whether a query is true of an image: {error}") from error
        self._encode_images = encoders.make_image_encoder(context, options.batch_size)
        self._encode_texts = encoders.make_text_encoder(context, options.batch_size)

    def __call__(self, params, mutable_variables) -> tuple[dict[str, float | int], dict[str, np.ndarray]]:
        """Returns metrics, and the sheet of the nearest images as uint8 [H, W, 3]."""
        from clip_jax import sheets  # a lazy import, of Matplotlib

        variables, options = {"params": params["clip"], **mutable_variables}, self._options
        images = self._encode_images(variables, self._gallery)
        nearest = find_nearest(self._encode_texts(variables, list(options.queries)), images, options.hits)
        knows = self._source.is_true is not None
        sections, correct = [], []
        for row, (text, hits) in enumerate(zip(options.queries, nearest.tolist(), strict=True)):
            marks = [self._truth[row][index] if knows else None for index in hits]
            pictures = [decode(self._gallery[index]["image"]) for index in hits]
            names = [str(self._source.metadata(index)["id"]) for index in hits]
            cells = map(sheets.Cell, pictures, names, [""] * len(hits), marks)
            sections.append(sheets.Section(f"“{text}”", list(cells)))
            correct += marks
        sheet = sheets.render_contact_sheet(sections, columns=nearest.shape[1], size=_SIDE)
        metrics = {"images": len(images)} | ({"precision": float(np.mean(correct))} if knows else {})
        return metrics, {"hits": np.asarray(sheet)}
