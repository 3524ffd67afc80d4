"""Models whose calls by several users are computed in one batch; what they return does not depend on the others.

Batches are padded to a power of two by the models themselves, so that few programs are compiled.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from clip_jax import Clip
from dalle_jax import Dalle
from multimodal_jax.serve.device import DEVICE

_LIMIT = 64  # calls in a batch
Model = TypeVar("Model")


def share(model: Any, kind: type[Model]) -> Model:
    """Returns a loaded model as one of a class below."""
    return kind(*(getattr(model, field.name) for field in dataclasses.fields(model)))


class SharedClip(Clip):
    """A CLIP that encodes texts, or images, of several threads together."""

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Encodes texts as `Clip.encode_text` does."""

        def encode(requests):
            texts = [text for request in requests for text in request]
            return _split(super(SharedClip, self).encode_text(texts, batch_size), map(len, requests))

        return DEVICE.compute(encode, texts, (self, "text", batch_size), _LIMIT)

    def encode_image(self, images, batch_size: int = 64, *, normalize: bool = True) -> np.ndarray:
        """Encodes images as `Clip.encode_image` does."""

        def encode(requests):
            images = requests[0] if len(requests) == 1 else [image for request in requests for image in request]
            embeddings = super(SharedClip, self).encode_image(images, batch_size, normalize=normalize)
            return _split(embeddings, map(len, requests))

        return DEVICE.compute(encode, images, (self, "image", batch_size, normalize), _LIMIT)


def _split(rows: np.ndarray, lengths) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(list(lengths))[:-1])


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
    """A call of `SharedDalle.draw`."""

    prompts: Sequence[str]
    seed: int
    first: np.ndarray
    preview: Callable | None


class _AllEnded(BaseException):  # no `except Exception` of a library shall catch it
    """End of a drawing whose users have all gone."""


class SharedDalle(Dalle):
    """A DALL-E that draws the prompts of several threads together, if they agree in all but prompts and seeds."""

    def draw(self, conditions=None, n: int = 1, *, seed=0, first=None, preview=None, batch_size=64, **options):
        """Draws as `Dalle.draw` does. An exception that `preview` raises ends this call and no other one."""
        options |= {"batch_size": batch_size, "progress": False}
        if first is None or options.get("keep") is not None:  # not a call of `stream`, or one that completes a picture
            draw, options = super().draw, options | {"seed": seed, "first": first, "preview": preview}
            return DEVICE.compute(lambda _: [draw(conditions, n, **options)], None)

        def draw_all(requests: Sequence[_Request]) -> list:
            ends = np.cumsum([len(request.prompts) for request in requests])
            rows = [slice(end - len(request.prompts), end) for end, request in zip(ends, requests, strict=True)]
            errors: dict[int, BaseException] = {}

            def show(start: int, finished: int, images: np.ndarray) -> None:
                for index, (request, part) in enumerate(zip(requests, rows, strict=True)):
                    begin, end = max(part.start * n - start, 0), min(part.stop * n - start, len(images))
                    if request.preview is None or begin >= end or index in errors:
                        continue
                    try:
                        request.preview(start + begin - part.start * n, finished, images[begin:end])
                    except BaseException as error:  # of one user, while the others go on
                        errors[index] = error
                if len(errors) == len(requests):
                    raise _AllEnded

            try:
                drawing = super(SharedDalle, self).draw(
                    [prompt for request in requests for prompt in request.prompts], n,
                    seed=np.repeat([request.seed for request in requests], [len(request.prompts) for request in requests]),
                    first=np.concatenate([request.first for request in requests]),
                    preview=show if any(request.preview for request in requests) else None, **options,
                )  # fmt: skip
            except _AllEnded:
                return [errors[index] for index in range(len(requests))]
            drawings = [jax.tree.map(lambda x, part=part: x[part], drawing) for part in rows]
            return [errors.get(index, drawing) for index, drawing in enumerate(drawings)]

        key = (self, n, *sorted(options.items()))
        limit = max(1, batch_size // (n * len(conditions)))
        return DEVICE.compute(draw_all, _Request(conditions, seed, np.asarray(first), preview), key, limit)
