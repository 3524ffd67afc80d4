"""Tokenizers of SigLIP, MetaCLIP 2, Chinese-CLIP and CLIPA: SentencePiece or WordPiece, with padding to a fixed length.

Uses the `tokenizers` library. Normalisation, special tokens, truncation and padding are all part of the
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
_REPAIR = "repair"  # key of our `tokenizer.json` for what no normaliser of the library can do

_PAD, _UNK, _CLS, _SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"  # of BERT

_LOWER = normalizers.Lowercase()
_NO_PUNCTUATION = normalizers.Replace(Regex("[" + "".join("\\" + c for c in string.punctuation) + "]"), "")
_ONE_LINE = (normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip())
# Clean-up of texts before a tokenizer's own normalisation, by name: SigLIP's, and those of open_clip.
CLEANING = {
    "siglip": (_LOWER, _NO_PUNCTUATION, *_ONE_LINE),  # the code of arXiv 2303.15343
    "siglip2": (_LOWER,),
    "canonicalize": (normalizers.Replace("_", " "), _LOWER, _NO_PUNCTUATION, *_ONE_LINE),
    "lower": (_LOWER, *_ONE_LINE),
    "whitespace": _ONE_LINE,
    "none": (),  # transformers' of MetaCLIP 2
}


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """Tokenizer whose padded token ids need no mask.

    Attributes:
      pieces: underlying `tokenizers.Tokenizer`, with truncation and padding.
      context_length: number of tokens per text.
      repair: whether texts are repaired first (`train_jax.data.captions.repair`).
    """

    pieces: tokenizers.Tokenizer
    context_length: int
    repair: bool = False

    def __post_init__(self):
        if not self.pieces.padding or self.pieces.padding.get("length") is None:
            raise ValueError("this tokenizer.json has no padding length: it was not made by SentencePiece.load")

    @classmethod
    def load(
        cls,
        path: str | Path,
        context_length: int = 64,
        clean: str | None = None,
        repair: bool = False,
        blank: str | None = None,
    ) -> "SentencePiece":
        """Loads a tokenizer from a directory saved by `transformers`, or from a `tokenizer.json` saved by `save`.

        Args:
          clean: key of CLEANING; None: "siglip" for a unigram vocabulary, otherwise "siglip2". Class names, which differ
            between versions of transformers, do not tell SigLIP and SigLIP 2 apart.
          repair: whether texts are repaired first.
          blank: special token in place of which texts get padding, such as CLIPA's "[SEP]".

        A directory must hold `tokenizer.json`, `spiece.model` or BERT's `vocab.txt`. Raises FileNotFoundError, listing the
        expected files, if there is none; ValueError for another kind of tokenizer.
        """
        path = paths.path(path)
        file = path if path.is_file() else path / "tokenizer.json"
        config = path / "tokenizer_config.json"
        options = json.loads(config.read_text("utf-8")) if config.is_file() else {}
        if file.is_file():
            try:
                pieces, is_repaired = _parse(file.read_text("utf-8"))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            if clean is None and pieces.padding and pieces.padding.get("length") == context_length:
                return cls(pieces, context_length, is_repaired)
        elif (path / "spiece.model").is_file():
            try:
                pieces = _build_unigram_tokenizer((path / "spiece.model").read_bytes())
            except Exception as error:  # errors of parsing and of the library
                raise ValueError(f"{path / 'spiece.model'}: not a SentencePiece model ({error!r})") from error
        elif (path / "vocab.txt").is_file():
            pieces, options = _build_wordpiece_tokenizer(path / "vocab.txt", options), {"pad_token": _PAD} | options
        else:
            raise FileNotFoundError(f"no tokenizer at {path}: neither tokenizer.json nor spiece.model nor vocab.txt")
        if clean is None:
            clean = "siglip" if isinstance(pieces.model, models.Unigram) else "siglip2"
        return cls(_add_preprocessing(pieces, options, context_length, path, clean, blank), context_length, repair)

    @classmethod
    def from_json(cls, text: str, context_length: int) -> "SentencePiece":
        """Parses the content of a `tokenizer.json` that `to_json` made. Raises ValueError for any other content."""
        pieces, is_repaired = _parse(text)
        length = (pieces.padding or {}).get("length")
        if length != context_length:
            raise ValueError(f"this tokenizer.json pads texts to {length} tokens; the model reads {context_length}")
        return cls(pieces, context_length, is_repaired)

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
        texts = captions.check_texts(texts)
        encodings = self.pieces.encode_batch([captions.repair(text) for text in texts] if self.repair else texts)
        token_ids = np.array([encoding.ids for encoding in encodings], np.int32)
        token_ids = token_ids.reshape(len(texts), self.context_length)
        return token_ids, np.array([bool(encoding.overflowing) for encoding in encodings], bool)

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "length"]) -> str:
        """Decodes token ids to normalised text, without special tokens and padding."""
        return self.pieces.decode([int(i) for i in ids if int(i) != self.pad_id]).strip()

    def to_json(self) -> str:
        """Formats the tokenizer as the content of a `tokenizer.json`."""
        content = self.pieces.to_str(pretty=False)
        return f'{{"{_REPAIR}":true,{content[1:]}' if self.repair else content

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to a `tokenizer.json`."""
        paths.path(path).write_text(self.to_json(), "utf-8")


def _build_wordpiece_tokenizer(file: paths.AnyPath, options: Mapping) -> tokenizers.Tokenizer:
    """Builds BERT's tokenizer from its vocabulary, one piece a line, with the options of transformers' BertTokenizer."""
    vocabulary = {piece: index for index, piece in enumerate(file.read_text("utf-8").rstrip("\n").split("\n"))}
    absent = [token for token in (_UNK, _CLS, _SEP, _PAD) if token not in vocabulary]
    if absent:
        raise ValueError(f"{file} has no {absent[0]}: it is not the vocabulary of a BERT")
    pieces = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=_UNK))
    pieces.add_special_tokens([token for token in (_PAD, _UNK, _CLS, _SEP, "[MASK]") if token in vocabulary])
    pieces.normalizer = normalizers.BertNormalizer(
        lowercase=options.get("do_lower_case", True),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
    )
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    added = [(token, vocabulary[token]) for token in (_CLS, _SEP)]
    pieces.post_processor = processors.TemplateProcessing(single=f"{_CLS} $A {_SEP}", special_tokens=added)
    return pieces


def _parse(text: str) -> tuple[tokenizers.Tokenizer, bool]:
    """Parses the content of a `tokenizer.json`: the tokenizer, and whether texts are repaired first."""
    try:
        content = json.loads(text)
        is_repaired = content.pop(_REPAIR, False)
        return tokenizers.Tokenizer.from_str(json.dumps(content) if is_repaired else text), bool(is_repaired)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"not a tokenizer.json ({error})") from error


def _add_preprocessing(
    pieces: tokenizers.Tokenizer, options: Mapping, length: int, path: paths.AnyPath, clean: str, blank: str | None
) -> tokenizers.Tokenizer:
    """Adds clean-up, truncation and padding to `length`; see `SentencePiece.load`."""
    if CLEANING[clean]:
        pieces.normalizer = normalizers.Sequence([*CLEANING[clean], *([pieces.normalizer] if pieces.normalizer else [])])
    pad = options.get("pad_token") or "</s>"
    pad = pad["content"] if isinstance(pad, Mapping) else pad
    pad_id = pieces.token_to_id(pad)
    if pad_id is None:
        raise ValueError(f"{path}: the padding token {pad!r} is not in the vocabulary")
    if blank is not None:
        _replace_special_token(pieces, blank, pad)
    pieces.enable_truncation(length)
    pieces.enable_padding(direction=options.get("padding_side", "right"), length=length, pad_id=pad_id, pad_token=pad)
    return pieces


def _replace_special_token(pieces: tokenizers.Tokenizer, token: str, replacement: str) -> None:
    """Replaces one of the special tokens that are added to each text by another token of the vocabulary."""
    sample, template = pieces.encode("a"), []
    for name, is_special in zip(sample.tokens, sample.special_tokens_mask, strict=True):
        part = (replacement if name == token else name) if is_special else "$A"
        template += [part] if part != "$A" or part not in template else []
    added = [(name, pieces.token_to_id(name)) for name in {*template} - {"$A"}]
    pieces.post_processor = processors.TemplateProcessing(single=template, special_tokens=added)


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
