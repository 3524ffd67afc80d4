"""Byte-pair encoding of YouTokenToMe (VKCOM/YouTokenToMe), from its model files.

Words are split at white space and begin with "▁". In a word, the pair with the first of all rules is merged again and again,
the leftmost of equal ones. Characters that the model does not have become the unknown token, one for a run of them.
"""

import dataclasses

_SPACE = "▁"


@dataclasses.dataclass(frozen=True)
class YouTokenToMe:
    """A trained encoding.

    Attributes:
      characters: id of each character.
      rules: (id, id) -> (rank of the rule, id of the merged token).
      unknown, pad, begin, end: ids of special tokens; -1 if the model has none.
      source: content of the model file.
    """

    characters: dict[str, int]
    rules: dict[tuple[int, int], tuple[int, int]]
    unknown: int
    pad: int
    begin: int
    end: int
    source: str

    @classmethod
    def parse(cls, source: str) -> "YouTokenToMe":
        """Parses a model file: numbers of characters and rules, `code point id` lines, `id id merged` lines, special tokens.

        Raises ValueError for other content.
        """
        numbers = [int(word) for word in source.split()]
        num_characters, num_rules = numbers[:2] if len(numbers) > 1 else (-1, -1)
        end_of_characters, end_of_rules = 2 + 2 * num_characters, 2 + 2 * num_characters + 3 * num_rules
        if min(num_characters, num_rules) < 0 or len(numbers) != end_of_rules + 4:
            raise ValueError(f"no model of YouTokenToMe: {len(numbers)} numbers, expected {end_of_rules + 4}")
        pairs, triples = numbers[2:end_of_characters], numbers[end_of_characters:end_of_rules]
        characters = {chr(code): token for code, token in zip(pairs[::2], pairs[1::2], strict=True)}
        if _SPACE not in characters:
            raise ValueError(f"no model of YouTokenToMe: it has no token for {_SPACE!r}")
        merges = enumerate(zip(triples[::3], triples[1::3], triples[2::3], strict=True))
        rules = {(left, right): (rank, merged) for rank, (left, right, merged) in merges}
        return cls(characters, rules, *numbers[end_of_rules:], source)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        special = sum(token >= 0 for token in (self.unknown, self.pad, self.begin, self.end))
        return len(self.characters) + len(self.rules) + special

    def encode(self, text: str) -> list[int]:
        """Tokenizes a text without begin and end tokens."""
        return [token for word in text.translate(_TO_BLANK).split(" ") if word for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        tokens = [self.characters[_SPACE]]
        for character in word:
            token = self.characters.get(character, -1)
            if token >= 0 or tokens[-1] >= 0:  # one for a run of unknown characters
                tokens.append(token)
        while True:
            pairs = enumerate(zip(tokens, tokens[1:], strict=False))
            known = [(self.rules[pair], index) for index, pair in pairs if pair in self.rules]
            if not known:
                return [self.unknown if token < 0 else token for token in tokens]
            (_, merged), index = min(known)
            tokens[index : index + 2] = [merged]


_TO_BLANK = str.maketrans(dict.fromkeys(f"\t\n\v\f\r{_SPACE}", " "))
