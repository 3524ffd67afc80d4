"""Variants of the emoji: size, artists, languages and skin tones, written in the name of the source.

    emoji/64                                    all artists, OpenMoji's held out; English
    emoji/128/artists=noto+twemoji              training on two artists
    emoji/64/held_out=twemoji/languages=en+el   another artist held out; names in English and Greek
    emoji/64/held_out=none/tones=no             no artist held out; without skin tones
"""

import dataclasses
import hashlib

from train_jax.datasets.emoji.tarballs import ARTISTS

SIZES = (32, 64, 128)
NONE = "none"
_LONGEST = 60  # characters of languages in the name of a folder


@dataclasses.dataclass(frozen=True)
class Variant:
    """Choice of pictures and captions.

    Attributes:
      size: side of the pictures in pixels.
      artists: artists of all splits but `artist`.
      held_out: artist of the split `artist`; "none": there is no such split.
      languages: languages of the captions, as Unicode's CLDR names them.
      tones: whether there are pictures with skin tones, and the split `compositions`.
    """

    size: int
    artists: tuple[str, ...]
    held_out: str
    languages: tuple[str, ...] = ("en",)
    tones: bool = True

    @property
    def name(self) -> str:
        """Name of the variant, equal for equal choices; a name of a folder."""
        languages = "+".join(self.languages)
        if len(languages) > _LONGEST:
            digest = hashlib.sha256(languages.encode()).hexdigest()[:12]
            languages = f"{len(self.languages)} languages {digest}"
        words = [str(self.size), "+".join(self.artists), self.held_out, languages]
        return ",".join([*words, "tones" if self.tones else "plain"])

    @property
    def drawn_by(self) -> tuple[str, ...]:
        """All artists, with the one that is held out."""
        return self.artists + (self.held_out,) * (self.held_out != NONE)


def parse(text: str) -> Variant:
    """Parses `SIZE[/artists=A+B][/held_out=A][/languages=en+el][/tones=no]`.

    Raises ValueError for an unknown option or value.
    """
    size, *words = text.split("/")
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in ("artists", "held_out", "languages", "tones") or not value or key in options:
            raise ValueError(f"{word!r} is no option: add artists=A+B, held_out=A, languages=en+el or tones=no, each once")
        options[key] = value
    if size not in map(str, SIZES):
        raise ValueError(f"there is no size {size!r}: choose one of {', '.join(map(str, SIZES))}")
    artists = options.get("artists", "").split("+") if "artists" in options else None
    held_out = options.get("held_out", "openmoji")
    for artist in (*(artists or ()), *((held_out,) if held_out != NONE else ())):
        if artist not in ARTISTS:
            raise ValueError(f"there is no artist {artist!r}: choose among {', '.join(ARTISTS)}")
    if artists is not None and held_out in artists:
        raise ValueError(f"{held_out} is held out: name another artist, held_out=ARTIST or held_out={NONE}, or leave it out")
    if "" in options.get("languages", "en").split("+"):
        raise ValueError(f"languages={options['languages']}: name languages as CLDR does, such as en+el")
    if options.get("tones", "yes") not in ("yes", "no"):
        raise ValueError(f"tones={options['tones']}: write yes or no")
    return Variant(
        size=int(size),
        artists=tuple(x for x in ARTISTS if x != held_out and (artists is None or x in artists)),
        held_out=held_out,
        languages=tuple(dict.fromkeys(options.get("languages", "en").split("+"))),
        tones=options.get("tones", "yes") == "yes",
    )
