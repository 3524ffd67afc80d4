"""Emoji by five artists with names and keywords in many languages, built from npm tarballs.

    train-jax prepare emoji/64                        # downloads by `npm pack`, renders, writes the files, once
    train-jax prepare emoji/64 --from=FOLDER          # with a folder of the tarballs
    train-jax --config.data.source=emoji/64           # also emoji/128/held_out=twemoji/languages=en+el (see `variants`)

Artists: Google (`noto`), Twitter (`twemoji`), Microsoft flat and shaded (`fluent-emoji-flat`, `fluent-emoji`), OpenMoji
(`openmoji`). A record has the fields `image` (PNG with transparency), `captions` (all that are true: the name with and
without its skin tone, the keywords in one caption, each also with the artist's style in words), `keywords`, `concept`,
`label` (of the concept), `name_en` and so on (the most specific name in each language), `artist`, `style`, `group`, `tone`,
`gender`, `role`.

Splits: `train`; `artist` (all of one artist); `pairs` (a tenth of the pairs of a concept and an artist); `compositions` (a
gender and a skin tone of each role); see `concepts.assign_splits`.
"""

import functools
from pathlib import Path

from train_jax import paths
from train_jax.data.preparation import prepare_builder
from train_jax.datasets.emoji.captions import is_true

__all__ = ["builder", "is_true", "licences", "truth"]


def builder(variant: str = "64", data_dir: str | None = None, prepare_from: str | None = None):
    """Returns the TFDS builder of a variant.

    Args:
      variant: size and options; see `variants.parse`.
      prepare_from: folder of the npm tarballs from which missing files are written; "": `npm pack` downloads them; None:
        missing files are an error.

    Raises ValueError for an unknown variant and for missing files, DataError if files cannot be made.
    """
    from train_jax.datasets.emoji import tarballs, variants
    from train_jax.datasets.emoji.emoji_dataset_builder import Builder, Config

    parsed = variants.parse(variant)

    def make(folder: Path | None = None) -> Builder:
        return Builder(config=Config(name=parsed.name, variant=parsed, tarballs=folder), data_dir=data_dir)

    if make().is_prepared():
        return make()
    if prepare_from is None:
        option = f" --data-dir={data_dir}" if data_dir else ""
        raise ValueError(f"not prepared yet: run `train-jax prepare emoji/{variant}{option}`")
    if prepare_from:
        folder = paths.on_disk(prepare_from, "--from=FOLDER")
        tarballs.verify(folder)
    else:
        folder = paths.cache() / "emoji" / "tarballs"
        tarballs.pack(folder)
    return prepare_builder(functools.partial(make, folder))


def licences(variant: str, split: str) -> list[str]:
    """Returns who made the drawings and names of a variant, and their licences, a sentence each."""
    from train_jax.datasets.emoji import tarballs, variants

    parsed = variants.parse(variant)
    artists = parsed.drawn_by if split.startswith("artist") else parsed.artists
    packages = [*(tarballs.ARTISTS[name] for name in artists), tarballs.NAMES, tarballs.SEQUENCE_NAMES]
    return list(dict.fromkeys(f"{package.author}, {package.url}: {package.licence}" for package in packages))


def truth(builder) -> dict:
    """Returns the fields of a Source that tell the truth about records and images."""
    reader = _open_reader(builder.data_path)
    return {
        "label_names": tuple(builder.info.features["label"].names),
        "is_true": is_true,
        "read": reader.read,
        "judge": reader.judge,
        "reader_accuracy": reader.accuracy,
    }


@functools.lru_cache(maxsize=4)  # so that parts of a mixture have equal truths, and features are read once
def _open_reader(folder: paths.AnyPath):
    """Opens the reader of a prepared set."""
    from train_jax.datasets.emoji.reader import Reader

    return Reader(folder, functools.partial(_load_records, folder))


def _load_records(folder: paths.AnyPath) -> list[dict]:
    """Loads what the reader has to know of the records of all splits."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    skip = {"image": tfds.decode.SkipDecoding()}
    rows = [row for split in builder.info.splits for row in builder.as_data_source(split, decoders=skip)]
    texts = ("captions", "keywords")
    return [
        {name: row[name].decode() for name in ("id", "concept", "tone", "artist")}
        | {name: {text.decode() for text in row[name]} for name in texts}
        for row in rows
    ]
