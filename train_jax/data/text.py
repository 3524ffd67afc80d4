"""CLIP's tokenizer: text normalisation and byte-level BPE, with the `tokenizers` library.

A vocabulary is loaded (a `tokenizer.json`, or `vocab.json` with `merges.txt`) or trained on captions. The order of tokens is
that of CLIP: 256 bytes, 256 bytes at the end of a word, one token per merge, start of text, end of text.
"""

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from train_jax import paths
from train_jax.data import captions
from train_jax.data.sentencepiece import SentencePiece

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SMALLEST_VOCABULARY = 2 * len(_BYTES) + 2


def clean(text: str) -> str:
    """Normalises a text like CLIP: repairs mojibake, unescapes HTML twice, lowercases, collapses whitespace."""
    return re.sub(r"\s+", " ", captions.repair(text)).strip().lower()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """CLIP's tokenizer. Every text can be tokenized, since every byte is a token.

    Attributes:
      bpe: underlying `tokenizers.Tokenizer`.
      context_length: number of tokens per text, including start and end of text.
    """

    bpe: tokenizers.Tokenizer
    context_length: int

    def __post_init__(self):
        for token in (BOS, EOS):
            if self.bpe.token_to_id(token) is None:
                raise ValueError(f"this vocabulary has no {token}: it is not a CLIP tokenizer")
        missing = [b for b in (*_BYTES, *(b + _END_OF_WORD for b in _BYTES)) if self.bpe.token_to_id(b) is None]
        if missing:  # the library would silently drop these bytes
            raise ValueError(f"this vocabulary has no token for {len(missing)} byte(s), such as {missing[0]!r}")
        if self.context_length < 2:
            raise ValueError(f"context_length = {self.context_length}; start and end of text need 2")
        # "<|endoftext|>" in a caption is ordinary text, not the special token.
        self.bpe.encode_special_tokens = True
        self.bpe.no_truncation()
        self.bpe.no_padding()

    @classmethod
    def load(cls, path: str | Path, context_length: int = 77) -> "Tokenizer":
        """Loads a `tokenizer.json`, or a folder with `tokenizer.json` or with `vocab.json` and `merges.txt`.

        Raises FileNotFoundError, listing the expected files, if there is none; ValueError for another kind of tokenizer.
        """
        path = paths.path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        vocab, merges = path / "vocab.json", path / "merges.txt"
        try:
            if file.is_file():
                return cls.from_json(file.read_text("utf-8"), context_length)
            if vocab.is_file() and merges.is_file():
                content = json.loads(vocab.read_text("utf-8"))
                return cls(_build_bpe_tokenizer(content, _parse_merges(merges.read_text("utf-8"))), context_length)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error
        raise FileNotFoundError(f"no tokenizer at {path}: neither tokenizer.json nor vocab.json with merges.txt")

    @classmethod
    def from_merges(cls, path: str | Path, context_length: int = 77) -> "Tokenizer":
        """Loads OpenAI's `bpe_simple_vocab_16e6.txt.gz`. CLIP uses its first 48,894 merges."""
        file = paths.path(path)
        try:
            lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
        except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{file}: not OpenAI's merges ({error})") from error
        merges = _parse_merges("\n".join(lines[1 : 49_152 - 256 - 2 + 1]))
        return cls(_build_bpe_tokenizer(_build_vocabulary(merges), merges), context_length)

    @classmethod
    def from_json(cls, text: str, context_length: int = 77) -> "Tokenizer":
        """Parses the content of a `tokenizer.json`. Raises ValueError for invalid content."""
        try:
            bpe = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"not a tokenizer.json ({error})") from error
        return cls(bpe, context_length)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int = 77) -> "Tokenizer":
        """Trains a tokenizer on captions.

        The vocabulary has at most `vocab_size` tokens, fewer for little text. Training is deterministic. Raises ValueError
        if `vocab_size` is too small for all bytes.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(f"vocab_size = {vocab_size}; bytes and special tokens alone need {SMALLEST_VOCABULARY}")
        learner = _build_bpe_tokenizer({}, [])
        ends = [b + _END_OF_WORD for b in _BYTES]
        # The trainer breaks ties between pairs by token ids. Without explicit special tokens it would assign the ids of the
        # ends of words in random order.
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=_BYTES,
            special_tokens=ends,
            end_of_word_suffix=_END_OF_WORD,
            show_progress=False,
        )
        learner.train_from_iterator((clean(caption) for caption in captions), trainer)
        merges = [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]
        return cls(_build_bpe_tokenizer(_build_vocabulary(merges), merges), context_length)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size."""
        return self.bpe.get_vocab_size()

    @property
    def bos_id(self) -> int:
        """Id of the start-of-text token."""
        return self.bpe.token_to_id(BOS)

    @property
    def eos_id(self) -> int:
        """Id of the end-of-text token."""
        return self.bpe.token_to_id(EOS)

    @property
    def pad_id(self) -> int:
        """Padding id 0, like OpenAI's. It has no effect under a causal mask with pooling at the end of text."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of vocabulary, merges and context length."""
        model = json.loads(self.bpe.to_str())["model"]
        content = json.dumps([model["vocab"], model["merges"], self.context_length], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Tokenizes texts to token ids with start of text, end of text and padding.

        Too long texts are truncated before the end-of-text token.
        """
        return self.encode_flagged(texts)[0]

    def encode_flagged(
        self, texts: Sequence[str], dropout: float = 0.0, rng: np.random.Generator | None = None
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Tokenizes texts like `encode`; also returns a mask of the truncated texts.

        Args:
          dropout: probability of skipping a merge (BPE dropout, arXiv 1910.13267), which gives random tokenizations.
          rng: random generator of the dropout.
        """
        texts = captions.check_texts(texts)
        token_ids = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        is_truncated = np.zeros(len(texts), bool)
        cleaned = [clean(text) for text in texts]
        if dropout:
            encodings = [self._encode_with_dropout(text, dropout, rng) for text in cleaned]
        else:
            encodings = [e.ids for e in self.bpe.encode_batch(cleaned, add_special_tokens=False)]
        for row, ids, i in zip(token_ids, encodings, range(len(texts)), strict=True):
            is_truncated[i] = len(ids) > self.context_length - 2
            ids = [self.bos_id, *ids[: self.context_length - 2], self.eos_id]
            row[: len(ids)] = ids
        return token_ids, is_truncated

    @functools.cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        """Rank of each merge, by pair of tokens."""
        merges = json.loads(self.bpe.to_str())["model"]["merges"]
        return {tuple(pair): rank for rank, pair in enumerate(merges)}

    def _encode_with_dropout(self, text: str, dropout: float, rng: np.random.Generator) -> list[int]:
        """Tokenizes a normalised text with BPE dropout. The dropout of the library cannot be seeded."""
        ids = []
        for word, _ in self.bpe.pre_tokenizer.pre_tokenize_str(self.bpe.normalizer.normalize_str(text)):
            pieces = [*word[:-1], word[-1] + _END_OF_WORD]
            while len(pieces) > 1:
                pairs = ((self._ranks.get(pair), index) for index, pair in enumerate(itertools.pairwise(pieces)))
                candidates = [(rank, index) for rank, index in pairs if rank is not None and rng.random() >= dropout]
                if not candidates:
                    break
                _, index = min(candidates)
                pieces[index : index + 2] = ["".join(pieces[index : index + 2])]
            ids += [self.bpe.token_to_id(piece) for piece in pieces]
        return ids

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "length"]) -> str:
        """Decodes token ids to normalised text, without special tokens and padding."""
        ids = [int(i) for i in ids]
        if self.bos_id in ids:
            ids = ids[ids.index(self.bos_id) + 1 :]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self.bpe.decode(ids).strip()

    def to_json(self) -> str:
        """Formats the tokenizer as the content of a `tokenizer.json`."""
        return self.bpe.to_str(pretty=False)

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to a `tokenizer.json`."""
        paths.path(path).write_text(self.to_json(), "utf-8")


AnyTokenizer = Tokenizer | SentencePiece


def open_tokenizer(file: str | Path, context_length: int) -> AnyTokenizer:
    """Loads a `Tokenizer` or a `SentencePiece` from a `tokenizer.json` saved by its method `save`.

    Raises FileNotFoundError for a missing file, ValueError for invalid content.
    """
    try:
        return parse_tokenizer(paths.path(file).read_text("utf-8"), context_length)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def parse_tokenizer(text: str, context_length: int) -> AnyTokenizer:
    """Parses what `to_json` of a `Tokenizer` or a `SentencePiece` returned. Raises ValueError for other content."""
    try:
        padded = json.loads(text).get("padding")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"not a tokenizer.json ({error})") from error
    return (SentencePiece if padded else Tokenizer).from_json(text, context_length)


def _parse_merges(merges: str) -> list[tuple[str, str]]:
    """Parses the content of a `merges.txt`, one merge per line."""
    lines = [line.split() for line in merges.splitlines() if line.strip() and not line.startswith("#version")]
    invalid = [line for line in lines if len(line) != 2]
    if invalid:
        raise ValueError(f"a merge must be two tokens, not {' '.join(invalid[0])!r}")
    return [(a, b) for a, b in lines]


def _build_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Builds a vocabulary in CLIP's order: bytes, bytes at the end of a word, merges, start and end of text."""
    ends = (b + _END_OF_WORD for b in _BYTES)
    tokens = dict.fromkeys([*_BYTES, *ends, *("".join(pair) for pair in merges)])
    return {token: index for index, token in enumerate([*tokens, BOS, EOS])}


def _build_bpe_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Builds CLIP's BPE tokenizer. Raises ValueError if vocabulary and merges are inconsistent."""
    try:
        model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=_END_OF_WORD, fuse_unk=False)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"vocabulary and merges are inconsistent ({error})") from error
    bpe = tokenizers.Tokenizer(model)
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(_END_OF_WORD, " ")])
    # add_special_tokens would extend the vocabulary with missing tokens, so pass only existing ones.
    bpe.add_special_tokens([token for token in (BOS, EOS) if token in vocab])
    return bpe
