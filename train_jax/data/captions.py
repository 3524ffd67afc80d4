"""Choice of captions, and their extraction from the formats of common data sets."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence

import ftfy
import numpy as np

from train_jax.data.errors import DataError

_KEYS = ("captions", "caption", "title", "text", "TEXT")  # keys of the Hugging Face Hub, OpenCLIP and img2dataset
_TEXT_KEYS = ("text", "raw", "caption")  # keys of COCO's caption objects


@dataclasses.dataclass(frozen=True)
class CaptionChoice:
    """Random choice of one of a record's captions, each with the same probability.

    Attributes:
      prob: probability that only the leading captions are chosen from.
      leading: number of leading captions.
    """

    prob: float = 0.0
    leading: int = 1

    def __call__(self, captions: Sequence[str], rng: np.random.Generator) -> str:
        """Chooses a caption."""
        return captions[self.index(len(captions), rng)]

    def index(self, count: int, rng: np.random.Generator) -> int:
        """Chooses the index of one of `count` captions."""
        is_leading = self.prob > 0 and rng.random() < self.prob
        return int(rng.integers(min(self.leading, count) if is_leading else count))


def repair(text: str) -> str:
    """Repairs mojibake and unescapes HTML twice, as OpenAI's and open_clip's tokenizers do."""
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def extract_captions(value) -> list[str]:
    """Extracts captions from a string, a list of strings, or COCO's caption objects; drops null and empty captions.

    Raises ValueError for other types and for invalid Unicode.
    """
    if isinstance(value, Mapping):
        value = _get_text(value)
    items = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    captions = [_clean_text(_get_text(item) if isinstance(item, Mapping) else item) for item in items]
    return [text for text in captions if text]


def extract_row_captions(row) -> list[str]:
    """Extracts the captions of a table row or JSON object by common column names.

    Raises ValueError for invalid captions, like `extract_captions`.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"must be an object with captions, not {type(row).__name__}")
    return extract_captions(next((row[key] for key in _KEYS if row.get(key)), None))


def parse_json(text: str):
    """Parses JSON. Raises ValueError for invalid or too deeply nested JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_texts(texts: Sequence) -> list[str]:
    """Checks texts for tokenization and replaces lone surrogates by "\ufffd".

    Command lines contain lone surrogates for bytes that are not UTF-8. Raises TypeError for a string instead of a list,
    DataError for an element that is not a string.
    """
    if isinstance(texts, str):
        raise TypeError("encode takes a list of strings, not one string: write [text]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {index} must be a string, not {type(text).__name__}")
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


def _get_text(item: Mapping):
    """Returns the text of a caption object."""
    key = next((key for key in _TEXT_KEYS if key in item), None)
    if key is None:
        raise ValueError(f"a caption must be a string, not an object with keys {', '.join(map(str, item)) or '(none)'}")
    return item[key]


def _clean_text(value) -> str:
    """Converts a caption to a stripped string; None becomes the empty string."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"a caption must be a string, not {type(value).__name__}")
    value.encode("utf-8")  # raises UnicodeEncodeError for lone surrogates, which JSON can contain
    return value.strip()
