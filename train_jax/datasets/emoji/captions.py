"""Captions of emoji: names and keywords that Unicode's CLDR publishes in each language, and an artist's style in words."""

import dataclasses
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from train_jax.data.errors import DataError
from train_jax.datasets.emoji import tarballs
from train_jax.datasets.emoji.drawings import normalize_code

# What is seen, not whose it is: a caption should be of use without the names of firms. In English only.
STYLES = {
    "noto": "softly shaded",
    "twemoji": "in flat colours",
    "fluent-emoji-flat": "in flat geometric shapes",
    "fluent-emoji": "in glossy 3D",
    "openmoji": "with black outlines",
}


@dataclasses.dataclass(frozen=True)
class Words:
    """Name and keywords of an emoji in a language."""

    name: str
    keywords: tuple[str, ...]


def read_words(language: str, folder: Path) -> dict[str, Words]:
    """Reads the words of a language by code; a regional one, such as de-CH, has those of its language where it has none.

    Raises DataError for a language that CLDR does not have.
    """
    parent = language.rpartition("-")[0]
    words = read_words(parent, folder) if parent else {}
    for package, root in ((tarballs.NAMES, "annotations"), (tarballs.SEQUENCE_NAMES, "annotationsDerived")):
        with tarballs.opened(package, folder) as tar:
            name = f"{root}/{language}/annotations.json"
            if f"package/{name}" not in tar.getnames():
                if package is tarballs.SEQUENCE_NAMES:
                    continue  # some have names of single characters only
                raise DataError(f"there is no language {language!r}: choose among {', '.join(_list_languages(tar))}")
            for characters, entry in tarballs.read_json(tar, name)[root].get("annotations", {}).items():
                if entry.get("tts"):
                    code = normalize_code("-".join(f"{ord(character):x}" for character in characters))
                    words[code] = Words(entry["tts"][0], tuple(entry.get("default", ())))
    return words


def _list_languages(tar: tarfile.TarFile) -> list[str]:
    """Lists the languages of a package of CLDR."""
    return sorted({parts[2] for parts in (name.split("/") for name in tar.getnames()) if len(parts) == 4})


def write_captions(code: str, concept: str, artist: str, words: Mapping[str, Mapping[str, Words]]) -> list[str]:
    """Writes the captions that are true of an artist's drawing; empty if no language names it.

    For each language, the name with its skin tone and without, and the keywords. In English also with the style. The most
    specific names of all languages come first.

    Args:
      words: language -> code -> words.
    """
    captions = [name for by_code in words.values() if (name := choose_name(code, concept, by_code))]
    for language, by_code in words.items():
        names = [by_code[key].name for key in dict.fromkeys((code, concept)) if key in by_code]
        keywords = ", ".join(_list_keywords(code, concept, by_code))
        texts = [*names, *[keywords] * bool(keywords)]
        captions += texts
        if language == "en":
            captions += [f"{text}, {STYLES[artist]}" for text in texts]
    return list(dict.fromkeys(captions))


def choose_name(code: str, concept: str, by_code: Mapping[str, Words]) -> str:
    """Chooses the most specific name in a language, or "" if there is none."""
    return next((by_code[key].name for key in (code, concept) if key in by_code), "")


def split_style(caption: str) -> tuple[str, str]:
    """Splits a caption into what is drawn and the artist whose style it names, or ""."""
    for artist, style in STYLES.items():
        ending = f", {style}"
        if caption.casefold().endswith(ending.casefold()):
            return caption[: -len(ending)], artist
    return caption, ""


def list_keywords(code: str, concept: str, words: Mapping[str, Mapping[str, Words]]) -> list[str]:
    """Lists the keywords of an emoji in all languages, each once."""
    return list(dict.fromkeys(x for by_code in words.values() for x in _list_keywords(code, concept, by_code)))


def _list_keywords(code: str, concept: str, by_code: Mapping[str, Words]) -> Sequence[str]:
    """Lists the keywords of an emoji in one language."""
    return next((by_code[key].keywords for key in (code, concept) if key in by_code), ())


def is_true(caption: str, record: Mapping) -> bool:
    """Returns whether a caption is one of a record's captions, or one of its keywords."""
    return caption in record["captions"] or caption in record["keywords"]
