"""The grammar, by examples; mistakes point at the character."""

import math

import pytest

from vqgan_jax.guided.prompts import Part, PromptError, parse, parse_scene


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("a castle", [Part("a castle")]),
        (" a castle : 0.5 | sunset:-2:-1.5 ", [Part("a castle", 0.5), Part("sunset", -2.0, -1.5)]),
        ("a red star | noise:-0.3", [Part("a red star"), Part("noise", -0.3)]),
        (
            "image=a dir/x.png:2 | noise=7:1:0.25",
            [Part("a dir/x.png", 2.0, -math.inf, "image"), Part("7", 1.0, 0.25, "noise")],
        ),
        (r"2\:1\|2 \^ \= \\", [Part("2:1|2 ^ = \\")]),
        ("☃ ∑:1e-1", [Part("☃ ∑", 0.1)]),
        (r"a clock at 12\:30", [Part("a clock at 12:30")]),
        ("route 66 :0.5 | route 66: 2:1", [Part("route 66", 0.5), Part("route 66", 2.0, 1.0)]),
    ],
)
def test_parts(prompt, parts):
    assert parse_scene(prompt) == tuple(parts)


def test_scenes():
    assert parse("a ^ b|c:2 ^ d") == ((Part("a"),), (Part("b"), Part("c", 2.0)), (Part("d"),))


@pytest.mark.parametrize(
    "prompt, character, message",
    [
        ("", 1, "a text is missing"),
        ("a | ", 5, "a text is missing"),
        ("a || b", 4, "a text is missing"),
        ("a:1 ^", 6, "a text is missing"),
        ("a castle: at night", 11, "'at night' is not a weight"),
        ("a:1:low", 5, "'low' is not a stop"),
        ("a:", 3, "'' is not a weight"),
        ("a clock at 12:30", 14, r"Write 12 :30 if it is, 12\:30 if it belongs to the text"),
        ("a day | 12:30:45", 11, "is 30 a weight?"),
        ("a:nan", 3, "'nan' is not a weight"),
        ("a:inf", 3, "'inf' is not a weight"),
        ("a:0", 3, "weight 0 has no effect"),
        ("a:1e39", 3, "'1e39' is not a weight"),
        ("a:1e-60", 3, "'1e-60' is not a weight"),
        ("a:-1:0.1", 6, "with stop 0.1 a part of weight -1 never has a gradient; it must be below 0"),
        ("a:1:5", 5, "with stop 5 a part of weight 1 never has a gradient; it must be below 4.93"),
        ("a:(n+x)", 3, "'(n+x)', character 4 (at 'x)'): 'x' is not a name"),
        ("a:1:2:3", 6, "no third colon"),
        ("picture=x.png", 8, "not 'picture'="),
        ("image= :2", 8, "image= needs a value"),
        ("noise=x", 6, "an integer of 0 or more, not 'x'"),
        ("noise=-1", 6, "an integer of 0 or more, not '-1'"),
        ("a\\b", 2, "a backslash escapes one of"),
        ("a\\", 2, "a backslash escapes one of"),
    ],
)
def test_mistakes_point_at_the_character(prompt, character, message):
    with pytest.raises(PromptError, match=f"character {character} ") as error:
        parse(prompt)
    assert message in str(error.value)


def test_a_picture_shows_one_scene():
    with pytest.raises(PromptError, match="character 3 .*another scene.*animate"):
        parse_scene("a ^ b")
    with pytest.raises(PromptError, match=r"the weight \(n\) of 'a' changes by frames, and an image has none"):
        parse_scene("a:(n)")
