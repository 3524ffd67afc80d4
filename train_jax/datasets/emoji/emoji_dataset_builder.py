"""TFDS builder of the emoji: reads drawings and names from npm tarballs, renders them, and assigns splits."""

import dataclasses
import io
import logging
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from train_jax.data import images
from train_jax.data.errors import DataError
from train_jax.datasets.emoji import captions, concepts, drawings, reader, tarballs
from train_jax.datasets.emoji.features import describe, describe_style
from train_jax.datasets.emoji.variants import Variant

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Config of the builder: a variant, and the folder of the tarballs if files are to be written."""

    variant: Variant | None = None
    tarballs: Path | None = None


class Builder(tfds.core.GeneratorBasedBuilder):
    """Emoji by several artists with captions and attributes; see `train_jax.datasets.emoji`."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Names of all languages are the first captions.", "1.0.0": "First release."}

    def _create_builder_config(self, builder_config, version):
        return builder_config  # without TFDS's warning at each opening that a class does not list all of its configs

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        names = tuple(f"name_{language}" for language in self.builder_config.variant.languages)
        texts = ("id", "concept", *names, "artist", "style", "group", "tone", "gender", "role")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 4), encoding_format="png"),
                    "captions": tfds.features.Sequence(text),
                    "keywords": tfds.features.Sequence(text),
                    "label": tfds.features.ClassLabel(),  # of the concept; the names are known when files are written
                    **dict.fromkeys(texts, text),
                }
            )
        )

    def _split_generators(self, dl_manager):
        variant, folder = self.builder_config.variant, self.builder_config.tarballs
        names = captions.read_words("en", folder)
        words = {language: captions.read_words(language, folder) for language in variant.languages}
        for language, by_code in words.items():
            if 2 * len(by_code) < len(names):
                log.warning("%s names %d emoji, English %d: the others have no caption", language, len(by_code), len(names))
        chosen = [x for artist in variant.drawn_by for x in drawings.read(artist, folder)]
        attributes = concepts.describe({drawing.code for drawing in chosen})

        def is_usable(drawing: drawings.Drawing) -> bool:
            x = attributes[drawing.code]
            is_named = x.concept in names and any({drawing.code, x.concept} & set(by_code) for by_code in words.values())
            return is_named and (variant.tones or not x.tone)

        chosen = [drawing for drawing in chosen if is_usable(drawing)]
        splits = concepts.assign_splits(chosen, variant)
        labels = sorted({names[attributes[drawing.code].concept].name for drawing in chosen})
        self.info.features["label"].names = labels
        examples = {split: [] for split in concepts.SPLITS}
        for drawing, split, png in zip(chosen, splits, drawings.render(chosen, variant.size), strict=True):
            x = attributes[drawing.code]
            examples[split].append(
                {
                    "image": png,
                    "captions": captions.write_captions(drawing.code, x.concept, drawing.artist, words),
                    "keywords": captions.list_keywords(drawing.code, x.concept, words),
                    "label": names[x.concept].name,
                    "id": f"{drawing.artist}/{drawing.code}",
                    "concept": names[x.concept].name,
                    **{
                        f"name_{language}": captions.choose_name(drawing.code, x.concept, by_code)
                        for language, by_code in words.items()
                    },
                    "artist": drawing.artist,
                    "style": captions.STYLES[drawing.artist],
                    "group": drawing.group,
                    "tone": x.tone,
                    "gender": x.gender,
                    "role": names[x.role].name if x.role in names else "",
                }
            )
        if not examples["train"]:
            raise DataError("no drawing is left for training: choose more artists or languages")
        # Now, since the folder is renamed when it is complete.
        (self.data_path / tarballs.LICENCES).write_text(tarballs.attribution(), encoding="utf-8")
        self._write_reader([row for rows in examples.values() for row in rows])
        return {split: self._generate_examples(rows) for split, rows in examples.items() if rows}

    def _write_reader(self, rows) -> None:
        """Describes all pictures for the reader, and measures its accuracy."""
        described = tqdm(rows, "describing", unit=" drawings", disable=None)
        both = [(describe(x), describe_style(x)) for x in (np.asarray(images.decode(row["image"])) for row in described)]
        features, styles = map(np.stack, zip(*both, strict=True))
        columns = {name: np.array([row[name] for row in rows]) for name in ("id", "concept", "tone", "artist", "role")}
        # By author: who knows Microsoft's flat drawings knows the shaded ones.
        authors = np.array([tarballs.ARTISTS[artist].author for artist in columns["artist"]])
        accuracy = {}
        for part, chosen in (("concept", columns["tone"] == ""), ("tone", columns["tone"] != "")):
            told = (x[chosen] for x in (features, columns[part], columns["concept"], authors))
            by_author = reader.measure_accuracy(*told)
            if by_author:
                accuracy[part] = sum(by_author.values()) / len(by_author)
        # No family on both sides: a role's forms look alike.
        families = np.where(columns["role"] == "", columns["concept"], columns["role"])
        accuracy["artist"] = reader.measure_artist_accuracy(styles, columns["artist"], families)
        reader.write(self.data_path, columns["id"].tolist(), features, styles, accuracy)

    def _generate_examples(self, rows):
        for row in rows:
            yield row["id"], row | {"image": io.BytesIO(row["image"])}
