"""Captions in the formats of common data sets."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from train_jax.data.errors import DataError

_KEYS = ("captions", "caption", "title", "text", "TEXT")  # of the hub's, OpenCLIP's and img2dataset's files
_INSIDE = ("text", "raw", "caption")  # of COCO's captions, which are objects


def texts(value) -> list[str]:
    """Extracts captions from a text, a list of texts, or COCO's objects with a text inside; drops null and empty ones.

    Raises ValueError for anything else, and for text that is no Unicode.
    """
    if isinstance(value, Mapping):
        value = _inside(value)
    items = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    captions = [_text(_inside(item) if isinstance(item, Mapping) else item) for item in items]
    return [text for text in captions if text]


def of_row(row) -> list[str]:
    """Extracts the captions of a table row or JSON object, by the usual column names. Raises as `texts` does."""
    if not isinstance(row, Mapping):
        raise ValueError(f"must be an object with captions, not {type(row).__name__}")
    return texts(next((row[key] for key in _KEYS if row.get(key)), None))


def parse_json(text: str):
    """Parses JSON. Raises ValueError for text that is not JSON or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def checked(texts: Sequence) -> list[str]:
    """Checks texts to encode; half a surrogate pair, as command lines make of bytes that are not UTF-8, becomes
    "\ufffd".

    Raises TypeError for one text instead of a list, DataError for a value that is no text.
    """
    if isinstance(texts, str):
        raise TypeError("encode takes a list of texts, not one text: write [text]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {index} is no text but {type(text).__name__}")
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


def _inside(item: Mapping):
    key = next((key for key in _INSIDE if key in item), None)
    if key is None:
        raise ValueError(f"a caption is text, not an object of {', '.join(map(str, item)) or 'nothing'}")
    return item[key]


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"a caption is text, not {type(value).__name__}")
    value.encode("utf-8")  # raises UnicodeEncodeError for half a surrogate pair, which JSON can spell
    return value.strip()
