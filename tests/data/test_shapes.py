"""Scenes and their captions: what is said is true, what is false is found out, and what is drawn is what was said.

The truth here is a second one, which takes captions apart word by word and scenes as numbers; the shapes are drawn a
second time by Pillow.
"""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from train_jax.datasets.shapes import render as rendering
from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.render import PALETTE, coverage, render
from train_jax.datasets.shapes.scene import COLOURS, NOVEL, PAIRS, SHAPES, SIZES, Object, Scene, is_true
from train_jax.datasets.shapes.shapes_dataset_builder import make


def sampled(count: int, novel: bool = False) -> list[Scene]:
    rng = np.random.default_rng(7)
    return [scenes.sample(rng, novel) for _ in range(count)]


SCENES = sampled(300) + sampled(100, novel=True)

# ---------------------------------------------------------------------------------------------------------------------
# The second truth


def described(o: Object) -> dict[str, str]:
    """What may be said of an object, from its numbers in a picture of 64 x 64."""
    x, y, radius = 64 * o.x, 64 * o.y, 64 * o.radius
    row = "top" if y < 64 / 3 else "bottom" if y >= 128 / 3 else ""
    column = "left" if x < 64 / 3 else "right" if x >= 128 / 3 else ""
    size = "small" if radius < 9 else "medium" if radius < 12 else "large"
    return {"size": size, "colour": o.colour, "shape": o.shape, "position": f"{row} {column}".strip() or "center"}


def side(a: Object, b: Object) -> str:
    right, down = a.x - b.x, a.y - b.y
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def asked(words: list[str]) -> dict[str, str]:
    kinds = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
    return {kind: word for word in words for kind, members in kinds.items() if word in members}


def truth(caption: str, scene: Scene) -> bool:
    words = caption.lower().rstrip(".").split()
    if words[:3] in (["a", kind, "of"] for kind in ("photo", "picture", "drawing")):
        words = words[3:]
    text = f" {' '.join(words)} "
    for said in ("above", "below", "left of", "right of"):
        first, separator, second = text.partition(f" {said} ")
        if separator:
            one, other = asked(first.split()), asked(second.split())
            return any(
                side(a, b) == said and one.items() <= described(a).items() and other.items() <= described(b).items()
                for a in scene.objects
                for b in scene.objects
                if a is not b
            )
    noun, _, place = text.partition(" in the ")
    expected = asked(noun.split()) | ({"position": place.strip()} if place else {})
    return any(expected.items() <= described(o).items() for o in scene.objects)


def noun(rng: np.random.Generator) -> str:
    """Any description of an object, true or not."""
    while True:
        words = [members[rng.integers(len(members))] for members in (SIZES, COLOURS, SHAPES) if rng.random() < 0.5]
        if words:
            break
    return ["a ", "an ", "the ", "", "something ", "a something "][rng.integers(6)] + " ".join(words)


def any_caption(rng: np.random.Generator) -> str:
    prefix = ["", "a photo of ", "a picture of ", "a drawing of "][rng.integers(4)]
    tail = ["", f" {scenes.RELATIONS[rng.integers(4)]} {noun(rng)}", f" in the {scenes.POSITIONS[rng.integers(9)]}"]
    return prefix + noun(rng) + tail[rng.integers(3)] + ["", "."][rng.integers(2)]


# ---------------------------------------------------------------------------------------------------------------------
# Truth


def test_any_caption_is_judged_as_by_the_second_truth():
    rng = np.random.default_rng(0)
    verdicts = []
    for scene in SCENES:
        for _ in range(20):
            caption = any_caption(rng)
            verdicts.append(is_true(caption, scene))
            assert verdicts[-1] == truth(caption, scene), (caption, scene)
    assert 300 < sum(verdicts) < len(verdicts) - 300  # both verdicts are tried


def test_captions_of_one_scene_judged_in_another():
    # True sentences about other scenes: hard, since they are well-formed and often nearly right.
    rng = np.random.default_rng(0)
    for number, scene in enumerate(SCENES):
        for other in SCENES[number + 1 : number + 3]:
            for caption in scenes.captions(other, rng):
                assert is_true(caption, scene) == truth(caption, scene), (caption, scene)


def make_object(colour: str, shape: str, size: str, x: float, y: float) -> Object:
    return Object(colour, shape, x, y, scenes.RADII[SIZES.index(size)])


def test_parts_of_a_caption_by_hand():
    above, below = make_object("red", "circle", "small", 0.5, 0.2), make_object("blue", "star", "large", 0.5, 0.8)
    caption = "a small red circle above a large blue star"
    right = dict.fromkeys(("correct", "count", "colours", "shapes", "sizes", "binding", "relation"), True)
    assert scenes.judge(caption, Scene((above, below))) == right
    cases = {
        ("relation",): (make_object("red", "circle", "small", 0.5, 0.8), make_object("blue", "star", "large", 0.5, 0.2)),
        ("binding",): (make_object("blue", "circle", "small", 0.5, 0.2), make_object("red", "star", "large", 0.5, 0.8)),
        ("colours", "binding"): (make_object("green", "circle", "small", 0.5, 0.2), below),
        ("shapes", "binding"): (make_object("red", "star", "small", 0.5, 0.2), below),
        ("sizes",): (above, make_object("blue", "star", "small", 0.5, 0.8)),
        (): (make_object("red", "circle", "large", 0.5, 0.2), make_object("blue", "star", "small", 0.5, 0.8)),  # swapped
        ("count", "colours", "shapes", "sizes", "binding", "relation"): (above,),
    }
    for wrong, objects in cases.items():
        expected = {part: part not in ("correct", *wrong) for part in right}
        assert scenes.judge(caption, Scene(objects)) == expected, objects
    for found in (scenes.judge(caption, Scene((*cases[()], make_object("red", "circle", "small", 0.1, 0.1)))),):
        assert not found["count"] and found["binding"]
    assert scenes.judge("a red circle in the top", Scene((above,))) == {
        "correct": True, "count": True, "colours": True, "shapes": True, "binding": True, "position": True,
    }  # fmt: skip
    assert not scenes.judge("a green ring above a pink heart", Scene((above, below)))["relation"], "nothing else is right"
    assert scenes.judge("something red", Scene(())) == {"correct": False, "count": False, "colours": False}


def test_a_true_caption_is_right_in_all_parts():
    rng = np.random.default_rng(1)
    kinds = set()
    for scene in SCENES:
        for caption in (*scenes.captions(scene, rng), *(any_caption(rng) for _ in range(10))):
            parts = scenes.judge(caption, scene)
            assert parts.pop("correct") == truth(caption, scene)
            count = parts.pop("count")
            assert count == (len(scene.objects) == 1 + any(f" {x} " in caption for x in scenes.RELATIONS))
            if truth(caption, scene):
                assert all(parts.values()), (caption, scene)
            kinds.add(tuple(parts.items()))
    assert len(kinds) > 50


def test_own_captions_are_true():
    rng = np.random.default_rng(0)
    for scene in SCENES:
        texts = scenes.captions(scene, rng)
        assert len(texts) == 8
        for caption in texts:
            assert is_true(caption, scene) and truth(caption, scene), (caption, scene)


def test_captions_are_english():
    rng = np.random.default_rng(0)
    texts = {caption for scene in SCENES for caption in scenes.captions(scene, rng)}
    for caption in texts:
        words = caption.split()
        for article, word in zip(words, words[1:], strict=False):
            assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou"), caption
    prefixed = [caption for caption in texts if caption.startswith(("a photo of", "a picture of", "a drawing of"))]
    assert {caption.split()[1] for caption in prefixed} == {"photo", "picture", "drawing"}


def test_swapped_colours_are_false():
    pairs = [scene.objects for scene in SCENES if len(scene.objects) == 2]
    assert len(pairs) > 100
    for a, b in pairs:
        scene = Scene((a, b))
        right = f"a {a.colour} {a.shape} {side(a, b)} a {b.colour} {b.shape}"
        swapped = f"a {b.colour} {a.shape} {side(a, b)} a {a.colour} {b.shape}"
        assert is_true(right, scene)
        # With two colours nothing can make it true: not even the same shape twice, since sides do not swap.
        assert is_true(swapped, scene) == (a.colour == b.colour)


def test_swapped_sides_are_false():
    opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
    for scene in SCENES:
        if len(scene.objects) == 2:
            a, b = scene.objects
            said = side(a, b)
            assert is_true(f"{a.colour} {a.shape} {said} {b.colour} {b.shape}", scene)
            for wrong in set(opposite) - {said, opposite[said]}:
                assert not is_true(f"{a.colour} {a.shape} {wrong} {b.colour} {b.shape}", scene)
            same = (a.colour, a.shape) == (b.colour, b.shape)
            assert is_true(f"{a.colour} {a.shape} {opposite[said]} {b.colour} {b.shape}", scene) == same


def test_relations_of_one_object_are_false():
    alone = Scene((Object("red", "circle", 0.5, 0.5, 0.1),))
    assert not is_true("a red circle above a red circle", alone)
    assert is_true("a red circle", alone)


def test_sides_by_hand():
    def at(x, y):
        return Object("red", "circle", x, y, 0.1)

    assert scenes.relation(at(0.5, 0.2), at(0.5, 0.8)) == "above"
    assert scenes.relation(at(0.2, 0.6), at(0.8, 0.8)) == "left of"
    assert scenes.relation(at(0.9, 0.6), at(0.3, 0.8)) == "right of"
    assert scenes.relation(at(0.2, 0.2), at(0.8, 0.8)) == "above"  # as far down as across: down counts


CIRCLE = Scene((Object("red", "circle", 16 / 64, 32 / 64, 7.5 / 64),))


@pytest.mark.parametrize(
    "caption",
    [
        "a small red circle in the left",
        "  A Photo of The RED Circle. ",
        "red circle",
        "something small",
        "something red in the left",
        "circle in the left",
    ],
)
def test_grammar_is_lenient(caption):
    assert is_true(caption, CIRCLE)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        ".",
        "a photo of ",
        "something",
        "something in the left",
        "a dog",
        "a red dog",
        "a crimson circle",
        "a circle red",
        "a red circle in the middle",
        "a red circle in the left top",
        "a red circle above",
        "a red circle beside a blue star",
        "a red circle above a blue star above a green ring",
        "a red circle and a blue star",
        "smallredcircle",
        "a smallred circle",
        "a redcircle",
        "somethingred",
        "reds",
        "a red circle in the leftabove",
        "not a red circle",
    ],
)
def test_captions_of_another_world_are_refused(caption):
    with pytest.raises(ValueError, match="is not a caption of a scene: write a caption such as") as caught:
        is_true(caption, CIRCLE)
    assert repr(caption) in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# What scenes hold


def test_novel_pairs():
    assert sorted(colour for colour, _ in NOVEL) == sorted(COLOURS) and {shape for _, shape in NOVEL} == set(SHAPES)
    assert len(PAIRS) == 80 == len(set(PAIRS))
    for scene in sampled(500):
        assert not {(o.colour, o.shape) for o in scene.objects} & set(NOVEL)
    for scene in sampled(500, novel=True):
        assert (scene.objects[0].colour, scene.objects[0].shape) in NOVEL


def test_everything_occurs():
    known = sampled(3000)
    assert {(o.colour, o.shape) for scene in known for o in scene.objects} == set(PAIRS) - set(NOVEL)
    assert {scene.background for scene in known} == {"plain", "noisy"}
    alone = [scene.objects[0] for scene in known if len(scene.objects) == 1]
    # 0.6 of 3,000, four deviations of sqrt(0.6 * 0.4 / 3,000) = 0.009.
    assert abs(len(alone) / 3000 - 0.6) < 0.036
    assert {o.position for o in alone} == set(scenes.POSITIONS) and {o.size for o in alone} == set(SIZES)
    assert {side(*scene.objects) for scene in known if len(scene.objects) == 2} == set(scenes.RELATIONS)


def test_words_for_places_and_sizes_are_clear():
    # Nothing lies within half a pixel of where the word for it changes.
    for scene in SCENES:
        if len(scene.objects) == 1:
            (o,) = scene.objects
            for value in (64 * o.x, 64 * o.y):
                assert min(abs(value - 64 / 3), abs(value - 128 / 3)) > 0.5
        else:
            a, b = scene.objects
            assert abs(abs(a.x - b.x) - abs(a.y - b.y)) * 64 > 0.5
        for o in scene.objects:
            assert min(abs(64 * o.radius - 9), abs(64 * o.radius - 12)) > 0.5


def test_labels():
    for scene in SCENES:
        if len(scene.objects) == 1:
            assert scenes.LABEL_NAMES[scene.label] == f"{scene.objects[0].colour} {scene.objects[0].shape}"
        else:
            assert scene.label == -1


def test_scenes_survive_json():
    for scene in SCENES[:20]:
        text = scene.to_json()
        assert Scene.from_json(text) == scene
        fields = json.loads(text)
        assert fields["objects"][0]["colour"] == scene.objects[0].colour and set(fields) == {"objects", "background"}


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def outlines(shape: str) -> list[list[tuple[float, float]]]:
    """Polygons of a shape in the unit circle, from its description; of a ring, the outer and the inner."""
    turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    round_ = np.stack([np.cos(turn), np.sin(turn)], -1)
    if shape == "circle":
        return [0.95 * round_]
    if shape == "ring":
        return [0.96 * round_, 0.48 * round_]
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return [np.stack([16 * np.sin(t) ** 3, -up], -1) / 17]
    if shape == "star":
        points = [(np.sin(k * np.pi / 5), -np.cos(k * np.pi / 5)) for k in range(10)]
        return [[(x * (0.42 if k % 2 else 1), y * (0.42 if k % 2 else 1)) for k, (x, y) in enumerate(points)]]
    if shape == "cross":
        upper = np.array([(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3)])  # an arm; the others are turned by a quarter each
        quarter = np.array([(0, 1), (-1, 0)])
        return [np.concatenate([upper @ np.linalg.matrix_power(quarter, k) for k in range(4)])]
    return [
        {
            "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
            "diamond": [(0, -1), (1 / 1.3, 0), (0, 1), (-1 / 1.3, 0)],
            "triangle": [(0, -1), (0.9, 0.75), (-0.9, 0.75)],
        }[shape]
    ]


def placed(o: Object) -> list[np.ndarray]:
    """The polygons of an object where it stands, in shares of the picture."""
    turn = np.array([[np.cos(o.angle), -np.sin(o.angle)], [np.sin(o.angle), np.cos(o.angle)]])
    return [np.asarray(corners) @ turn.T * o.radius + (o.x, o.y) for corners in outlines(o.shape)]


def drawn_by_pillow(o: Object, size: int, fine: int = 32) -> np.ndarray:
    """The share of each pixel that an object covers, from a drawing `fine` times as large."""
    canvas = Image.new("L", (size * fine, size * fine))
    for ink, corners in zip((255, 0), placed(o), strict=False):
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in corners * size * fine - 0.5], fill=ink)
    return np.asarray(canvas, float).reshape(size, fine, size, fine).mean((1, 3)) / 255


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_drawn_as_by_pillow(shape):
    for size, radius, angle in ((64, 13.5 / 64, 0.2), (64, 7.5 / 64, -0.13), (128, 10.5 / 64, 0.0)):
        o = Object("red", shape, 0.47, 0.53, radius, angle)
        ours, theirs = coverage(o, size, (0, size), (0, size)), drawn_by_pillow(o, size)
        assert abs(ours.sum() / theirs.sum() - 1) < 0.01
        # Within a pixel the edge is taken to be straight: that is off at corners, and most at the tips of a star. Of
        # the mean error at edges, half is Pillow's, which draws polygons half a (fine) pixel too large.
        difference, edge = np.abs(ours - theirs), (ours % 1 > 0) | (theirs % 1 > 0)
        assert difference.max() < 0.4 and difference[edge].mean() < 0.04


def test_colours_are_of_the_palette():
    for scene in SCENES[:40]:
        picture = render(scene, 128, np.random.default_rng(0)).astype(int)
        for o in scene.objects:
            inside = ndimage.minimum_filter(drawn_by_pillow(o, 128, fine=4), 3) == 1  # clear of the edge
            # Colours vary by 0.04 of the range, 10.2 of 255, and are rounded.
            assert np.abs(picture[inside] - PALETTE[o.colour]).max() <= 11


@pytest.mark.parametrize("size", [32, 64, 128])
def test_objects_stay_inside_and_do_not_touch(size):
    for scene in SCENES:
        for o in scene.objects:
            corners = placed(o)[0]
            assert corners.min() > 0 and corners.max() < 1
        covers = [coverage(o, size, (0, size), (0, size)) for o in scene.objects]
        if len(covers) == 2:
            # Not even as neighbours: some empty row or column lies between them.
            rows, columns = ([cover.any(axis) for cover in covers] for axis in (1, 0))
            assert any(gap(*seen) > 0 for seen in (rows, columns)), scene


def gap(a: np.ndarray, b: np.ndarray) -> int:
    """How many empty lines lie between two runs of lines; negative where they overlap."""
    a, b = np.flatnonzero(a), np.flatnonzero(b)
    return max(b[0] - a[-1], a[0] - b[-1]) - 1


@pytest.mark.parametrize("size", [32, 64, 128])
def test_nothing_is_cut_off(size):
    # An object is drawn in a window of the picture: on the whole picture it would look the same.
    for scene in SCENES[:100]:
        flat = dataclasses.replace(scene, background="plain")
        picture = render(flat, size, np.random.default_rng(1)).astype(float)
        rng = np.random.default_rng(1)
        expected = np.ones((size, size, 3)) * (rng.uniform(0.72, 0.97) + rng.uniform(-0.03, 0.03, 3))
        for o in scene.objects:
            colour = np.clip(np.array(PALETTE[o.colour]) / 255 + rng.uniform(-0.04, 0.04, 3), 0, 1)
            cover = coverage(o, size, (0, size), (0, size))[..., None]
            expected = expected * (1 - cover) + colour * cover
        assert np.abs(picture - expected * 255).max() <= 0.5 + 1e-6


def halved(picture: np.ndarray) -> np.ndarray:
    size = len(picture) // 2
    return picture.astype(float).reshape(size, 2, size, 2, 3).mean((1, 3))


def test_sizes_agree():
    for number in range(40):
        (small_scene, small, *texts), (scene, middle, *more), (_, large, *_) = (
            make("train", number, size) for size in (32, 64, 128)
        )
        assert small_scene == scene and texts == more  # a scene does not depend on the size that it is drawn at
        if scene.background == "plain":
            for less, greater in ((small, middle), (middle, large)):
                difference = np.abs(halved(greater) - less)
                # At a sharp point the share of a pixel is not that of its quarters, by up to a half; such are few.
                assert difference.max() < 128 and difference.mean() < 1
        else:
            # Noise is drawn anew; its mean over 8 x 8 pixels has an eighth of its deviation of 0.05. Colours too
            # are drawn anew, and differ by 0.08 at most.
            coarse = halved(halved(halved(large))) - halved(halved(middle))
            assert np.abs(coarse).max() < (0.08 + 5 * 0.05 * (1 / 8 + 1 / 4)) * 255


def test_backgrounds():
    for scene in SCENES[:60]:
        picture = render(scene, 64, np.random.default_rng(3)).astype(float)
        empty = np.all([coverage(o, 64, (0, 64), (0, 64)) == 0 for o in scene.objects], axis=0)
        spread = picture[empty].std(0)
        if scene.background == "plain":
            assert spread.max() == 0
        else:
            assert spread.min() > 1
        assert picture[empty].mean() > 150


# ---------------------------------------------------------------------------------------------------------------------
# Negatives


def test_negatives_are_false_captions_that_differ_in_one_respect():
    """False by the second truth; the words that differ are one attribute or place, or an attribute that was exchanged."""
    rng, kinds = np.random.default_rng(0), {"exchange": 0, "relation": 0, "position": 0, "attribute": 0}
    values = ({**dict.fromkeys(SIZES, "size"), **dict.fromkeys(COLOURS, "colour"), **dict.fromkeys(SHAPES, "shape")})
    for scene in SCENES:
        for caption in scenes.captions(scene, rng):
            negative = scenes.corrupt(caption, scene, rng)
            assert truth(caption, scene) and not truth(negative, scene), (caption, negative)
            old, new = ([word for word in text.split() if word not in ("a", "an")] for text in (caption, negative))
            places = [text.partition(" in the ")[2] for text in (caption, negative)]
            if places[0] != places[1]:
                assert negative == caption.replace(f"in the {places[0]}", f"in the {places[1]}")
                kinds["position"] += 1
                continue
            assert len(old) == len(new)
            different = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
            if len(different) == 2:
                assert different[0] == different[1][::-1] and values[different[0][0]] == values[different[0][1]]
                kinds["exchange"] += 1
            else:
                ((before, after),) = different
                is_relation = {before, after} in ({"above", "below"}, {"left", "right"})
                assert is_relation or values[before] == values[after]
                kinds["relation" if is_relation else "attribute"] += 1
    assert min(kinds.values()) > 50, kinds


# ---------------------------------------------------------------------------------------------------------------------
# Examples


def digest(split: str, number: int, size: int) -> list:
    scene, picture, texts, negatives = make(split, number, size)
    return [scene.to_json(), texts, negatives, picture.tobytes().hex()]


def test_examples_are_functions_of_split_number_and_size():
    assert digest("train", 5, 32) == digest("train", 5, 32)
    different = [digest(*key) for key in (("train", 5, 32), ("train", 6, 32), ("test", 5, 32), ("novel", 5, 32))]
    assert len({scene for scene, *_ in different}) == 4

    # In another process, with another order of sets.
    script = (
        "import json\n"
        "from train_jax.datasets.shapes.shapes_dataset_builder import make\n"
        "scene, picture, texts, negatives = make('train', 5, 32)\n"
        "print(json.dumps([scene.to_json(), texts, negatives, picture.tobytes().hex()]))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(scenes.__file__).parents[3]), "PYTHONHASHSEED": "99"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == digest("train", 5, 32)


def test_png_keeps_every_pixel():
    _, picture, *_ = make("test", 0, 64)
    file = rendering.png(picture)
    assert file.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(file)) as image:
        np.testing.assert_array_equal(image, picture)
