"""Text conditions of the second stage: captions as tokens (arXiv 2102.12092, section 2.2).

A run keeps its condition as `tokenizer.json`: `to_json` of any class here, which `parse_captions` reads.
"""

import dataclasses
import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32

from dalle_jax.features import FeatureCaptions
from dalle_jax.text_normalizer import TextNormalizer
from train_jax.data.captions import CaptionChoice
from train_jax.data.text import Tokenizer
from train_jax.data.yttm import YouTokenToMe
from vqgan_jax.stage2.condition import Tokens

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"  # in a run directory


class _TextCondition:
    """Base class of text conditions; see `vqgan_jax.stage2.condition.Condition`."""

    kind = "text"
    none = ""
    predicted = True
    padding = None
    choose = CaptionChoice()

    @property
    def null(self) -> Int32[np.ndarray, "length"]:
        return self.encode([""])[0]

    def drop(self, tokens: Tokens) -> Tokens:
        return self.null[None]

    def encode(self, conditions: Sequence[Any]) -> Int32[np.ndarray, "n length"]:
        """Tokenizes texts to token ids. Truncates texts that are too long, and logs a warning."""
        if isinstance(conditions, str):
            raise TypeError("prompts must be a list of strings, not one string: write [text]")
        if not all(isinstance(text, str) for text in conditions):
            raise ValueError("prompts must be a list of strings")
        token_ids, truncated = self.encode_flagged(list(conditions))
        if truncated.any():
            log.warning(
                "%d of %d prompt(s) are longer than the %d tokens this model reads and were cut; the first is %r",
                truncated.sum(), len(truncated), self.length, conditions[int(truncated.argmax())],
            )  # fmt: skip
        return token_ids

    def seed(self, condition: str) -> int:
        return zlib.crc32(condition.encode())

    def check_source(self, source) -> None:
        pass  # any text can be encoded

    def from_source(self, source, count: int) -> list[str]:
        return [source.metadata(i)["captions"][0] for i in range(min(count, len(source)))]

    def example(self, record: Mapping, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        captions = record["captions"]
        text = captions[0] if rng is None else self.choose(captions, rng)
        token_ids, truncated = self.encode_flagged([text], rng)
        return {"condition": token_ids[0], "truncated": truncated[0]}


@dataclasses.dataclass(frozen=True)
class Captions(_TextCondition):
    """Captions as begin token, text tokens, end token and padding. Position p has the pad token `vocab_size + p`.

    Separate pad tokens per position generalise better to out-of-distribution captions (arXiv 2102.12092, section 2.2).

    Attributes:
      tokenizer: tokenizer of the captions.
      droppable: whether captions may be dropped, as classifier-free guidance needs.
      bpe_dropout: fraction of BPE merges dropped during training (arXiv 1910.13267).
      choose: choice of a record's caption during training.
    """

    tokenizer: Tokenizer
    droppable: bool = True
    bpe_dropout: float = 0.0
    choose: CaptionChoice = CaptionChoice()

    @property
    def length(self) -> int:
        """Number of tokens of a caption."""
        return self.tokenizer.context_length

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens: those of the tokenizer, and a pad token for each position."""
        return self.tokenizer.vocab_size + self.length

    @property
    def fingerprint(self) -> str:
        """What decides the meaning of tokens: two conditions with equal ones can replace each other."""
        return self.tokenizer.fingerprint

    def to_json(self) -> str:
        """Serialises the condition; `parse_captions` reads it."""
        return self.tokenizer.to_json()

    def encode_flagged(
        self, texts: Sequence[str], rng: np.random.Generator | None = None
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Tokenizes texts. Returns the token ids and a truncation flag per text. With `rng`, applies BPE dropout."""
        token_ids, truncated = self.tokenizer.encode_flagged(texts, 0.0 if rng is None else self.bpe_dropout, rng)
        end_positions = np.argmax(token_ids == self.tokenizer.eos_id, axis=1)
        positions = np.arange(self.length)
        pads = self.tokenizer.vocab_size + positions
        return np.where(positions > end_positions[:, None], pads, token_ids).astype(np.int32), truncated

    def likelihood_mask(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns a mask of the tokens in the loss: text and end token. The end token determines the padding."""
        return tokens < self.tokenizer.vocab_size


@dataclasses.dataclass(frozen=True)
class SubwordCaptions(_TextCondition):
    """Captions of other projects, by their tokenizer, with one pad token for all positions.

    Attributes:
      bpe: tokenizer, which adds begin and end tokens and truncates texts if the model has seen that in training.
      length: number of tokens per caption.
      vocabulary_size: vocabulary size of the model; the tokenizer's may be smaller.
      pad: id of the pad token.
      normalize: normalisation of texts before the tokenizer's, except of the empty text, which is that of no caption.
      droppable: whether the model was also trained without captions.
      choose: choice of a record's caption during training.
      padding: `pad` if an encoder does not read it; see `vqgan_jax.stage2.condition.Condition`.
    """

    bpe: tokenizers.Tokenizer
    length: int
    vocabulary_size: int
    pad: int
    normalize: TextNormalizer | None = None
    droppable: bool = False
    padding: int | None = None
    choose: CaptionChoice = CaptionChoice()

    @property
    def fingerprint(self) -> str:
        """What decides the meaning of tokens: two conditions with equal ones can replace each other."""
        normalized = "" if self.normalize is None else f"{self.normalize.words} "
        return hashlib.sha256(f"{normalized}{self.length} {self.bpe.to_str()}".encode()).hexdigest()

    def to_json(self) -> str:
        """Serialises the condition; `parse_captions` reads it."""
        names = ("length", "vocabulary_size", "pad", "droppable", "padding")
        values = {name: getattr(self, name) for name in names}
        words = None if self.normalize is None else self.normalize.words
        return json.dumps({"captions": "subwords", "bpe": self.bpe.to_str(), "words": words, **values})

    @classmethod
    def from_values(cls, bpe: str, words: Sequence[str] | None, **values) -> "SubwordCaptions":
        """Makes the condition of values of `to_json`."""
        normalize = None if words is None else TextNormalizer(tuple(words))
        return cls(tokenizers.Tokenizer.from_str(bpe), normalize=normalize, **values)

    def encode_flagged(
        self, texts: Sequence[str], rng: np.random.Generator | None = None
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Tokenizes texts. Returns the token ids and a truncation flag per text."""
        if self.normalize is not None:
            texts = [self.normalize(text) if text else text for text in texts]
        token_ids = np.full((len(texts), self.length), self.pad, np.int32)
        truncated = np.zeros(len(texts), bool)
        for i, encoding in enumerate(self.bpe.encode_batch(list(texts))):
            ids = encoding.ids[: self.length]
            token_ids[i, : len(ids)] = ids
            truncated[i] = len(encoding.ids) > self.length or bool(encoding.overflowing)
        return token_ids, truncated

    def likelihood_mask(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns a mask of the tokens in the loss: all tokens except padding."""
        return tokens != self.pad


@dataclasses.dataclass(frozen=True)
class YttmCaptions(_TextCondition):
    """Captions of ruDALL-E: begin token, text tokens, end token, and a separate pad token for each position.

    Texts that are too long lose their end token. The last tokens of the vocabulary are the pads.

    Attributes:
      bpe: tokenizer.
      text_length: number of tokens per caption.
      vocabulary_size: vocabulary size of the model, with the pads.
      is_shifted: whether one more begin token precedes the caption, as in ruDALL-E's second version.
      droppable, choose: as in `SubwordCaptions`.
    """

    bpe: YouTokenToMe
    text_length: int
    vocabulary_size: int
    is_shifted: bool = False
    droppable: bool = False
    choose: CaptionChoice = CaptionChoice()

    @property
    def length(self) -> int:
        """Number of tokens of a caption."""
        return self.text_length + self.is_shifted

    @property
    def fingerprint(self) -> str:
        """What decides the meaning of tokens: two conditions with equal ones can replace each other."""
        return hashlib.sha256(f"{self.text_length} {self.is_shifted} {self.bpe.source}".encode()).hexdigest()

    def to_json(self) -> str:
        """Serialises the condition; `parse_captions` reads it."""
        names = ("text_length", "vocabulary_size", "is_shifted", "droppable")
        values = {name: getattr(self, name) for name in names}
        return json.dumps({"captions": "yttm", "bpe": self.bpe.source, **values})

    @classmethod
    def from_values(cls, bpe: str, **values) -> "YttmCaptions":
        """Makes the condition of values of `to_json`."""
        return cls(YouTokenToMe.parse(bpe), **values)

    def encode_flagged(
        self, texts: Sequence[str], rng: np.random.Generator | None = None
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Tokenizes texts in lower case. Returns the token ids and a truncation flag per text."""
        pads = np.arange(self.vocabulary_size - self.text_length, self.vocabulary_size)
        token_ids = np.tile(pads.astype(np.int32), (len(texts), 1))
        truncated = np.zeros(len(texts), bool)
        for row, text in enumerate(texts):
            ids = [self.bpe.begin, *self.bpe.encode(text.lower()), self.bpe.end]
            truncated[row] = len(ids) > self.text_length
            token_ids[row, : len(ids)] = ids[: self.text_length]
        if self.is_shifted:
            token_ids = np.pad(token_ids, ((0, 0), (1, 0)), constant_values=self.bpe.begin)
        return token_ids, truncated

    def likelihood_mask(self, tokens: Int[Tokens, "n length"]) -> Bool[Tokens, "n length"]:
        """Returns a mask of the tokens in the loss: all tokens except padding."""
        return tokens < self.vocabulary_size - self.text_length


_CLASSES = {"subwords": SubwordCaptions, "yttm": YttmCaptions, "features": FeatureCaptions}  # by "captions" in `to_json`


def parse_captions(
    text: str, length: int, droppable: bool, bpe_dropout: float = 0.0, choose: CaptionChoice | None = None
) -> Captions | SubwordCaptions | YttmCaptions | FeatureCaptions:
    """Parses the condition of a run.

    Args:
      text: result of `to_json`, or the content of a `tokenizer.json` with CLIP's layout.
      length: number of tokens per caption, for CLIP's layout.
      droppable, bpe_dropout, choose: see `Captions`. Captions that could be dropped before still can be.

    Raises ValueError for other content, and for BPE dropout with the tokenizer of another project.
    """
    choose, values = choose or CaptionChoice(), json.loads(text)
    kind = values.pop("captions", None) if isinstance(values, dict) else None
    if kind is None:
        return Captions(Tokenizer.from_json(text, length), droppable, bpe_dropout, choose)
    if kind not in _CLASSES:
        raise ValueError(f"captions of the kind {kind!r}; known are {', '.join(_CLASSES)}")
    if bpe_dropout:
        raise ValueError(f"BPE dropout = {bpe_dropout}: it must be 0 with the tokenizer of another project")
    values["droppable"] |= droppable
    return _CLASSES[kind].from_values(**values, choose=choose)
