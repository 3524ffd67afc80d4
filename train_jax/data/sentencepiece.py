"""SigLIP's tokenizer: a SentencePiece vocabulary, with padding to a fixed length.

Uses the `tokenizers` library. Normalisation, end-of-text token, truncation and padding are all part of the
`tokenizer.json`, so this one file defines the tokenizer.
"""

import dataclasses
import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from train_jax import paths
from train_jax.data import captions

_SPACE = "▁"  # SentencePiece's symbol for a space
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # types of pieces in a SentencePiece model


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """SigLIP's tokenizer, whose padded token ids need no mask.

    Attributes:
      pieces: underlying `tokenizers.Tokenizer`, with truncation and padding.
      context_length: number of tokens per text.
    """

    pieces: tokenizers.Tokenizer
    context_length: int

    def __post_init__(self):
        if not self.pieces.padding or self.pieces.padding.get("length") is None:
            raise ValueError("this tokenizer.json has no padding length: it was not made by SentencePiece.load")

    @classmethod
    def load(cls, path: str | Path, context_length: int = 64) -> "SentencePiece":
        """Loads a tokenizer from a directory saved by `transformers`, or from a `tokenizer.json` saved by `save`.

        A directory must hold `tokenizer.json` or `spiece.model`. Raises FileNotFoundError, listing the expected files, if
        there is none; ValueError for another kind of tokenizer.
        """
        path = paths.path(path)
        file = path if path.is_file() else path / "tokenizer.json"
        if file.is_file():
            try:
                pieces = tokenizers.Tokenizer.from_file(str(paths.local(file)))
            except Exception as error:  # the library raises no narrower class
                raise ValueError(f"{file}: not a tokenizer.json ({error})") from error
            if pieces.padding and pieces.padding.get("length") == context_length:
                return cls(pieces, context_length)
        elif (path / "spiece.model").is_file():
            try:
                pieces = _build_unigram_tokenizer((path / "spiece.model").read_bytes())
            except Exception as error:  # errors of parsing and of the library
                raise ValueError(f"{path / 'spiece.model'}: not a SentencePiece model ({error!r})") from error
        else:
            raise FileNotFoundError(f"no tokenizer at {path}: neither tokenizer.json nor spiece.model")
        config = path / "tokenizer_config.json"
        options = json.loads(config.read_text("utf-8")) if config.is_file() else {}
        return cls(_add_preprocessing(pieces, options, context_length, path), context_length)

    @classmethod
    def from_json(cls, text: str, context_length: int) -> "SentencePiece":
        """Parses the content of a `tokenizer.json` that `to_json` made. Raises ValueError for any other content."""
        try:
            pieces = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"not a tokenizer.json ({error})") from error
        length = (pieces.padding or {}).get("length")
        if length != context_length:
            raise ValueError(f"this tokenizer.json pads texts to {length} tokens; the model reads {context_length}")
        return cls(pieces, context_length)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size."""
        return self.pieces.get_vocab_size()

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return self.pieces.padding["pad_id"]

    @property
    def eos_id(self) -> int:
        """Id of the end-of-text token, or of the padding token if there is none."""
        ids = [self.pieces.token_to_id(token) for token in ("</s>", "<eos>")]
        return next((i for i in ids if i is not None), self.pad_id)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the tokenizer."""
        content = json.loads(self.to_json())
        if content["model"].get("type") == "Unigram":  # a file does not preserve the last digit of the float32 scores
            content["model"]["vocab"] = [[piece, float(np.float32(s))] for piece, s in content["model"]["vocab"]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Tokenizes texts to token ids with end-of-text token and padding. Too long texts are truncated."""
        return self.encode_flagged(texts)[0]

    def encode_flagged(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n"]]:
        """Tokenizes texts like `encode`; also returns a mask of the truncated texts."""
        encodings = self.pieces.encode_batch(captions.check_texts(texts))
        token_ids = np.array([encoding.ids for encoding in encodings], np.int32)
        token_ids = token_ids.reshape(len(texts), self.context_length)
        return token_ids, np.array([bool(encoding.overflowing) for encoding in encodings], bool)

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "length"]) -> str:
        """Decodes token ids to normalised text, without special tokens and padding."""
        return self.pieces.decode([int(i) for i in ids if int(i) != self.pad_id]).strip()

    def to_json(self) -> str:
        """Formats the tokenizer as the content of a `tokenizer.json`."""
        return self.pieces.to_str(pretty=False)

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to a `tokenizer.json`."""
        paths.path(path).write_text(self.to_json(), "utf-8")


def _add_preprocessing(
    pieces: tokenizers.Tokenizer, options: Mapping, length: int, path: paths.AnyPath
) -> tokenizers.Tokenizer:
    """Adds SigLIP's normalisation, truncation and padding to `length`.

    The normalisation is that of the code of arXiv 2303.15343: lower case, no punctuation. SigLIP and SigLIP 2 are
    distinguished by their vocabularies, since class names differ between versions of transformers.
    """
    steps = [normalizers.Lowercase()]
    if isinstance(pieces.model, models.Unigram):  # SigLIP; SigLIP 2 has Gemma's BPE vocabulary and keeps punctuation
        steps += [
            normalizers.Replace(Regex("[" + "".join("\\" + c for c in string.punctuation) + "]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    pieces.normalizer = normalizers.Sequence([*steps, *([pieces.normalizer] if pieces.normalizer else [])])
    pad = options.get("pad_token") or "</s>"
    pad = pad["content"] if isinstance(pad, Mapping) else pad
    pad_id = pieces.token_to_id(pad)
    if pad_id is None:
        raise ValueError(f"{path}: the padding token {pad!r} is not in the vocabulary")
    pieces.enable_truncation(length)
    pieces.enable_padding(length=length, pad_id=pad_id, pad_token=pad)
    return pieces


# ---------------------------------------------------------------------------------------------------------------------
# Files of SentencePiece


def _build_unigram_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    """Builds a tokenizer from the content of a unigram `spiece.model`.

    The file is a Protocol Buffers message (sentencepiece_model.proto).
    """
    vocab, types, unknown, charsmap = [], [], None, b""
    for field, value in _parse_fields(data):
        if field == 1:  # a piece: text, score, type
            piece = dict(_parse_fields(value))
            vocab.append((piece[1].decode(), float(np.frombuffer(piece.get(2, b"\0\0\0\0"), "<f4")[0])))
            types.append(piece.get(3, _NORMAL))
            if types[-1] == _UNKNOWN:
                unknown = len(vocab) - 1
        elif field == 2 and dict(_parse_fields(value)).get(3, 1) != 1:  # trainer options, whose model type 1 is unigram
            raise ValueError("this spiece.model is not a unigram model; save a tokenizer.json with transformers")
        elif field == 3:  # normalisation
            charsmap = dict(_parse_fields(value)).get(2, b"")
    if unknown is None:
        raise ValueError("this spiece.model has no unknown token")
    pieces = tokenizers.Tokenizer(models.Unigram(vocab, unknown, _BYTE in types))
    pieces.add_special_tokens([vocab[i][0] for i, piece_type in enumerate(types) if piece_type == _CONTROL])
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    pieces.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    pieces.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    end = pieces.token_to_id("</s>")
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return pieces


def _parse_fields(data: bytes):
    """Yields `(number, value)` of each field of a Protocol Buffers message; values are integers or bytes."""
    offset = 0

    def varint() -> int:
        nonlocal offset
        value = shift = 0
        while True:
            byte = data[offset]
            if shift > 63:
                raise ValueError("an integer of more than 64 bits")
            value |= (byte & 127) << shift
            offset, shift = offset + 1, shift + 7
            if byte < 128:
                return value

    while offset < len(data):
        key = varint()
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            yield field, varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        if wire_type not in (1, 2, 5) or offset + size > len(data):
            raise ValueError("not a SentencePiece model: the file is damaged or of another kind")
        yield field, data[offset : offset + size]
        offset += size
