"""Texts as features of a T5 (arXiv 1910.10683), the condition of LlamaGen (arXiv 2406.06525, section 3.2).

Features come from files or arrays, or are computed by transformers' T5 where torch is installed.
"""

import dataclasses
import functools
import io
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from train_jax.data import files
from train_jax.data.errors import BrokenSample
from vqgan_jax.stage2.condition import Tokens

log = logging.getLogger(__name__)

T5 = "t5"  # folder of the T5 beside the weights
_SUFFIXES = (".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class FeatureCaptions:
    """Texts as features of their tokens, which padding precedes; see `vqgan_jax.stage2.condition.Condition`.

    A condition is an array [tokens, features], an `.npy` or `.npz` file with one, a text that the T5 encodes, or the empty
    text: none. Rows of `encode` are those of `nn_jax.code_transformer.FeatureEmbedding`.

    Attributes:
      length: number of tokens per text; longer ones are cut.
      features: number of features of a token.
      droppable: whether the model was also trained without texts.
      t5: folder of the T5, in the format of transformers.
      folder: folder with `ID.npy` for each record of a source; empty: none.
    """

    length: int
    features: int
    droppable: bool = False
    t5: str = ""
    folder: str = ""

    kind = "features"
    none = ""
    predicted = False
    padding = None
    vocabulary_size = None

    @property
    def fingerprint(self) -> str:
        """What decides the meaning of tokens: two conditions with equal ones can replace each other."""
        return f"{self.length} x {self.features} features"

    @property
    def null(self) -> Float32[np.ndarray, "length f1"]:
        """The features of a dropped text: -1 in the last column."""
        row = np.zeros((self.length, self.features + 1), np.float32)
        row[:, -1] = -1
        return row

    def drop(self, tokens: Tokens) -> Tokens:
        """Returns rows without text that keep the padding of the rows `tokens` [n, length, features + 1]."""
        return self.null[None] * (tokens[..., -1:] != 0)

    def encode(self, conditions: Sequence[Any]) -> Float32[np.ndarray, "n length f1"]:
        """Packs features of conditions. Cuts those that are too long, and logs a warning.

        Raises ValueError for a condition that has no features of this model.
        """
        if isinstance(conditions, str):
            raise TypeError("prompts must be a list of texts, files or arrays, not one string: write [text]")
        rows, is_cut = zip(*[self._pack(value) for value in conditions], strict=True)
        if any(is_cut):
            log.warning("%d of %d prompt(s) are longer than the %d tokens this model reads and were cut",
                        sum(is_cut), len(rows), self.length)  # fmt: skip
        return np.stack(rows)

    def seed(self, condition: Any) -> int:
        """Computes the seed of a condition: CRC-32 of a text, or of the features of a file."""
        is_text = isinstance(condition, str) and not condition.endswith(_SUFFIXES)
        return zlib.crc32(condition.encode() if is_text else self._pack(condition)[0].tobytes())

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns the features of a record's file as `condition`, and whether they were cut. Raises BrokenSample."""
        name = PurePosixPath(f"{record['id']}.npy")
        if name.is_absolute() or ".." in name.parts:
            raise BrokenSample(f"{name}: no path in a folder of features")
        file = f"{self.folder}/{name}"
        try:
            row, is_cut = self._pack(np.load(io.BytesIO(files.read_bytes(file)), allow_pickle=False))
        except ValueError as error:
            raise BrokenSample(f"{file}: {error}") from error
        return {"condition": row, "truncated": np.bool_(is_cut)}

    def check_source(self, source) -> None:
        """Refuses no source: the files of its records are read one by one."""

    def from_source(self, source, count: int) -> list[str]:
        """Returns the paths of the features of the first records."""
        return [f"{self.folder}/{source.metadata(i)['id']}.npy" for i in range(min(count, len(source)))]

    def likelihood_mask(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns True where a row is a token of the text."""
        return tokens[..., -1] > 0

    def to_json(self) -> str:
        """Serialises the condition; `parse_captions` reads it."""
        names = ("length", "features", "droppable")
        return json.dumps({"captions": "features"} | {name: getattr(self, name) for name in names})

    @classmethod
    def from_values(cls, *, choose: Any, **values) -> "FeatureCaptions":
        """Builds the condition of `to_json`; the features are of one caption, so that there is none to choose."""
        return cls(**values)

    def _pack(self, condition: Any) -> tuple[Float32[np.ndarray, "length f1"], bool]:
        """Returns the row of a condition, and whether it was cut."""
        if isinstance(condition, str) and not condition:
            return self.null, False
        features = self._read(condition)
        shape = list(features.shape)
        if features.ndim == 3 and len(features) == 1:  # as LlamaGen stores them
            features = features[0]
        is_shaped = features.ndim == 2 and len(features) and features.shape[1] == self.features
        if not is_shaped or features.dtype.kind != "f" or not np.isfinite(features).all():
            raise ValueError(f"features must be finite floats [tokens, {self.features}], not {features.dtype} {shape}")
        row, count = np.zeros((self.length, self.features + 1), np.float32), min(len(features), self.length)
        row[-count:, :-1], row[-count:, -1] = features[:count], 1
        return row, len(features) > count

    def _read(self, condition: Any) -> np.ndarray:
        if isinstance(condition, np.ndarray):
            return condition
        if isinstance(condition, str | os.PathLike) and os.fspath(condition).endswith(_SUFFIXES):
            return files.read_array(condition)
        if not isinstance(condition, str):
            raise ValueError(f"a prompt must be a text, an array of features or its file, not {type(condition).__name__}")
        if not (self.t5 and Path(self.t5).is_dir()):
            raise ValueError(
                f"{condition!r}: this model reads features of texts by a T5, which is not in {self.t5 or T5!r}. Put it "
                "there as transformers stores it (LlamaGen's is flan-t5-xl), or name features, a file .npy of "
                f"last_hidden_state [tokens, {self.features}] without padding"
            )
        return encode_text(self.t5, condition, self.length)


def encode_text(folder: str, text: str, length: int) -> Float32[np.ndarray, "tokens features"]:
    """Computes the features of a text by the encoder of transformers' T5, in lower case.

    LlamaGen also removes addresses, file names and the like, which captions of the web contain.

    Args:
      folder: folder of the T5 and its tokenizer.
      length: largest number of tokens.

    Raises ValueError if torch and transformers are not installed, or if the folder holds no T5.
    """
    try:
        import torch

        tokenizer, model = _load_t5(folder)
    except ImportError as error:
        raise ValueError(
            f"{folder} is read by torch and transformers, of which one is missing ({error}): pip install '.[peers]', or "
            "name features that were computed elsewhere, a file .npy"
        ) from error
    inputs = tokenizer(text.lower().strip(), max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state[0].numpy()


@functools.lru_cache(1)
def _load_t5(folder: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, T5EncoderModel

    try:
        return AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval().float()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} holds no T5 of transformers ({error})") from error
