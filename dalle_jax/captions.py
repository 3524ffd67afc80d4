"""Captions as conditions of a second stage: text tokens (arXiv 2102.12092, section 2.2)."""

import dataclasses
import hashlib
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32

from train_jax.data.text import Tokenizer
from vqgan_jax.stage2.condition import Tokens

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"  # beside the weights of a run


class _Text:
    """Base class of captions; see `vqgan_jax.stage2.condition.Condition`."""

    kind = "text"
    none = ""
    predicted = True

    @property
    def null(self) -> Int32[np.ndarray, "length"]:
        return self.encode([""])[0]

    def encode(self, conditions: Sequence[Any]) -> Int32[np.ndarray, "n length"]:
        """Encodes texts as tokens. Truncates texts that are too long, with a warning in the log."""
        if isinstance(conditions, str):
            raise TypeError("prompts must be a list of texts, not one text: write [text]")
        if not all(isinstance(text, str) for text in conditions):
            raise ValueError("prompts must be a list of texts")
        rows, truncated = self.encode_flagged(list(conditions))
        if truncated.any():
            log.warning(
                "%d of %d prompt(s) are longer than the %d tokens this model reads and were cut; the first is %r",
                truncated.sum(), len(truncated), self.length, conditions[int(truncated.argmax())],
            )  # fmt: skip
        return rows

    def seed(self, condition: str) -> int:
        return zlib.crc32(condition.encode())

    def of_source(self, source, count: int) -> list[str]:
        return [source.described(i)["captions"][0] for i in range(min(count, len(source)))]

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        captions = record["captions"]
        text = captions[0] if rng is None else captions[rng.integers(len(captions))]
        rows, truncated = self.encode_flagged([text], rng)
        return {"condition": rows[0], "truncated": truncated[0]}


@dataclasses.dataclass(frozen=True)
class Captions(_Text):
    """Captions as begin, tokens, end, and pads; each position p has its own pad token, `vocab_size + p`.

    Such pads generalise better to captions unlike the training's (arXiv 2102.12092, section 2.2).

    Attributes:
      bpe_dropout: share of merges dropped in training (arXiv 1910.13267).
    """

    tokenizer: Tokenizer
    droppable: bool = True
    bpe_dropout: float = 0.0

    @property
    def length(self) -> int:
        return self.tokenizer.context_length

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocab_size + self.length

    @property
    def fingerprint(self) -> str:
        return self.tokenizer.fingerprint

    def encode_flagged(
        self, texts: Sequence[str], rng: np.random.Generator | None = None
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Encodes texts; returns tokens, and which texts were truncated. With `rng`, applies BPE dropout."""
        rows, truncated = self.tokenizer.encode_flagged(texts, 0.0 if rng is None else self.bpe_dropout, rng)
        ends = np.argmax(rows == self.tokenizer.eos_id, axis=1)
        positions = np.arange(self.length)
        pads = self.tokenizer.vocab_size + positions
        return np.where(positions > ends[:, None], pads, rows).astype(np.int32), truncated

    def scored(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns True for a text's tokens and its end; pads are determined by the end."""
        return tokens < self.tokenizer.vocab_size


@dataclasses.dataclass(frozen=True)
class CharBpeCaptions(_Text):
    """minDALL-E's captions: a character BPE without begin and end, one pad for all positions (kakaobrain/minDALL-E).

    Attributes:
      bpe: the `tokenizers.Tokenizer`, which lowers the case.
      length: tokens per caption.
      vocabulary_size: the model's; the tokenizer's may be smaller.
    """

    bpe: tokenizers.Tokenizer
    length: int
    vocabulary_size: int
    pad: int

    droppable = False  # minDALL-E is trained without dropped captions

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.length} {self.bpe.to_str()}".encode()).hexdigest()

    def encode_flagged(
        self, texts: Sequence[str], rng: np.random.Generator | None = None
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Encodes texts; returns tokens, and which texts were truncated."""
        rows = np.full((len(texts), self.length), self.pad, np.int32)
        truncated = np.zeros(len(texts), bool)
        for i, encoding in enumerate(self.bpe.encode_batch(list(texts), add_special_tokens=False)):
            ids = encoding.ids[: self.length]
            rows[i, : len(ids)] = ids
            truncated[i] = len(encoding.ids) > self.length
        return rows, truncated

    def scored(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns True for all tokens except pads."""
        return tokens != self.pad
