"""Every option is checked: unknown, of the wrong type, out of range, without effect, or excluded by another."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest

from train_jax.errors import ConfigError
from vqgan_jax.cli import make_parser
from vqgan_jax.guided import cli
from vqgan_jax.guided import options as lib

TABLE = Path(__file__).parents[3] / "docs" / "pixray.md"

TRACED = """init_weight init_pixels temperature temperature_end average lr lr_decay lr_decay_at cut_power cut_min flip rotate
    shift perspective jitter erase noise smoothness saturation symmetry edge edge_width palette_weight aesthetic_weight
    prior_weight prior_start prior_guidance sparsity wide wide_side lr_drop stop_after stop_share style_weight vignette
    vignette_width sharpen"""
STATIC = """size aspect scale steps init_image init_noise init_dalle init_best init_temperature init_guidance latents
    optimizer cuts cut_method edge_colour palette aesthetic
    overlay prior prior_text drawer drawer_options losses overlay_every overlay_until overlay_alpha lr_drops style
    style_network vignette_colour wallpaper wallpaper_cells lookup tile"""
FREE = "preset quality save_every memory micro_cuts remat enlarge enlarge_steps enlarge_tiles"


def test_qualities_are_defaults_of_steps_and_cuts():
    resolved = [lib.resolve({"quality": quality}) for quality in ("draft", "normal", "better", "best")]
    assert [o.schedule.steps for o in resolved] == [100, 300, 400, 500]
    assert [o.cutouts.cuts for o in resolved] == [8, 32, 48, 64]
    assert lib.resolve({}).schedule.steps == 300
    options = lib.resolve({"quality": "draft", "steps": 7})
    assert (options.schedule.steps, options.cutouts.cuts) == (7, 8)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"cut": 8}, "cut is not an option: did you mean cuts?"),
        ({"zzz": 8}, "zzz is not an option: known are quality, steps"),
        ({"quality": "superb"}, "quality = 'superb'; it must be one of draft, normal, better, best"),
        ({"steps": 0}, r"steps = 0; it must be in \[1, 1000000\]"),
        ({"steps": 1.5}, "steps = 1.5 is of type float; it must be of type int, like 300"),
        ({"steps": True}, "steps = True is of type bool; it must be of type int"),
        ({"lr": 0}, "lr = 0.0; it must be positive"),
        ({"lr": "fast"}, "lr = 'fast' is of type str; it must be of type float, like 0.1"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"lr": 1e-60}, "lr = 1e-60; it must be a number that float32 does not round"),
        ({"smoothness": 1e39}, r"smoothness = 1e\+39; it must be a number that float32 does not round"),
        ({"lr": None}, "lr = None is of type NoneType; it must be of type float, like 0.1"),
        ({"flip": 1.5}, r"flip = 1.5; it must be in \[0, 1\]"),
        ({"noise": -1}, "noise = -1.0; it must be 0 or more"),
        ({"remat": 1}, "remat = 1 is of type int; it must be of type bool, like False"),
        ({"size": (32, 32.5)}, r"size = \(32, 32.5\); it must hold values of type int"),
        ({"size": (32, 32, 3)}, r"size = \(32, 32, 3\); it must hold 2 values: \(height, width\)"),
        ({"size": (32, 0)}, r"size = \(32, 0\); it must be at least 1"),
        ({"size": 64}, r"size = 64 is of type int; it must be of type tuple: \(height, width\)"),
        ({"optimizer": "adams"}, "optimizer = 'adams'; it must be one of adam, "),
        ({"init_noise": "clouds"}, "init_noise = 'clouds'; it must be one of pixels, gradient, fractal, plain"),
        ({"init_image": 3}, "init_image = 3 is of type int; it must be of type str or Path or Image or ndarray: "),
        ({"palette": "red"}, "palette = 'red' is of type str; it must be of type tuple"),
        ({"palette": (1, 2)}, r"palette = \(1, 2\); it must hold values of type str"),
        ({"memory": 0}, "memory = 0.0; it must be positive"),
        ({"memory": True}, "memory = True is of type bool; it must be of type float: memory budget of a step in GiB"),
        ({"palette": ("red", "rouge")}, "'rouge' is not a colour"),
        ({"edge": 1.0, "edge_colour": "blanc"}, "'blanc' is not a colour"),
        ({"aspect": "wide"}, "aspect = 'wide'; it must be square, widescreen, portrait, or WIDTH:HEIGHT"),
        ({"aspect": "0:3"}, "aspect = '0:3'"),
        # contradictions
        ({"size": (32, 32), "aspect": "square"}, "aspect = 'square' beside size"),
        ({"size": (32, 32), "scale": 2.0}, "scale = 2.0 beside size"),
        ({"init_image": "a.png", "init_noise": "pixels"}, "init_noise = 'pixels' beside init_image"),
        ({"init_weight": 1.0}, "has no effect: give init_image or init_noise or init_dalle, or leave init_weight out"),
        ({"init_pixels": 1.0}, "init_pixels = 1.0 has no effect: give init_image or init_noise"),
        ({"temperature": 0.5}, "temperature = 0.5 has no effect: give latents = soft or gumbel"),
        ({"temperature_end": 0.5}, "temperature_end = 0.5 has no effect: give latents = soft or gumbel"),
        ({"lr_decay_at": 0.5}, "lr_decay_at = 0.5 has no effect: give lr_decay"),
        ({"cut_method": "pooling", "cut_power": 2.0}, "cut_power = 2.0 has no effect: give cut_method = crops"),
        ({"cut_method": "pooling", "cut_min": 0.5}, "cut_min = 0.5 has no effect: give cut_method = crops"),
        ({"edge_colour": "black"}, "edge_colour = 'black' has no effect: give edge, or leave edge_colour out"),
        ({"edge_width": 0.2}, "edge_width = 0.2 has no effect: give edge"),
        ({"edge": 1.0, "edge_width": 0.0}, r"edge_width = 0.0; it must be in \(0, 0.5\]"),
        ({"lr_decay": 0.5, "lr_decay_at": 1.0}, r"lr_decay_at = 1.0; it must be in \[0, 1\)"),
        ({"cut_min": 1.0, "cut_power": 2.0}, "cut_min = 1 makes every crop"),
        ({"quality": {"a": 1}}, "quality = {'a': 1} is of type dict; it must be of type str, like 'normal'"),
        ({"latents": ["soft", "gumbel"]}, "latents = ('soft', 'gumbel') is of type tuple; it must be of type str"),
        ({"palette_weight": 2.0}, "palette_weight = 2.0 has no effect: give palette"),
        ({"aesthetic_weight": 2.0}, "aesthetic_weight = 2.0 has no effect: give aesthetic"),
        ({"memory": 1.0, "micro_cuts": 4}, "micro_cuts = 4 beside memory"),
        ({"memory": 1.0, "remat": True}, "remat = True beside memory"),
        ({"losses": ("horizon",)}, "losses: 'horizon' is not a loss; it must be 'module:function'"),
        ({"losses": ("m:f:much",)}, "losses: 'm:f:much' is not a loss"),
        ({"losses": ("m:f:0",)}, "losses: 'm:f:0' has a weight without effect"),
        ({"losses": "m:f"}, "losses = 'm:f' is of type str; it must be of type tuple"),
        ({"style_weight": 2.0}, "style_weight = 2.0 has no effect: give style"),
        ({"style_network": "a.npz"}, "style_network = 'a.npz' has no effect: give style"),
        ({"vignette_colour": "red"}, "vignette_colour = 'red' has no effect: give vignette"),
        ({"wallpaper": "p5"}, "wallpaper = 'p5'; it must be one of p1, p2, pm, "),
        ({"wallpaper_cells": 3}, "wallpaper_cells = 3 has no effect: give wallpaper"),
        ({"lookup": ("red", "rouge")}, "'rouge' is not a colour"),
        ({"tile": (2, 9)}, r"tile = \(2, 9\); it must be in \[1, 8\]"),
        ({"enlarge_steps": 5}, "enlarge_steps = 5 has no effect: give enlarge"),
        ({"enlarge": 2, "enlarge_tiles": True}, "enlarge_steps = 50: tiles are not painted on; set enlarge_steps = 0"),
        ({"enlarge": 2, "prior": "runs/prior"}, "enlarge = 2: the prior models pictures of one size"),
        ({"wide_side": 2.0}, "wide_side = 2.0 has no effect: give wide"),
        ({"wide": 0.01, "cuts": 8}, "wide = 0.01 of 8 cutouts is none; it must be at least 0.125"),
        ({"wide": 0.5, "cut_method": "pooling"}, "wide = 0.5: cut_method = pooling always shows the whole picture"),
        ({"wide": 1.0, "cut_power": 2.0}, "wide = 1 makes all cutouts wide: cut_power has no effect"),
        ({"cuts": 8, "micro_cuts": 3}, "micro_cuts = 3 does not divide cuts = 8"),
    ],
)
def test_invalid_options_are_refused(values, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("('", r"\('").replace("')", r"'\)")):
        lib.resolve(values)


@pytest.mark.parametrize(
    "values, size",
    [
        ({}, (256, 256)),
        ({"size": (128, 320)}, (128, 320)),
        ({"scale": 1.5}, (384, 384)),
        ({"aspect": "widescreen"}, (192, 336)),  # 256 / sqrt(16/9) = 192, 256 * sqrt(16/9) = 341.3
        ({"aspect": "portrait", "scale": 0.5}, (160, 112)),  # 128 * sqrt(3/2) = 156.8, 128 / sqrt(3/2) = 104.5
        ({"aspect": "1:4"}, (512, 128)),
    ],
)
def test_sizes_are_whole_codes(values, size):
    assert lib.resolve(values).canvas.image_size(256, 16) == size


def test_a_scale_that_changes_nothing_is_refused():
    with pytest.raises(ConfigError, match="scale = 1.02: rounded to codes of 16 pixels, the size stays 256 x 256"):
        lib.resolve({"scale": 1.02}).canvas.image_size(256, 16)


def test_a_group_without_effect_is_absent():
    options = lib.resolve({})
    absent = {name for name in lib.GROUPS if getattr(options, name) is None}
    expected = "drawing start drawn_start probabilities rate_decay border palette aesthetic prior custom_losses wide_cuts"
    expected += " repeated_overlay rate_drops auto_stop preset"
    expected += " style vignette wallpaper lookup tile sharpen enlarge"
    assert absent == set(expected.split())
    assert lib.resolve({"cut_method": "pooling"}).crops is None
    # Options of an absent group may be stated at their defaults.
    assert lib.resolve({"edge_width": 0.1, "temperature": 1, "cut_method": "pooling", "cut_power": 1.0}).border is None
    assert lib.resolve({"latents": "soft", "temperature": 0.5}).probabilities.temperature == 0.5


def test_options_keep_their_names():
    # They are arguments, flags, keys of config files and of metadata: earlier PNGs name them, too.
    assert set(lib.TRACED) == set(TRACED.split())
    assert lib.FIELDS.keys() - lib.TRACED == set(STATIC.split()) | set(FREE.split())
    assert set(lib.FREE) == set(FREE.split())


def test_settings_may_turn_a_group_on():
    settings = [{"edge": 0.0}, {"edge": 1, "lr_decay": 0.1}]
    resolved = lib.resolve_many({"edge_colour": "black", "lr_decay_at": 0.5}, settings)
    assert [o.border.edge for o in resolved] == [0, 1] and [o.rate_decay.lr_decay for o in resolved] == [1, 0.1]
    with pytest.raises(ConfigError, match="edge_colour = 'black' has no effect: give edge"):
        lib.resolve_many({"edge_colour": "black"}, [{"lr": 0.1}, {"lr": 0.2}])


def test_numbers_of_numpy_become_numbers_of_python():
    values = {"lr": np.float32(0.5), "steps": np.int64(3), "size": (np.int64(32), 64), "smoothness": np.int64(1)}
    options = lib.resolve(values | {"remat": np.True_, "palette": ["red"]})
    assert json.loads(json.dumps(options.to_json()))["steps"] == 3
    assert options.optimization.lr == 0.5 and options.canvas.size == (32, 64)
    assert options.memory.remat is True and options.palette.palette == ("red",)


def test_a_size_between_codes_is_refused():
    with pytest.raises(ConfigError, match="250 x 256: both sides must be divisible by 16.*256 x 256 is near"):
        lib.resolve({"size": (250, 256)}).canvas.image_size(256, 16)


def test_json_gives_the_same_options_back():
    values = {"size": (32, 64), "palette": ("red", "#00ff00"), "lr": 0.2, "init_image": "a.png", "micro_cuts": 4}
    values |= {"tile": (2, 2), "lookup": ("red",)}
    options = lib.resolve(values)
    assert lib.resolve(options.to_json()) == options
    assert lib.resolve({"overlay": np.zeros((2, 2, 4), np.uint8)}).to_json()["overlay"] == "(an array)"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("depth", "needs a network of depth with its weights, .*; move pictures by zoom, right and down"),
        ("translate_z_3d", "motion in depth needs a network"),
        ("flow", "needs a network of flow with its weights, .*; steady frames of video_in by pull and hold"),
        ("flow_stabilization_weight", "optical flow needs a network"),
    ],
)
def test_depth_and_flow_are_refused_by_name(name, remedy, capsys, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} is not an option: .*{remedy}"):
        lib.resolve({name: 1.0})
    flag = f"--{name.replace('_', '-')}"
    for words in ([flag], [flag, "0.5"], [f"{flag}=0.5"]):
        with pytest.raises(SystemExit, match="2"):
            make_parser().parse_args(["paint", "a", "--out", "a.png", *words])
        assert re.search(f"error: {flag}: .*{remedy}", capsys.readouterr().err)
    (tmp_path / "options.yaml").write_text(f"{name}: 1")
    arguments = make_parser().parse_args(["paint", "--out", "a.png", "--config", str(tmp_path / "options.yaml")])
    with pytest.raises(ConfigError, match=remedy):
        cli.parse_request(arguments)


def test_the_table_of_other_programs_names_options_that_exist():
    parser = argparse.ArgumentParser()
    cli.add(lambda name, text, run: parser if name == "paint" else argparse.ArgumentParser())
    flags, rows = parser._option_string_actions, re.findall(r"^\| .* \| (.*) \|$", TABLE.read_text("utf-8"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(--[a-z-]+)", row)]
    assert len(names) > 100 and set(names) <= flags.keys(), set(names) - flags.keys()
    for row in rows:
        drawer = re.search(r"`--drawer ([a-z]+)`", row)
        for assignment in re.findall(r"`--drawer-options ([^`]+)`", row):
            lib.make_drawer(drawer[1], assignment)
