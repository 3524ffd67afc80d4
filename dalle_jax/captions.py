"""Captions -> rows of text tokens. What stands after the end of a caption is a token of its own for every position.

(arXiv 2102.12092, section 2.2: such pads did better on captions unlike those of the training.)
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import jax
import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32

from train_jax.data.text import Tokenizer

Rows = np.ndarray | jax.Array  # on the host, or inside a compiled program


@dataclasses.dataclass(frozen=True)
class Captions:
    """Rows of begin, tokens, end, and pads: `tokenizer`'s, but for pads. The pad of place p is `vocab_size + p`.

    Attributes:
      guides: whether the training shows pictures without their caption, beyond which guidance can go.
    """

    tokenizer: Tokenizer
    guides: bool = True

    @property
    def length(self) -> int:
        return self.tokenizer.context_length

    @property
    def size(self) -> int:
        """Of the vocabulary, pads included."""
        return self.tokenizer.vocab_size + self.length

    @property
    def fingerprint(self) -> str:
        return self.tokenizer.fingerprint

    def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        return self.encode_flagged(texts)[0]

    def encode_flagged(
        self, texts: Sequence[str], dropout: float = 0.0, rng: np.random.Generator | None = None
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Rows, and which of the texts were too long and have been cut. Arguments as in `Tokenizer.encode_flagged`."""
        rows, cut = self.tokenizer.encode_flagged(texts, dropout, rng)
        ends = np.argmax(rows == self.tokenizer.eos_id, axis=1)
        places = np.arange(self.length)
        return np.where(places > ends[:, None], self.tokenizer.vocab_size + places, rows).astype(np.int32), cut

    def counted(self, rows: Int[Rows, "n length"]) -> Bool[Rows, "n length"]:
        """True for what a text's likelihood is made of: its tokens and its end. Where it ends, all pads are known."""
        return rows < self.tokenizer.vocab_size


@dataclasses.dataclass(frozen=True)
class CharBpe:
    """minDALL-E's captions: a character BPE without marks, one pad for all positions (kakaobrain/minDALL-E).

    Attributes:
      bpe: the `tokenizers.Tokenizer`, which lowers the case.
      length: tokens in a row.
      size: of the vocabulary that the model knows; the tokenizer's may be smaller.
    """

    bpe: tokenizers.Tokenizer
    length: int
    size: int
    pad: int

    guides = False  # minDALL-E's training always showed the caption

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.length} {self.bpe.to_str()}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        return self.encode_flagged(texts)[0]

    def encode_flagged(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Rows, and which of the texts were too long and have been cut."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts, not one text: write [text]")
        rows = np.full((len(texts), self.length), self.pad, np.int32)
        cut = np.zeros(len(texts), bool)
        for number, encoding in enumerate(self.bpe.encode_batch(list(texts), add_special_tokens=False)):
            ids = encoding.ids[: self.length]
            rows[number, : len(ids)] = ids
            cut[number] = len(encoding.ids) > self.length
        return rows, cut

    def counted(self, rows: Int[Rows, "n length"]) -> Bool[Rows, "n length"]:
        """True for what a text's likelihood is made of: all tokens but pads."""
        return rows != self.pad


AnyCaptions = Captions | CharBpe
