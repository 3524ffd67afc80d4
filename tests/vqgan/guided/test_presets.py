"""Every preset paints, and what a user states overrides it."""

import numpy as np
import pytest

from train_jax.errors import ConfigError
from vqgan_jax import cli, guided
from vqgan_jax.guided import options
from vqgan_jax.guided.cli import make_flags
from vqgan_jax.guided.options import presets

TINY = {"steps": 1, "cuts": 2, "flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "noise": 0.0, "progress": False}
FEW = {"count": "3", "cells": "4"}  # options of drawers that make programs small


@pytest.mark.parametrize("name", presets.TABLE)
def test_presets_paint(vq, clip, name):
    look = presets.TABLE[name].options
    small = {key: value for key, value in FEW.items() if key in look.get("drawer_options", {})}
    model = None if "drawer" in look else vq
    painting = guided.paint(model, clip, "a star", preset=name, drawer_options=small or None, size=(16, 24), **TINY)
    assert painting.images.shape[1:3] == (16, 24) and painting.images.std() > 1 and np.isfinite(painting.losses).all()
    # All its options have an effect: the flags that are listed paint the same without the preset.
    values = {"drawer_options": small} | TINY if small else TINY
    words = cli.make_parser().parse_args(["paint", "a", "--out", "a.png", *make_flags(look)])
    stated = {key: value for key, value in vars(words).items() if key in options.FIELDS}
    resolved = options.resolve({key: value for key, value in values.items() if key != "progress"} | {"preset": name})
    assert {key: resolved.to_flat_dict()[key] for key in stated if key != "drawer_options"} == {
        key: value for key, value in stated.items() if key != "drawer_options"
    }


def test_what_is_stated_overrides_a_preset():
    resolved = options.resolve({"preset": "ink", "sparsity": 0.5, "drawer_options": "count=7,ground=grey"})
    drawer = resolved.drawing.make()
    assert (resolved.drawing.sparsity, drawer.count, drawer.width, drawer.ink) == (0.5, 7, 0.012, "black")
    assert options.resolve({"preset": "tile", "drawer": "wavelet"}).drawing.make().levels == 4
    # The options in the metadata of a picture are stated, so that a table of another version changes nothing.
    assert options.resolve(resolved.to_json()).to_json() == resolved.to_json()
    with pytest.raises(ConfigError, match="preset = 'oil'; it must be one of pixel-art, "):
        options.resolve({"preset": "oil"})
    for wrong in ({"preset": ["ink"]}, {"preset": "ink", "drawer_options": [1]}, {"preset": "ink", "drawer": ["pixel"]}):
        with pytest.raises(ConfigError, match=f"{list(wrong)[-1]} = "):
            options.resolve(wrong)


def test_presets_are_listed(capsys):
    assert cli.main(["presets"]) == 0
    text = capsys.readouterr().out
    assert "ink           black strokes on white paper" in text
    assert "--drawer strokes --drawer-options count=96,width=0.012,ink=black --sparsity 0.02" in text
