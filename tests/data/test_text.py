"""The tokenizer is CLIP's: clean-up, byte-level BPE, marks and padding, against a BPE of forty lines in plain Python.

The twin below knows the published algorithm alone (arXiv 1508.07909, and OpenAI's bytes as letters); what is learnt from
captions is judged by counting pairs again.
"""

import collections
import functools
import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import tokenizers

from tests.fuzz import readers
from train_jax.data import text
from train_jax.data.errors import DataError
from train_jax.data.sentencepiece import SentencePiece
from train_jax.data.text import BOS, EOS, Tokenizer

CAPTIONS = (
    "a small red circle above a large blue square",
    "a photo of the digit seven",
    "the number 7",
    "something blue in the top left",
    "it's a heart, isn't it?",
    "a drawing of a café in São Paulo ☕",
    "a red star left of a red circle",
)
NASTY = (
    "",
    " \t\n",
    "don't we'll they've I'd i'm you're",
    "12345 and 3.14159!!!",
    "naïve façade — “quotes” … ½",
    "👩‍👩‍👧 emoji 🇧🇷 🏳️‍🌈 👍🏽",
    "日本語のテキスト ไทย العربية हिन्दी",
    "lone surrogate \ud83d here",
    "nul \x00 bell \x07 escape \x1b[0m del \x7f",
    "zero\u200bwidth\u2028line\u00a0space\ufeff",
    "İstanbul ẞ ﬁ e\u0301",
    "</w> </w>a a</w>b",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 600, context_length=20)


# ---------------------------------------------------------------------------------------------------------------------
# The twin


@functools.cache
def byte_letters() -> dict[int, str]:
    """OpenAI's letters for bytes: printable ones stand for themselves, the rest are numbered from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(rest)}


def words_of(cleaned: str) -> list[str]:
    """Contractions, runs of letters, single digits, runs of anything else, read from left to right."""

    def kind(c: str) -> str:
        return "letter" if c.isalpha() else "digit" if c.isnumeric() else "space" if c.isspace() else "other"

    words, place = [], 0
    while place < len(cleaned):
        short = next((s for s in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if cleaned.startswith(s, place)), None)
        end = place + 1
        if short:
            end = place + len(short)
        elif kind(cleaned[place]) in ("letter", "other"):
            while end < len(cleaned) and kind(cleaned[end]) == kind(cleaned[place]):
                end += 1
        if kind(cleaned[place]) != "space":
            words.append(cleaned[place:end])
        place = end
    return words


def letters_of(word: str) -> tuple[str, ...]:
    letters = [byte_letters()[b] for b in word.encode()]
    return (*letters[:-1], letters[-1] + "</w>")


def merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The parts with each `pair` of neighbours joined, from left to right."""
    out, place = [], 0
    while place < len(parts):
        joined = parts[place : place + 2] == pair
        out.append("".join(pair) if joined else parts[place])
        place += 2 if joined else 1
    return tuple(out)


def twin(content: dict, cleaned: str) -> list[int]:
    """Every merge in the order in which it was learnt, wherever it applies."""
    ids = []
    for word in words_of(cleaned):
        parts = letters_of(word)
        for pair in content["merges"]:
            parts = merged(parts, tuple(pair))
        ids += [content["vocab"][part] for part in parts]
    return ids


def content_of(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_json())["model"]


def tokens_of(row: np.ndarray, tokenizer: Tokenizer) -> list[int]:
    """What stands between the marks."""
    row = row.tolist()
    assert row[0] == tokenizer.bos_id
    return row[1 : row.index(tokenizer.eos_id)]


def test_encodes_as_the_twin(tokenizer):
    content = content_of(tokenizer)
    rng = random.Random(0)
    pieces = [
        "red",
        "circle",
        "café",
        "it's",
        "n't",
        "42",
        "!?",
        "</w>",
        "日本",
        "é",
        "☕☕",
        "aaaa",
        "  ",
        "\n",
        "'",
        "re",
    ]
    made = ["".join(rng.choices([*pieces, " ", " "], k=12)) for _ in range(100)]
    long = Tokenizer(tokenizer.bpe, context_length=400)
    for caption in (*CAPTIONS, *made):
        row = long.encode([caption])[0]
        assert tokens_of(row, long) == twin(content, text.clean(caption)), caption


def test_learns_the_most_frequent_pair_each_time():
    learnt = Tokenizer.train(CAPTIONS * 3, 514 + 60)
    words = collections.Counter(word for caption in CAPTIONS * 3 for word in words_of(text.clean(caption)))
    state = {letters_of(word): count for word, count in words.items()}
    merges = [tuple(pair) for pair in content_of(learnt)["merges"]]
    assert len(merges) == 60
    for pair in merges:
        counts = collections.Counter()
        for parts, count in state.items():
            for a, b in zip(parts, parts[1:], strict=False):
                counts[a, b] += count
        assert counts[pair] == max(counts.values()), pair
        state = {merged(parts, pair): count for parts, count in state.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Clean-up


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("  A  Red\tCircle \n", "a red circle"),
        ("Fish &amp; Chips", "fish & chips"),
        ("Fish &amp;amp; Chips", "fish & chips"),  # escaped twice
        ("&lt;b&gt;", "<b>"),
        ("1 < 2 &amp;amp; 3", "1 < 2 & 3"),  # where ftfy, which takes this for HTML, leaves escapes alone
        ("cafÃ©", "café"),  # UTF-8 read as Latin-1
        ("âœ” done", "✔ done"),
        ("ÉTÉ", "été"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\t \n", ""),
    ],
)
def test_clean(given, cleaned):
    assert text.clean(given) == cleaned


def test_cleaning_twice_changes_nothing():
    for caption in (*CAPTIONS, *NASTY):
        assert text.clean(text.clean(caption)) == text.clean(caption)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def test_a_row_is_begin_tokens_end_padding(tokenizer):
    row = tokenizer.encode(["a red circle"])[0].tolist()
    vocab = tokenizer.bpe.get_vocab()
    end = row.index(vocab[EOS])
    assert row[0] == vocab[BOS] == tokenizer.bos_id and tokenizer.eos_id == vocab[EOS]
    assert row[end + 1 :] == [0] * (20 - end - 1) and tokenizer.pad_id == 0


def test_words_end_with_their_suffix(tokenizer):
    names = {index: token for token, index in tokenizer.bpe.get_vocab().items()}
    tokens = [names[i] for i in tokens_of(tokenizer.encode(["red circle a z"])[0], tokenizer)]
    assert "".join(tokens) == "red</w>circle</w>a</w>z</w>"
    # The same letter inside a word and at its end are two tokens.
    inside, end = (tokens_of(tokenizer.encode([word])[0], tokenizer)[0] for word in ("zq", "z"))
    assert (names[inside], names[end]) == ("z", "z</w>")


def test_layout_of_the_vocabulary(tokenizer):
    vocab = sorted(tokenizer.bpe.get_vocab(), key=tokenizer.bpe.get_vocab().get)
    letters = sorted(byte_letters().values())
    assert vocab[:256] == letters
    assert vocab[256:512] == [letter + "</w>" for letter in letters]
    assert vocab[512:-2] == ["".join(pair) for pair in content_of(tokenizer)["merges"]]
    assert vocab[-2:] == [BOS, EOS]
    assert sorted(tokenizer.bpe.get_vocab().values()) == list(range(tokenizer.vocab_size))


def test_long_texts_are_cut_keep_their_end_and_are_flagged():
    tokenizer = Tokenizer.train(CAPTIONS, text.SMALLEST_VOCABULARY, context_length=8)  # a token a letter
    rows, cut = tokenizer.encode_flagged(["abcdef", "abcdefg", "a", "a b c d e f g h i j k l"])
    assert cut.tolist() == [False, True, False, True] and cut.dtype == bool
    assert rows.shape == (4, 8) and rows.dtype == np.int32
    assert [row.tolist().count(tokenizer.eos_id) for row in rows] == [1, 1, 1, 1]
    assert rows[:, -1].tolist() == [tokenizer.eos_id, tokenizer.eos_id, 0, tokenizer.eos_id]
    assert tokenizer.decode(rows[0]) == "abcdef"
    assert tokenizer.decode(rows[1]) == "abcdef"
    assert tokenizer.decode(rows[3]) == "a b c d e f"
    np.testing.assert_array_equal(tokenizer.encode(["abcdefg"])[0], rows[1])


def test_texts_do_not_depend_on_their_neighbours(tokenizer):
    together = tokenizer.encode(CAPTIONS)
    np.testing.assert_array_equal(together, np.concatenate([tokenizer.encode([caption]) for caption in CAPTIONS]))
    assert tokenizer.encode([]).shape == (0, 20)


@pytest.mark.parametrize("caption", [EOS, f"a {BOS} b", f"{BOS}{EOS}", f"red{EOS}circle", EOS.upper()])
def test_marks_spelt_out_are_plain_text(tokenizer, caption):
    long = Tokenizer(tokenizer.bpe, context_length=60)
    row = long.encode([caption])[0].tolist()
    assert row.count(long.eos_id) == row.count(long.bos_id) == 1
    assert tokens_of(np.array(row), long) == twin(content_of(long), text.clean(caption))
    assert long.decode(row).replace(" ", "") == text.clean(caption).replace(" ", "")


def test_one_text_is_not_a_list_of_texts(tokenizer):
    with pytest.raises(TypeError, match=r"write \[text\]"):
        tokenizer.encode_flagged("a red circle")


# ---------------------------------------------------------------------------------------------------------------------
# Back to text


def squeezed(caption: str) -> str:
    """Spaces are not tokens: words come back with one space each, also between a word and its full stop."""
    return re.sub(r"\s", "", caption)


@pytest.mark.parametrize("caption", [*CAPTIONS, *NASTY], ids=ascii)
def test_any_text_comes_back(tokenizer, caption):
    long = Tokenizer(tokenizer.bpe, context_length=500)
    rows, cut = long.encode_flagged([caption])
    assert not cut[0]
    assert squeezed(long.decode(rows[0])) == squeezed(text.clean(caption))


def test_words_come_back_with_their_spaces(tokenizer):
    caption = "a small red circle above a large blue square"
    assert tokenizer.decode(tokenizer.encode([caption])[0]) == caption


def test_every_character_of_the_first_planes_comes_back(tokenizer):
    long = Tokenizer(tokenizer.bpe, context_length=300)
    # Those that Python knows: of newer ones it does not know the lower case, and the library may.
    characters = [chr(c) for c in (*range(0x3000), *range(0x1F300, 0x1F700)) if unicodedata.category(chr(c)) != "Cn"]
    lines = ["".join(characters[n : n + 64]) for n in range(0, len(characters), 64)]
    rows, cut = long.encode_flagged(lines)
    assert not cut.any()
    for line, row in zip(lines, rows, strict=True):
        assert squeezed(long.decode(row)) == squeezed(text.clean(line))


def test_decode_takes_any_run_of_ids(tokenizer):
    row = tokenizer.encode(["a red circle"])[0]
    tokens = tokens_of(row, tokenizer)
    assert tokenizer.decode(tokens) == tokenizer.decode([*tokens, tokenizer.eos_id, 5, 6]) == "a red circle"
    assert tokenizer.decode([]) == ""


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_training_is_deterministic():
    script = f"from train_jax.data.text import Tokenizer\nprint(Tokenizer.train({[*CAPTIONS]!r}, 580, 16).fingerprint)"
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert fingerprints == {Tokenizer.train(iter(CAPTIONS), 580, 16).fingerprint}


@pytest.mark.parametrize("size", [514, 515, 540, 600])
def test_vocabulary_has_the_size_asked_for(size):
    assert text.SMALLEST_VOCABULARY == 2 * 256 + 2
    learnt = Tokenizer.train(CAPTIONS, size)
    assert learnt.vocab_size == size == len(learnt.bpe.get_vocab())
    assert len(content_of(learnt)["merges"]) == size - 514


def test_vocabulary_is_smaller_where_captions_hold_less():
    # "red" has two merges, "a" none, and "ab" one.
    assert Tokenizer.train(["red a ab"], 1000).vocab_size == 514 + 3


def test_a_larger_vocabulary_begins_as_a_smaller_one():
    small, large = (content_of(Tokenizer.train(CAPTIONS, size))["merges"] for size in (540, 580))
    assert large[: len(small)] == small


def test_vocabulary_too_small_is_refused():
    with pytest.raises(ValueError, match="vocab_size = 513; bytes and special tokens alone need 514"):
        Tokenizer.train(CAPTIONS, 513)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def same(a: Tokenizer, b: Tokenizer) -> bool:
    every = (*CAPTIONS, *NASTY, f"a {EOS} b")
    return a.vocab_size == b.vocab_size and np.array_equal(a.encode(every), b.encode(every))


def write_pair(folder: Path, content: dict, first: str = "#version: 0.2\n") -> None:
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]), "utf-8")
    merges = first + "".join(f"{a} {b}\n" for a, b in content["merges"])
    (folder / "merges.txt").write_text(merges, "utf-8")


def test_loads_what_was_saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = Tokenizer.load(path, 20)
        assert same(loaded, tokenizer) and loaded.fingerprint == tokenizer.fingerprint
    assert Tokenizer.from_json(tokenizer.to_json(), 20).fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path).context_length == 77


@pytest.mark.parametrize("first", ["#version: 0.2\n", ""])
def test_loads_vocabulary_and_merges(tokenizer, tmp_path, first):
    write_pair(tmp_path, content_of(tokenizer), first)
    loaded = Tokenizer.load(tmp_path, 20)
    assert same(loaded, tokenizer) and loaded.fingerprint == tokenizer.fingerprint


def test_loads_a_tokenizer_that_pads_and_cuts(tokenizer, tmp_path):
    # As the hub's files do: their own length and padding must not reach our rows.
    foreign = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    foreign.enable_truncation(5)
    foreign.enable_padding(pad_id=foreign.token_to_id(EOS), pad_token=EOS, length=9)
    foreign.save(str(tmp_path / "tokenizer.json"))
    assert same(Tokenizer.load(tmp_path, 20), tokenizer)


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    others = [
        tokenizer,
        Tokenizer.from_json(tokenizer.to_json(), 21),
        Tokenizer.train(CAPTIONS, 599, 20),
        Tokenizer.train(CAPTIONS[1:], 600, 20),
    ]
    assert len({other.fingerprint for other in others}) == 4


def test_nothing_to_load(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "tokenizer.json"):
        with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"):
            Tokenizer.load(path)
    (tmp_path / "vocab.json").write_text("{}")  # half of a pair
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("damaged", ["", "{", "hello", '{"version": "1.0"}'])
def test_damaged_tokenizer_json(tmp_path, damaged):
    (tmp_path / "tokenizer.json").write_text(damaged)
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_other_kinds_of_tokenizers_are_refused(tokenizer, tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(ValueError, match=r"has no <\|startoftext\|>"):
        Tokenizer.from_json(words.to_str())

    # GPT-2's kind: bytes and one mark of its own.
    content = content_of(tokenizer)
    unmarked = {token: n for token, n in content["vocab"].items() if token not in (BOS, EOS)}
    write_pair(tmp_path, {"vocab": unmarked, "merges": content["merges"]})
    with pytest.raises(ValueError, match=r"has no <\|startoftext\|>"):
        Tokenizer.load(tmp_path)


def test_vocabulary_without_every_byte_is_refused(tokenizer, tmp_path):
    content = content_of(tokenizer)
    # "Ā" is the letter of byte 0: no merge of ours has it.
    vocab = {token: n for token, n in content["vocab"].items() if token != "Ā</w>"}
    write_pair(tmp_path, {"vocab": vocab, "merges": content["merges"]})
    with pytest.raises(ValueError, match=r"no token for 1 byte\(s\), such as 'Ā</w>'"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("merge", "complaint"), [(("x", "§§"), "are inconsistent"), (("a", "b c"), "two tokens, not 'a b c'")]
)
def test_merges_of_another_kind_are_refused(tokenizer, tmp_path, merge, complaint):
    write_pair(tmp_path, {"vocab": content_of(tokenizer)["vocab"], "merges": [merge]})
    with pytest.raises(ValueError, match=complaint):
        Tokenizer.load(tmp_path)


def test_context_must_hold_both_marks(tokenizer):
    with pytest.raises(ValueError, match="context_length = 1"):
        Tokenizer(tokenizer.bpe, context_length=1)
    assert Tokenizer(tokenizer.bpe, 2).encode(["a"]).tolist() == [[tokenizer.bos_id, tokenizer.eos_id]]


def test_bpe_dropout_is_the_librarys_bpe_where_nothing_is_left_out(tokenizer_of_captions):
    tokenizer, texts = tokenizer_of_captions
    rows, cut = tokenizer.encode_flagged(texts, dropout=1e-12, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(rows, tokenizer.encode(texts))
    np.testing.assert_array_equal(cut, tokenizer.encode_flagged(texts)[1])


def test_bpe_dropout_cuts_otherwise_and_says_the_same(tokenizer_of_captions):
    tokenizer, texts = tokenizer_of_captions
    draws = [tokenizer.encode_flagged(texts, 0.5, np.random.default_rng(seed))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any() and (draws[0] != tokenizer.encode(texts)).any()
    for row, plain in zip(draws[0], tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(row) == tokenizer.decode(plain)
    # Without a single merge a word is its bytes.
    letters = tokenizer.encode_flagged(["red"], 1.0 - 1e-12, np.random.default_rng(0))[0][0]
    assert [tokenizer.bpe.id_to_token(i) for i in letters[1:4]] == ["r", "e", "d</w>"]


@pytest.fixture(scope="module")
def tokenizer_of_captions():
    texts = ["a photo of a small red circle", "a blue star, above it's ring 42", "naïve café", "", "something RED"]
    return Tokenizer.train(texts * 5, 600, 40), texts


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_is_no_text_is_named(tokenizer, tmp_path, kind):
    if kind == "siglip":
        (tmp_path / "spiece.model").write_bytes(readers.spiece())
        tokenizer = SentencePiece.load(tmp_path, 8)
    jaxtyping.config.update("jaxtyping_disable", True)  # what annotations say is checked in tests alone
    try:
        for nothing in (None, 7, b"a"):
            with pytest.raises(DataError, match=f"text 1 must be a string, not {type(nothing).__name__}"):
                tokenizer.encode(["a", nothing])
        with pytest.raises(TypeError, match="a list of strings, not one string"):
            tokenizer.encode("a")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    # Half a surrogate pair is what a command line makes of bytes that are no UTF-8.
    np.testing.assert_array_equal(tokenizer.encode(["caf\udce9 b"]), tokenizer.encode(["caf\ufffd b"]))
