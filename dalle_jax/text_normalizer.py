"""Normalisation of dalle-mini's captions (borisdayma/dalle-mini, `model/text.py`).

Texts become lower-case ASCII with commas and double quotes as the only punctuation, except inside of numbers and words.
"""

import dataclasses
import functools
import html
import math
import re

import ftfy

WORDS = "enwiki-words-frequency.txt"  # words by descending frequency, one a line, in dalle-mini's repository

# Stands for characters that punctuation rules must not see, while other rules see a part of a word.
_MARK = "xtokx{}xtokx"
_KEPT = {"dot": ".", "quote": "'", "slash": "/"}
# Rules before and after the words of hashtags are split.
_RULES = (
    (r"<person>(?:[,\s]*(?:and)*[,\s]*<person>)+", " people "),
    (r"<person>", " a person "),
    (r"\A\s*\[\d+\]", ""),
    (r"\[\d+\]\s*\Z", ""),
    (r"<[^<]+?>", " "),
    (r"http\S+", ""),
    (r"(\d),(\d{3})", r"\1\2"),
    (r"(\d),(\d{3})", r"\1\2"),  # again: matches of one pass do not overlap
    (r"(\w)\.(\w)", rf"\1{_MARK.format('dot')}\2"),
    (r"'(?=(?:[stdm]|ll|re|ve)\b)", _MARK.format("quote")),
    (r"(\d)/(\d)", rf"\1{_MARK.format('slash')}\2"),
    (r"(\w)-(\w)", r"\1 \2"),
    (r"([%&/$*])", r" \1 "),
)
_HASHTAG = r"#(\w+)"
_LATER_RULES = (
    (r"[_#\\]", " "),
    (r"['\"`]", ' " '),
    (r"[()\[\].,|:;?!=+~\-/{}]", ","),
    *((_MARK.format(name), character) for name, character in _KEPT.items()),
    (r"(\D)\1{3,}", r"\1"),
    (r'(?:\s*"+\s*)+', ' " '),
    (r"(?:\s*,+\s*)+", ", "),
    (r"\s+", " "),
)


@dataclasses.dataclass(frozen=True)
class TextNormalizer:
    """Normalises texts.

    Attributes:
      words: words by descending frequency, which split hashtags; (): hashtags are errors.
    """

    words: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        """Returns the normalised text, which begins with a space.

        Raises ValueError for a text that needs what is not installed (letters beyond ASCII) or not there (hashtags).
        """
        text = _to_ascii(html.unescape(html.unescape(ftfy.fix_text(text)))).lower()
        for pattern, replacement in _RULES:
            text = re.sub(pattern, replacement, text)
        text = re.sub(_HASHTAG, lambda match: self._split_hashtag(match[1]), text)
        for pattern, replacement in _LATER_RULES:
            text = re.sub(pattern, replacement, text)
        return " " + text.strip().removesuffix(",").removeprefix(",").strip()

    def _split_hashtag(self, tag: str) -> str:
        return " ".join(word for part in re.split("[^a-z0-9']+", tag) for word in self._split_words(part))

    def _split_words(self, text: str) -> list[str]:
        """Splits a text without spaces into the words of least total cost, the logarithm of a word's rank."""
        costs, longest = self._word_costs
        best = [(0.0, 0)]  # of each beginning of the text: its cost, and the length of its last word
        for end in range(1, len(text) + 1):
            lengths = range(1, min(end, longest) + 1)
            best.append(min((best[end - n][0] + costs.get(text[end - n : end], math.inf), n) for n in lengths))
        words, end = [], len(text)  # from the last to the first
        while end:
            word = text[end - best[end][1] : end]
            is_suffix = words and word != "'" and (words[-1] == "'s" or (word[-1].isdigit() and words[-1][0].isdigit()))
            words[len(words) - bool(is_suffix) :] = [word + words[-1] if is_suffix else word]
            end -= best[end][1]
        return words[::-1]

    @functools.cached_property
    def _word_costs(self) -> tuple[dict[str, float], int]:
        """The cost of each word, and the length of the longest."""
        if not self.words:
            raise ValueError(f"a hashtag is split into words by {WORDS}, which was not beside the weights")
        return {word: math.log(rank) for rank, word in enumerate(self.words, 1)}, max(map(len, self.words))


def _to_ascii(text: str) -> str:
    """Transliterates a text; emoji become their names."""
    if text.isascii():
        return text
    try:
        import emoji  # extras
        import text_unidecode
    except ImportError as error:
        raise ValueError(
            f"{text!r} has characters beyond ASCII, which this model reads transliterated by packages that are not "
            "installed: pip install 'multimodal-jax[dalle-mini]'"
        ) from error
    return text_unidecode.unidecode(emoji.demojize(text))
