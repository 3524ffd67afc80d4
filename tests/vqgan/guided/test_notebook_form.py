"""The form of notebooks, with stand-ins for widgets that keep their values."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from train_jax.errors import ConfigError
from vqgan_jax import guided

NONE = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}


class Widget:
    """A widget that keeps what it is given, and the callback of a button."""

    def __init__(self, children=(), **values):
        self.children, self.values = children, []
        self.__dict__.update({"value": ""} | values)

    def __setattr__(self, name, value):
        if name == "value":
            self.values.append(value)
        self.__dict__[name] = value

    def on_click(self, callback):
        self.click = callback


@pytest.fixture
def widgets(monkeypatch):
    names = ("Text", "IntText", "IntSlider", "FloatSlider", "FloatLogSlider", "Button", "Label", "Image", "HBox", "VBox")
    module = types.SimpleNamespace(**{name: type(name, (Widget,), {}) for name in names})
    monkeypatch.setitem(sys.modules, "ipywidgets", module)


def test_a_click_paints_with_the_values_of_the_form(clip, widgets):
    form = guided.form(None, clip, "a star", drawer="pixel", size=(16, 24), steps=2, cuts=2, **NONE)
    assert form.sliders["steps"].value == 2 and form.sliders["lr"].value == 0.1 and form.sliders["lr"].max == 1.0
    form.sliders["save_every"].value = 1
    form.seed.value = 5
    form.button.click(form.button)
    options = {"drawer": "pixel", "size": (16, 24), "steps": 2, "cuts": 2, "save_every": 1} | NONE
    expected = guided.paint(None, clip, "a star", seed=5, progress=False, **options)
    np.testing.assert_array_equal(form.painting.images, expected.images)
    shown = [np.asarray(Image.open(io.BytesIO(data)))[::8, ::8] for data in form.picture.values]
    np.testing.assert_array_equal(shown, expected.snapshots[0])
    assert form.status.value.startswith("2 steps, loss ") and not form.button.disabled
    values = guided.form(None, clip, "a star", quality="draft", preset="ink").sliders
    assert (values["steps"].value, values["cut_min"].value) == (100, 0.6), "those of quality and preset"
    form.prompt.value = "a star:x"
    form.button.click(form.button)
    assert "'x' is not a weight" in form.status.value and not form.button.disabled


def test_without_ipywidgets(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ConfigError, match=r"pip install 'multimodal-jax\[notebooks\]'"):
        guided.form(None, clip, "a star")
