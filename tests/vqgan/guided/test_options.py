"""Every option is checked: unknown, of the wrong type, out of range, or at odds with another."""

import json

import numpy as np
import pytest

from train_jax.errors import ConfigError
from vqgan_jax.guided import options as lib


def test_presets_give_steps_and_cuts_unless_they_are_given():
    assert [(lib.resolve({"quality": q}).steps, lib.resolve({"quality": q}).cuts) for q in lib.QUALITIES] == [
        (100, 8), (300, 32), (400, 48), (500, 64),
    ]  # fmt: skip
    assert lib.resolve({}).steps == 300
    found = lib.resolve({"quality": "draft", "steps": 7})
    assert (found.steps, found.cuts) == (7, 8)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"cut": 8}, "cut is no option: did you mean cuts?"),
        ({"zzz": 8}, "zzz is no option: there are quality, size"),
        ({"quality": "superb"}, "quality = 'superb'; it must be one of draft, normal, better, best"),
        ({"steps": 0}, r"steps = 0; it must be a whole number in \[1"),
        ({"steps": 1.5}, "steps = 1.5; it must be a whole number"),
        ({"steps": True}, "steps = True; it must be a whole number"),
        ({"lr": 0}, "lr = 0; it must be a number above 0"),
        ({"lr": "fast"}, "lr = 'fast'; it must be a number above 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"lr": 1e-60}, "lr = 1e-60; it must be a number that float32 can tell from 0"),
        ({"smoothness": 1e39}, r"smoothness = 1e\+39; it must be a number that float32"),
        ({"lr": None}, "lr = None; leave it out for its default, 0.1"),
        ({"flip": 1.5}, r"flip = 1.5; it must be a number in \[0, 1\]"),
        ({"noise": -1}, "noise = -1; it must be a number of at least 0"),
        ({"remat": 1}, "remat = 1; it must be True or False"),
        ({"size": (32, 32.5)}, "size"),
        ({"size": 64}, r"size = 64; it must be \(height, width\)"),
        ({"optimizer": "adams"}, "optimizer = 'adams'; it must be one of adam, "),
        ({"init_noise": "clouds"}, "init_noise = 'clouds'; it must be one of pixels, gradient, fractal, plain"),
        ({"init_image": 3}, "init_image = 3; it must be a path, a picture or an array"),
        ({"palette": "red"}, "palette = 'red'; it must be names of colours"),
        ({"palette": ("red", "rouge")}, "'rouge' is no colour"),
        ({"edge": 1.0, "edge_colour": "blanc"}, "'blanc' is no colour"),
        ({"aspect": "wide"}, "aspect = 'wide'; it must be square, widescreen, portrait, or WIDTH:HEIGHT"),
        ({"aspect": "0:3"}, "aspect = '0:3'"),
        # contradictions
        ({"size": (32, 32), "aspect": "square"}, "aspect = 'square' beside size"),
        ({"size": (32, 32), "scale": 2.0}, "scale = 2.0 beside size"),
        ({"init_image": "a.png", "init_noise": "pixels"}, "init_noise = 'pixels' beside init_image"),
        ({"init_weight": 1.0}, "init_weight = 1.0 pulls to a start"),
        ({"init_pixels": 1.0}, "init_pixels = 1.0 pulls to a start"),
        ({"temperature": 0.5}, "temperature = 0.5 is of codes' probabilities"),
        ({"temperature_end": 0.5}, "temperature_end = 0.5 is of codes' probabilities"),
        ({"lr_decay_at": 0.5}, "lr_decay_at = 0.5 says when"),
        ({"cut_method": "pooling", "cut_power": 2.0}, "cut_power = 2.0 sizes crops"),
        ({"cut_method": "pooling", "cut_min": 0.5}, "cut_min = 0.5 sizes crops"),
        ({"edge_colour": "black"}, "edge_colour = 'black' is of the frame"),
        ({"edge_width": 0.2}, "edge_width = 0.2 is of the frame"),
        ({"edge": 1.0, "edge_width": 0.0}, "edge_width = 0 leaves the frame"),
        ({"lr_decay": 0.5, "lr_decay_at": 1.0}, "lr_decay_at = 1 is after the last step"),
        ({"cut_min": 1.0, "cut_power": 2.0}, "cut_min = 1 makes every cut"),
        ({"quality": {"a": 1}}, "quality = {'a': 1}; it must be one of"),
        ({"latents": ["soft", "gumbel"]}, "latents = ('soft', 'gumbel'); it must be one of"),
        ({"palette_weight": 2.0}, "palette_weight = 2.0 is of a palette"),
        ({"aesthetic_weight": 2.0}, "aesthetic_weight = 2.0 is of a head"),
        ({"memory": 1.0, "micro_cuts": 4}, "micro_cuts = 4 beside memory"),
        ({"memory": 1.0, "remat": True}, "remat = True beside memory"),
        ({"cuts": 8, "micro_cuts": 3}, "micro_cuts = 3 does not divide cuts = 8"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("('", r"\('").replace("')", r"'\)")):
        lib.resolve(given)


@pytest.mark.parametrize(
    "given, size",
    [
        ({}, (256, 256)),
        ({"size": (128, 320)}, (128, 320)),
        ({"scale": 1.5}, (384, 384)),
        ({"aspect": "widescreen"}, (192, 336)),  # 256 / sqrt(16/9) = 192, 256 * sqrt(16/9) = 341.3
        ({"aspect": "portrait", "scale": 0.5}, (160, 112)),  # 128 * sqrt(3/2) = 156.8, 128 / sqrt(3/2) = 104.5
        ({"aspect": "1:4"}, (512, 128)),
    ],
)
def test_sizes_are_whole_codes(given, size):
    assert lib.pixels(lib.resolve(given), 256, 16) == size


def test_a_scale_that_changes_nothing_is_refused():
    with pytest.raises(ConfigError, match="scale = 1.02: in whole codes of 16 pixels the picture stays 256 x 256"):
        lib.pixels(lib.resolve({"scale": 1.02}), 256, 16)


def test_settings_may_differ_across_a_default():
    found = lib.resolve_many({"edge_colour": "black", "lr_decay_at": 0.5}, [{"edge": 0.0}, {"edge": 1, "lr_decay": 0.1}])
    assert [o.edge for o in found] == [0, 1] and [o.lr_decay for o in found] == [1, 0.1]
    with pytest.raises(ConfigError, match="edge_colour = 'black' is of the frame"):
        lib.resolve_many({"edge_colour": "black"}, [{"lr": 0.1}, {"lr": 0.2}])


def test_numpys_numbers_become_pythons():
    given = {"lr": np.float32(0.5), "steps": np.int64(3), "size": (np.int64(32), 64), "smoothness": np.int64(1)}
    found = lib.resolve(given | {"remat": np.True_, "palette": ["red"]})
    assert json.loads(json.dumps(found.to_json()))["steps"] == 3
    assert (found.lr, found.size, found.remat, found.palette) == (0.5, (32, 64), True, ("red",))


def test_a_size_between_codes_is_refused():
    with pytest.raises(ConfigError, match="250 x 256: both sides must be divisible by 16.*256 x 256 is near"):
        lib.pixels(lib.resolve({"size": (250, 256)}), 256, 16)


def test_json_gives_the_same_options_back():
    given = {"size": (32, 64), "palette": ("red", "#00ff00"), "lr": 0.2, "init_image": "a.png", "micro_cuts": 4}
    found = lib.resolve(given)
    assert lib.resolve(found.to_json()) == found
    assert lib.resolve({"overlay": np.zeros((2, 2, 4), np.uint8)}).to_json()["overlay"] == "(an array)"
