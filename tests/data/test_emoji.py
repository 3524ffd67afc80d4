"""Emoji are built from tarballs like npm's: pictures, captions, attributes, and splits that nothing leaks through.

The tarballs are made here, with a few invented drawings of coloured squares, so that every picture is known.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import scipy
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from train_jax import prepare_data as command
from train_jax.data import builders, images, sources
from train_jax.data.errors import DataError
from train_jax.data.papers import Papers
from train_jax.data.sources import Source, open_source
from train_jax.datasets.emoji import captions, concepts, demo, drawings, features, reader, tarballs, variants
from train_jax.datasets.emoji.drawings import Drawing

TONES = {"light": "🏻", "medium-light": "🏼", "medium": "🏽", "medium-dark": "🏾", "dark": "🏿"}
THINGS = {
    "🍎": ("red apple", ["apple", "fruit"]),
    "🍐": ("pear", ["fruit"]),
    "🍇": ("grapes", ["fruit", "wine"]),
    "🍌": ("banana", ["fruit"]),
    "🐈": ("cat", ["pet"]),
    "🐕": ("dog", ["pet"]),
    "🐟": ("fish", ["zodiac"]),
    "🚲": ("bicycle", ["bike"]),
    "☀": ("sun", ["bright"]),
    "🌙": ("crescent moon", ["night"]),
    "😀": ("grinning face", ["smile"]),
    "😃": ("grinning face with big eyes", ["mouth", "smile"]),
}
ROLES = {"🧑‍🚒": "firefighter", "🧑‍🍳": "cook", "🧑‍🎨": "artist"}
SIGNED = {"🚴": "person biking", "🏃": "person running"}
GREEK = {"🍎": ("κόκκινο μήλο", ["φρούτο"]), "🚲": ("ποδήλατο", [])}


def named() -> tuple[dict, dict]:
    """Characters -> name and keywords: of CLDR's two packages."""
    base, derived = dict(THINGS), {}
    for person, role in ROLES.items():
        for head, gender in (("🧑", ""), ("👩", "woman "), ("👨", "man ")):
            base[person.replace("🧑", head)] = (gender + role, [role])
            for tone, sign in TONES.items():
                name = f"{gender}{role}: {tone} skin tone"
                derived[person.replace("🧑", head + sign)] = (name, [role, f"{tone} skin tone"])
    for person, role in SIGNED.items():
        for sign, gender in (("", "person"), ("\u200d♀", "woman"), ("\u200d♂", "man")):
            name = role.replace("person", gender)
            base[person + sign] = (name, [])
            for tone, mark in TONES.items():
                derived[person + mark + sign] = (f"{name}: {tone} skin tone", [f"{tone} skin tone"])
    return base, derived


BASE, DERIVED = named()


def code_of(characters: str) -> str:
    return "-".join(f"{ord(character):x}" for character in characters)


def colour_of(artist: str, characters: str) -> tuple[int, int, int]:
    """The colour of a square. Twitter draws two faces alike, and Google a man like a person."""
    if artist == "twemoji":
        characters = characters.replace("😃", "😀")
    if artist == "noto":
        characters = characters.replace("👨", "🧑").replace("\u200d♂", "")
    return tuple((zlib.crc32(f"{artist} {characters}".encode()) >> shift & 255) // 4 * 4 for shift in (0, 8, 16))


def body(artist: str, characters: str) -> str:
    """A square in the middle, by a gradient of one colour whose name differs from drawing to drawing."""
    name, colour = f"g{code_of(characters)}", "#{:02x}{:02x}{:02x}".format(*colour_of(artist, characters))
    return (
        f'<defs><linearGradient id="{name}"><stop stop-color="{colour}"/></linearGradient></defs>'
        f'<path fill="url(#{name})" d="M4 4h8v8h-8z"/>'
    )


def write_tar(file: Path, files: dict[str, object]) -> None:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content, ensure_ascii=False).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def slug(characters: str) -> str:
    return (BASE | DERIVED)[characters][0].replace(" ", "-").replace(":", "")


def write_tarballs(folder: Path) -> None:
    folder.mkdir()
    for artist, package in tarballs.ARTISTS.items():
        drawn = [c for c in BASE | DERIVED if not (artist == "openmoji" and c == "🌙")]
        icons = {slug(c): {"body": body(artist, c)} for c in drawn}
        # Noto writes the presentation selector, and has a drawing that no language names.
        characters = {code_of(c + "\ufe0f" * (artist == "noto" and c == "☀")): slug(c) for c in drawn}
        icons["nameless"], characters["e000"] = {"body": ""}, "nameless"
        # A wide icon with an origin of its own, of which the middle is drawn at half the size.
        icons[slug("🐟")] = {"body": body(artist, "🐟"), "left": -8, "top": 4, "width": 32, "height": 8}
        groups = {"Food & Drink": [slug(c) for c in "🍎🍐🍇🍌"], "Animals & Nature": [slug("🐈")]}
        if artist == "openmoji":
            groups = {name.replace(" &", ""): icons for name, icons in groups.items()}
        files = {"icons.json": {"prefix": artist, "icons": icons, "width": 16, "height": 16}}
        shaded = artist == "fluent-emoji"
        files |= {"chars.json": [] if shaded else characters, "metadata.json": {} if shaded else {"categories": groups}}
        write_tar(folder / package.file, files)
    for package, root, english in (
        (tarballs.NAMES, "annotations", BASE),
        (tarballs.SEQUENCE_NAMES, "annotationsDerived", DERIVED),
    ):
        languages = {"en": english, "el": {c: words for c, words in GREEK.items() if c in english}}
        if package is tarballs.NAMES:
            languages["el-CY"] = {"🍎": ("μήλο", [])}  # a region: only what differs
        entries = {
            f"{root}/{language}/annotations.json": {
                root: {"annotations": {c: {"tts": [name], "default": keywords} for c, (name, keywords) in words.items()}}
            }
            for language, words in languages.items()
        }
        write_tar(folder / package.file, entries)


def signed(package: tarballs.Package, folder: Path) -> tarballs.Package:
    return dataclasses.replace(package, sha256=hashlib.sha256((folder / package.file).read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("npm") / "tarballs"
    write_tarballs(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def checksums(folder):
    """The checksums of the invented tarballs in place of the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        for artist, package in tarballs.ARTISTS.items():
            patch.setitem(tarballs.ARTISTS, artist, signed(package, folder))
        for name in ("NAMES", "SEQUENCE_NAMES"):
            patch.setattr(tarballs, name, signed(getattr(tarballs, name), folder))
        yield


@pytest.fixture(scope="module")
def data_dir(folder, tmp_path_factory) -> str:
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    assert command.main(["emoji/32", f"--from={folder}", f"--data-dir={data_dir}"]) == 0
    return data_dir


@pytest.fixture(scope="module")
def splits(data_dir) -> dict[str, Source]:
    return {split: open_source("emoji/32", split, data_dir=data_dir) for split in concepts.SPLITS}


@pytest.fixture(scope="module")
def records(splits) -> dict[str, dict]:
    """Every record by its id, with its split and its pixels."""
    return {
        record["id"]: record | {"split": split, "pixels": np.asarray(Image.open(io.BytesIO(record["image"])))}
        for split, source in splits.items()
        for record in source
    }


# ---------------------------------------------------------------------------------------------------------------------
# Records


def test_every_named_drawing_is_a_record(records, splits):
    expected = {f"{artist}/{code_of(c)}" for artist in tarballs.ARTISTS for c in BASE | DERIVED}
    assert set(records) == expected - {f"openmoji/{code_of('🌙')}"}
    assert sum(map(len, splits.values())) == len(records)


def test_pictures_are_the_drawings_with_transparency(records):
    for artist in tarballs.ARTISTS:
        for characters in ("🍎", "👩🏿‍🚒", "☀"):
            pixels = records[f"{artist}/{code_of(characters)}"]["pixels"]
            assert pixels.shape == (32, 32, 4)
            expected = np.zeros((32, 32, 4), int)
            expected[8:24, 8:24] = (*colour_of(artist, characters), 255)
            np.testing.assert_allclose(pixels, expected, atol=1)
        fish = np.zeros((32, 32, 4), int)
        fish[12:20, 12:20] = (*colour_of(artist, "🐟"), 255)
        np.testing.assert_allclose(records[f"{artist}/{code_of('🐟')}"]["pixels"], fish, atol=1)


def test_captions_and_attributes(records):
    firefighter = records[f"openmoji/{code_of('👩🏿‍🚒')}"]
    assert firefighter["captions"] == [
        "woman firefighter: dark skin tone",
        "woman firefighter",
        "firefighter, dark skin tone",
        "woman firefighter: dark skin tone, with black outlines",
        "woman firefighter, with black outlines",
        "firefighter, dark skin tone, with black outlines",
    ]
    assert firefighter["keywords"] == ["firefighter", "dark skin tone"]
    names = ("concept", "artist", "group", "tone", "gender", "role", "split")
    values = [firefighter[name] for name in names]
    assert values == ["woman firefighter", "openmoji", "", "dark", "woman", "firefighter", "artist"]
    apple = records[f"openmoji/{code_of('🍎')}"]
    assert [apple[name] for name in names] == ["red apple", "openmoji", "Food & Drink", "", "", "", "artist"]
    runner = records[f"noto/{code_of('🏃')}"]
    assert (runner["concept"], runner["gender"], runner["role"]) == ("person running", "person", "person running")


def test_labels_are_concepts(splits, records):
    names = splits["train"].label_names
    assert list(names) == sorted(name for name, _ in BASE.values())
    assert all(names[record["label"]] == record["concept"] for record in records.values())


def test_truth_of_captions(splits):
    apple = {"captions": ["red apple", "red apple, with black outlines"], "keywords": ["fruit"]}
    truths = [splits["train"].is_true(text, apple) for text in ("red apple", "fruit", "pear", "red apple, in glossy 3D")]
    assert truths == [True, True, False, False]


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ("👩🏽‍🚒", ("👩‍🚒", "medium", "woman", "🧑‍🚒")),
        ("🚴🏻\u200d♂", ("🚴\u200d♂", "light", "man", "🚴")),
        ("🚶\u200d♀\u200d➡", ("🚶\u200d♀\u200d➡", "", "woman", "🚶\u200d➡")),
        ("🚶\u200d➡", ("🚶\u200d➡", "", "person", "🚶\u200d➡")),
        ("👩🏿", ("👩", "dark", "woman", "🧑")),
        ("👴", ("👴", "", "man", "🧓")),
        ("🧑🏻\u200d🤝\u200d🧑🏿", ("🧑\u200d🤝\u200d🧑", "light+dark", "", "")),
        ("👩🏻\u200d🤝\u200d👨🏿", ("👫", "light+dark", "", "")),
        ("👨\u200d👩\u200d👧", ("👨\u200d👩\u200d👧", "", "", "")),
        ("👨\u200d👧", ("👨\u200d👧", "", "", "")),
        ("🧑\u200d🚀", ("🧑\u200d🚀", "", "", "")),  # no woman and no man are drawn: no role
        ("👍🏾", ("👍", "medium-dark", "", "")),
        ("🇬🇷", ("🇬🇷", "", "", "")),
    ],
)
def test_attributes_of_characters(characters, expected):
    concept, tone, gender, role = expected
    others = ["👩\u200d🚒", "🚴\u200d♀", "🚶\u200d♂\u200d➡", "👨", "👵"]
    actual = concepts.describe([code_of(x) for x in (characters, *others)])[code_of(characters)]
    assert actual == concepts.Attributes(code_of(concept), tone, gender, role and code_of(role))


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def test_one_artist_is_wholly_held_out(records):
    assert {record["artist"] for record in records.values() if record["split"] == "artist"} == {"openmoji"}
    assert all(record["split"] == "artist" for record in records.values() if record["artist"] == "openmoji")


def find_leaks(records: dict[str, dict]) -> list[tuple[str, str]]:
    """Pictures of held-out pairs and compositions that are in `train`, also mirrored, and those that say the same.

    A second truth, by pixels and by words: names without skin tones, genders and directions.
    """

    def plain(record) -> tuple[str, ...]:
        first, *others = re.split("[:,] ", record["captions"][0])
        people = r"(woman and man|women|woman|men|man|people|person)\b(?!’) ?"
        others = [x for x in others if not re.fullmatch(f"{people}|.* skin tone|facing right", x)]
        return (re.sub(f"^{people}", "", first), *others)

    seen, said = {}, set()
    for key, record in records.items():
        if record["split"] == "train":
            for pixels in (record["pixels"], record["pixels"][:, ::-1]):
                seen[pixels.tobytes()] = key
            said.add((record["artist"], plain(record)))
    leaks = []
    for key, record in records.items():
        if record["split"] in ("pairs", "compositions") and record["pixels"].tobytes() in seen:
            leaks.append((key, seen[record["pixels"].tobytes()]))
        if record["split"] == "pairs" and (record["artist"], plain(record)) in said:
            leaks.append((key, " ".join(plain(record))))
    return leaks


def test_nothing_leaks(records):
    assert collections.Counter(record["split"] for record in records.values())["pairs"] > 0
    assert find_leaks(records) == []


def random_world(rng: np.random.Generator) -> tuple[list[Drawing], dict[str, dict]]:
    """Drawings by five artists with tones, genders and directions, many of which look alike, as records without a split."""
    roles = [chr(0x1F300 + number) for number in range(60)]
    drawn, records = [], {}
    for artist in tarballs.ARTISTS:
        for number, role in enumerate(roles):
            is_alike = rng.random() < 0.3  # a man is drawn like a person
            twin = roles[number - 1] if number and rng.random() < 0.1 else role  # drawn like the one before
            for gender, sign in (("person", ""), ("woman", "\u200d♀"), ("man", "\u200d♂")):
                for direction in ("", "\u200d➡"):
                    for tone, mark in {"": "", **TONES}.items():
                        look = f"{artist} {twin} {'person' if is_alike and gender == 'man' else gender} {tone}"
                        code = code_of(role + mark + sign + direction)
                        pixels = np.frombuffer(hashlib.sha256(look.encode()).digest(), np.uint8).reshape(4, 8)
                        drawn.append(Drawing(artist, code, "", f'<svg id="{code}">{look}{direction}</svg>'))
                        records[f"{artist}/{code}"] = {
                            "artist": artist,
                            "captions": [f"{gender} {number}: {tone}"],
                            "pixels": pixels[:, ::-1] if direction else pixels,
                            "composition": (number, gender, tone),
                        }
    return drawn, records


@pytest.fixture(scope="module")
def world() -> dict[str, dict]:
    drawn, records = random_world(np.random.default_rng(3))
    for drawing, split in zip(drawn, concepts.assign_splits(drawn, variants.parse("64")), strict=True):
        records[f"{drawing.artist}/{drawing.code}"]["split"] = split
    return records


def test_nothing_leaks_where_many_drawings_are_alike(world):
    counts = collections.Counter(record["split"] for record in world.values())
    assert min(counts[split] for split in concepts.SPLITS) > 50
    assert find_leaks(world) == []


def test_every_part_of_a_composition_is_seen(world):
    seen = {record["composition"] for record in world.values() if record["split"] == "train"}
    held_out = {record["composition"] for record in world.values() if record["split"] == "compositions"}
    assert not seen & held_out
    assert len({number for number, _, _ in held_out}) > 15
    for number, gender, tone in held_out:
        assert any((n, g) == (number, gender) for n, g, _ in seen)
        assert any((g, t) == (gender, tone) for _, g, t in seen)
        others = {"woman", "man"} - {gender} if gender != "person" else {"woman", "man"}
        assert any((number, g, tone) in seen for g in others)


def test_a_tenth_of_the_pairs_is_held_out():
    drawn = [Drawing(a, code_of(chr(0x4E00 + n)), "", f"{a}{n}") for a in tarballs.ARTISTS for n in range(2000)]
    splits = concepts.assign_splits(drawn, variants.parse("64"))
    pairs = [x for x, split in zip(drawn, splits, strict=True) if split == "pairs"]
    counts = collections.Counter(x.artist for x in pairs)
    assert sorted(counts) == sorted(set(tarballs.ARTISTS) - {"openmoji"})
    for count in counts.values():  # binomial of 2,000 pairs with standard deviation 13.4
        assert abs(count - 200) < 4 * 13.4
    assert len({x.code for x in pairs}) == len(pairs)  # other artists' drawings remain
    assert splits == concepts.assign_splits(drawn, variants.parse("128"))


def test_fingerprints_ignore_names_of_gradients():
    a, b, c = (Drawing("noto", "a", "", f"<svg>{body('noto', x)}</svg>") for x in ("👨\u200d🚒", "🧑\u200d🚒", "🍎"))
    assert a.svg != b.svg and a.fingerprint == b.fingerprint != c.fingerprint


# ---------------------------------------------------------------------------------------------------------------------
# Reader

SHAPES = {
    "disc": lambda draw, box, ink: draw.ellipse(box, fill=ink),
    "box": lambda draw, box, ink: draw.rectangle(box, fill=ink),
    "ring": lambda draw, box, ink: draw.ellipse(box, outline=ink, width=8),
    "frame": lambda draw, box, ink: draw.rectangle(box, outline=ink, width=8),
    "wedge": lambda draw, box, ink: draw.polygon([(box[0], box[3]), (box[2], box[3]), (box[2], box[1])], fill=ink),
    "tent": lambda draw, box, ink: draw.polygon([(box[0], box[3]), (box[2], box[3]), (32, box[1])], fill=ink),
    "bar": lambda draw, box, ink: draw.rectangle((box[0], 28, box[2], 36), fill=ink),
    "post": lambda draw, box, ink: draw.rectangle((28, box[1], 36, box[3]), fill=ink),
}
INKS = {"red": (200, 30, 30), "green": (30, 150, 40), "blue": (40, 60, 200), "black": (20, 20, 20)}


def draw_shape(shape: str, ink: str, side: int = 64) -> Image.Image:
    image = Image.new("RGBA", (64, 64))
    SHAPES[shape](ImageDraw.Draw(image), (10, 10, 54, 54), (*INKS[ink], 255))
    return image.resize((side, side))


def describe_all(papers: Papers, rng: np.random.Generator, side: int = 64) -> np.ndarray:
    drawn = [draw_shape(shape, ink, side) for shape in SHAPES for ink in INKS]
    return np.stack([features.describe(np.asarray(papers.place(image, rng))) for image in drawn])


CONCEPTS, INK_OF = (np.array(x) for x in zip(*((s, i) for s in SHAPES for i in INKS), strict=True))


@pytest.fixture(scope="module")
def described() -> np.ndarray:
    return describe_all(Papers(), np.random.default_rng(0))


def test_shapes_are_read_on_other_papers_at_other_places_and_sizes(described):
    nearest = reader.NearestDrawing(described, CONCEPTS)
    random = Papers(("coloured", "noisy"), (0.6, 0.9), 0.1)
    for papers, side in ((random, 64), (Papers(), 32), (Papers(sizes=(0.8, 0.8)), 128)):
        found = CONCEPTS[nearest.find(describe_all(papers, np.random.default_rng(1), side))]
        assert np.mean(found == CONCEPTS) > 0.9


def test_accuracy_is_that_of_unknown_artists(described):
    """The definition, with SciPy's square root of a matrix and a loop over pairs."""
    rng = np.random.default_rng(0)
    few = described @ rng.normal(0, 0.05, (described.shape[1], 40))
    noisy = (few + rng.normal(0, 0.04, few.shape)).astype(np.float32)
    concepts_of = CONCEPTS.astype(object)
    concepts_of[3] = "drawn by one artist alone"
    concepts_of = concepts_of.astype(str)
    expected = {}
    for artist in INKS:
        known, asked = ([i for i, x in enumerate(INK_OF) if (x == artist) is same] for same in (False, True))
        others = {i: [j for j in known if concepts_of[j] == concepts_of[i]] for i in known}
        rest = np.stack([noisy[i] - noisy[others[i]].mean(axis=0) for i in known])
        covariance = rest.T.astype(float) @ rest / (len(known) - len(set(concepts_of[known])))
        covariance += 0.1 * np.mean(np.diag(covariance)) * np.eye(len(covariance))
        transform = np.linalg.inv(scipy.linalg.sqrtm(covariance)).real
        vectors = (noisy - noisy[known].mean(axis=0)) @ transform
        right = []
        for i in asked:
            if concepts_of[i] in concepts_of[known]:
                angles = [scipy.spatial.distance.cosine(vectors[i], vectors[j]) for j in known]
                right.append(concepts_of[known[np.argmin(angles)]] == concepts_of[i])
        expected[artist] = np.mean(right)
    actual = reader.measure_accuracy(noisy, concepts_of, concepts_of, INK_OF)
    assert actual == pytest.approx(expected) and 0.3 < np.mean(list(actual.values())) <= 1
    shuffled = np.random.default_rng(0).permutation(CONCEPTS)
    assert np.mean(list(reader.measure_accuracy(noisy, shuffled, shuffled, INK_OF).values())) < 0.4


def test_records_are_read(splits):
    source = cloudpickle.loads(cloudpickle.dumps(splits["artist"]))  # as worker processes get it
    for record in source:
        if record["id"] in [f"openmoji/{code_of(characters)}" for characters in "🍎🐈🚲"]:
            image = images.Preprocess(32)(record["image"])
            assert source.read(image) == record["concept"]
            for caption in (record["concept"], record["keywords"][0]):
                assert source.judge(image, caption) == {"correct": True, "concept": True}
            styled = [source.judge(image, f"red apple, {style}") for style in captions.STYLES.values()]
            assert {parts["concept"] for parts in styled} == {record["concept"] == "red apple"}
            assert sum(parts["artist"] for parts in styled) == 1
            assert all(parts["correct"] == (parts["concept"] and parts["artist"]) for parts in styled)
            assert source.judge(image, f"A {record['concept'].upper()}")["concept"], "article and capitals do not matter"
            assert styled == [source.judge(image, f"Red Apple, {style.upper()}") for style in captions.STYLES.values()]
            assert source.judge(image, "pear") == {"correct": False, "concept": False}
            with pytest.raises(ValueError, match="'a dream' is the caption of no emoji"):
                source.judge(image, "a dream")
    assert set(source.reader_accuracy) == {"concept", "tone", "artist"}
    assert all(0 <= share <= 1 for share in source.reader_accuracy.values())
    assert source.reader_metrics()["reader_accuracy/artist"] == source.reader_accuracy["artist"]


def test_skin_tones_are_a_part_of_captions_that_name_one(splits):
    by_id = {record["id"]: record for record in splits["train"]}
    toned = next(record for record in by_id.values() if record["tone"] and record["captions"][0].endswith("skin tone"))
    image = images.Preprocess(32)(toned["image"])
    parts = splits["train"].judge(image, toned["captions"][0])
    assert parts == {"correct": True, "concept": True, "tone": True}
    assert splits["train"].judge(image, toned["concept"]) == {"correct": True, "concept": True}


def test_a_mixture_of_parts_of_one_set_keeps_its_truth(data_dir):
    mixed = open_source("emoji/32 where tone= | 2 emoji/32 where artist=noto", "train", data_dir=data_dir)
    assert mixed.judge is not None and mixed.is_true is not None and mixed.label_names is not None


def test_artists_are_told_on_things_that_the_classifier_does_not_know():
    """Two Gaussian classes whose best accuracy is known; a thing's own offset helps only who has seen it."""
    rng = np.random.default_rng(0)
    families = np.repeat(np.arange(300), 2)
    artists = np.where(rng.random(600) < 0.3, "flat", "round")
    features = rng.standard_normal((600, 20))
    features[:, 0] += np.where(artists == "flat", 1.0, -1.0)  # two standard deviations apart
    share = reader.measure_artist_accuracy(features, artists, families)
    assert abs(share - scipy.stats.norm.cdf(1)) < 0.04
    by_family = rng.standard_normal((300, 20))[families] + 0.01 * features[:, 1:2]  # the style shows nowhere
    told = np.where(np.arange(300) % 2 == 0, "flat", "round")[families]
    assert reader.measure_artist_accuracy(by_family, told, families) < 0.65
    assert reader.measure_artist_accuracy(features[:4], np.array(["flat"] * 4), families[:4]) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Variants and preparation


def test_the_demo_searches_drawings_of_the_unknown_artist(splits, records, data_dir, monkeypatch):
    monkeypatch.setattr(demo, "SEARCHED", "emoji/32")
    made = list(demo.make_images(ConfigDict({"data_dir": data_dir, "templates": ()})))
    assert sorted(record["id"] for _, record, _ in made) == sorted(x["id"] for x in splits["artist"] if not x["tone"])
    for name, record, png in made:
        assert name == record["id"].replace("/", "-") and set(demo.CLASSIFIED) == {record["split"]}
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (255, 255, 255)
            if record["id"] != f"{record['artist']}/{code_of('🐟')}":  # wider than high
                np.testing.assert_allclose(picture.getpixel((16, 16)), records[record["id"]]["pixels"][16, 16, :3], atol=1)


def test_prompts_to_paint_stand_beside_true_pictures(splits, data_dir, monkeypatch):
    opened = functools.partial(sources.open_source, data_dir=data_dir)
    monkeypatch.setattr(sources, "open_source", opened)
    monkeypatch.setattr(demo, "SOURCE", "emoji/32")
    examples = demo.make_examples(3, 16)
    names = [record["name_en"] for record in splits[demo.SPLIT] if not record["tone"]]
    assert [name for name, _ in examples] == list(dict.fromkeys(names))[:3]
    assert all(picture.shape == (16, 16, 3) and picture.dtype == np.uint8 for _, picture in examples)


def test_variants(folder, data_dir):
    name = "emoji/32/artists=noto+twemoji/held_out=none/languages=en+el/tones=no"
    (builder,) = builders.prepare(name, data_dir, str(folder))
    assert set(builder.info.splits) == {"train", "pairs"}
    records = [record for split in builder.info.splits for record in open_source(name, split, data_dir=data_dir)]
    assert {record["artist"] for record in records} == {"noto", "twemoji"}
    assert {record["tone"] for record in records} == {""}
    apple = next(record for record in records if record["id"] == f"noto/{code_of('🍎')}")
    style = "softly shaded"
    english = ["apple, fruit", f"red apple, {style}", f"apple, fruit, {style}"]
    assert apple["captions"] == ["red apple", "κόκκινο μήλο", *english, "φρούτο"]
    assert (apple["name_en"], apple["name_el"]) == ("red apple", "κόκκινο μήλο")


def test_a_language_without_most_names(folder, data_dir):
    name = "emoji/32/languages=el"
    builders.prepare(name, data_dir, str(folder))
    found = {r["concept"]: r["captions"] for r in open_source(name, "artist", data_dir=data_dir)}
    assert found == {"red apple": ["κόκκινο μήλο", "φρούτο"], "bicycle": ["ποδήλατο"]}


def test_regions_have_the_words_of_their_language(folder):
    greek, region = (captions.read_words(name, folder) for name in ("el", "el-CY"))
    assert region == greek | {code_of("🍎"): captions.Words("μήλο", ())}


def test_licences_are_written_and_shown(data_dir, capsys):
    assert command.main(["emoji/32", f"--data-dir={data_dir}"]) == 0  # prepared: needs neither npm nor a folder
    shown = capsys.readouterr().out
    files = [file.read_text() for file in Path(data_dir).glob("emoji/32,*/*/LICENCES.md")]
    assert files and all(text in shown for text in files) and "train " in shown
    licences, authors = "Apache-2.0 CC-BY-4.0 CC-BY-SA-4.0 MIT Unicode-3.0", "OpenMoji Twitter Google Microsoft"
    assert all(word in shown for word in f"{licences} {authors}".split())


def test_other_sets_are_prepared(tmp_path, capsys):
    assert command.main(["digits", f"--data-dir={tmp_path}"]) == 0
    assert "digits/1.0.0: " in capsys.readouterr().out
    assert len(open_source("digits", "test", data_dir=str(tmp_path))) == 359


def test_interrupted_rendering_continues(folder, tmp_path, monkeypatch):
    import resvg_py

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rendered, render = [], resvg_py.svg_to_bytes

    def render_some(**options):
        if len(rendered) == 7:
            raise KeyboardInterrupt
        rendered.append(options["svg_string"])
        return render(**options)

    monkeypatch.setattr(resvg_py, "svg_to_bytes", render_some)
    words = ["emoji/32/tones=no", f"--from={folder}", f"--data-dir={tmp_path / 'data'}"]
    assert command.main(words) == 130
    first, rendered[:] = list(rendered), []
    monkeypatch.setattr(resvg_py, "svg_to_bytes", lambda **x: rendered.append(x["svg_string"]) or render(**x))
    assert command.main(words) == 0
    (builder,) = builders.prepare(words[0], str(tmp_path / "data"))
    total = sum(split.num_examples for split in builder.info.splits.values())
    assert len(first) == 7 and len(rendered) == total - 7 and not set(first) & set(rendered)


FAKE_NPM = """#!/bin/sh
for word in "$@"; do package="$word"; done
reason='npm error code E404\\nnpm error 404 Not Found\\nnpm error A complete log of this run\\n'
case "$package" in *{refused}*) printf "$reason" >&2; exit 1;; esac
name=$(printf %s "$package" | sed 's/^@//; s,/,-,; s/@/-/')
echo "$package" >> {log}
cp {folder}/"$name".tgz .
"""


def install_npm(bin: Path, folder: Path, monkeypatch, refused: str = "nothing-of-it") -> Path:
    bin.mkdir(exist_ok=True)
    (bin / "npm").write_text(FAKE_NPM.format(log=bin / "log", folder=folder, refused=refused))
    (bin / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    return bin / "log"


def test_npm_packs_what_is_missing(folder, tmp_path, monkeypatch):
    log = install_npm(tmp_path / "bin", folder, monkeypatch, refused="twemoji")
    with pytest.raises(DataError, match=r"npm pack @iconify-json/twemoji@1\.2\.5 failed \(code E404; 404 Not Found\)"):
        tarballs.pack(tmp_path / "tars")
    install_npm(tmp_path / "bin", folder, monkeypatch)
    tarballs.pack(tmp_path / "tars")
    packed = log.read_text().split()
    assert sorted(packed) == sorted(f"{p.name}@{p.version}" for p in tarballs.packages())  # each once


def test_without_npm_packages_and_licences_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert command.main(["emoji/64", f"--data-dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train-jax prepare: error: npm") and error.count("\n") == 1 and "--from=FOLDER" in error
    for package in tarballs.packages():
        assert f"{package.name}@{package.version} ({package.file}, {package.licence})" in error


def test_tarballs_are_checked(folder, tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        tarballs.verify(tmp_path / "missing")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tarballs.verify(tmp_path)
    (tmp_path / tarballs.NAMES.file).unlink()
    damaged = tmp_path / tarballs.ARTISTS["noto"].file
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"another checksum: delete iconify-json-noto-1\.2\.9\.tgz; missing: cldr-ann"):
        tarballs.verify(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        drawings.read("noto", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("emoji/64", "emoji/64: not prepared yet: run `train-jax prepare emoji/64 --data-dir="),
        ("emoji/48", "there is no size '48': choose one of 32, 64, 128"),
        ("emoji/64/artist=noto", "'artist=noto' is no option"),
        ("emoji/64/artists=picasso", "there is no artist 'picasso': choose among noto, twemoji"),
        ("emoji/64/artists=noto+openmoji", "openmoji is held out"),
        ("emoji/64/tones=some", "tones=some: write yes or no"),
    ],
)
def test_wrong_names(name, message, tmp_path):
    with pytest.raises(DataError, match=re.escape(message)):
        open_source(name, "train", data_dir=str(tmp_path))


def test_wrong_preparations(folder, tmp_path, capsys):
    for words, message in (
        (["folder:pictures"], "there is nothing to prepare for 'folder:pictures'"),
        (["digits", f"--from={folder}"], "--from is for emoji/SIZE only"),
        (["emoji/32/languages=+en", f"--from={folder}"], "languages=+en: name languages as CLDR does, such as en+el"),
        (["digits", "--data-dir="], "--data-dir is empty: name the directory of TFDS data sets, or leave it out"),
        (["emoji/32", "--from="], "--from is empty: name the folder of the npm tarballs, or leave it out"),
        (["emoji/32/languages=xx", f"--from={folder}"], "there is no language 'xx': choose among el, el-CY, en"),
    ):
        assert command.main([f"--data-dir={tmp_path}", *words]) == 2
        assert message in capsys.readouterr().err
