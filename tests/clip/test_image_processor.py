"""preprocessor_config.json: the pixels of transformers' own processors, or a LoadError."""

import json
from pathlib import Path

import numpy as np
import pytest

from clip_jax.pretrained.image_processor import open_preprocess
from train_jax.data.images import CLIP_MEAN, CLIP_STD, normalize
from train_jax.errors import LoadError

GOLDEN = np.load(Path(__file__).resolve().parent.parent / "golden" / "clip_pixels.npz")
NAMES = sorted(name.removesuffix("_config") for name in GOLDEN.files if name.endswith("_config"))


@pytest.fixture
def preprocess_of(tmp_path):
    def write(config: dict, family: str = "CLIP", file: str = "preprocessor_config.json"):
        (tmp_path / file).write_text(json.dumps(config))
        return open_preprocess(tmp_path, 24, family)

    return write


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_transformers(name, preprocess_of):
    preprocess = preprocess_of(json.loads(str(GOLDEN[f"{name}_config"])))
    for index, expected in enumerate(GOLDEN[f"{name}_pixels"]):
        pixels = normalize(preprocess(GOLDEN[f"picture_{index}"]), preprocess.mean, preprocess.std)
        np.testing.assert_allclose(pixels, expected, rtol=1e-6, atol=2e-6)


def test_absent_and_null_options_have_transformers_defaults(preprocess_of):
    clip = preprocess_of({"size": 24, "crop_size": 24, "do_rescale": None, "image_mean": None})
    assert (clip.mode, clip.interpolation, clip.mean, clip.std) == ("crop_floor", "bicubic", CLIP_MEAN, CLIP_STD)
    siglip = preprocess_of({"size": {"height": 24, "width": 24}}, "Siglip")
    assert (siglip.mode, siglip.interpolation, siglip.mean) == ("squash", "bicubic", (0.5, 0.5, 0.5))
    with pytest.raises(LoadError, match="size = .*224.* is not supported: the model's images are 24 x 24"):
        preprocess_of({})


def test_the_file_of_transformers_5(preprocess_of, tmp_path):
    assert open_preprocess(tmp_path, 24) is None
    assert preprocess_of({"processor_class": "CLIPProcessor"}, file="processor_config.json") is None
    config = {
        "image_processor": {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 24, "width": 24}}
    }
    assert preprocess_of(config, file="processor_config.json").mode == "squash"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"do_resize": False}, "do_resize = False is not supported: the model's images are 24 x 24"),
        ({"do_center_crop": False}, "do_center_crop = False is not supported: .* need not be square"),
        ({"size": {"shortest_edge": 28}}, "size = .*28.* is not supported"),
        ({"size": {"height": 24, "width": 32}}, "size = .*32.* is not supported"),
        ({"size": {"longest_edge": 24}}, "size = .*longest_edge.* is not supported"),
        ({"crop_size": 28}, "crop_size = 28 is not supported"),
        ({"resample": 4}, "resample = 4 is not supported"),
        ({"rescale_factor": 0}, "rescale_factor = 0 is not supported"),
        ({"image_mean": [0.5, 0.5]}, "image_mean = .* each of three channels"),
        ({"image_std": [1, 0, 1]}, "image_std = .* above 0"),
        ({"do_pad": True}, "do_pad = True is not supported"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order = True is not supported"),
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor is not known"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor is not known"),
    ],
)
def test_unsupported_options_are_refused_by_name(options, words, preprocess_of):
    with pytest.raises(LoadError, match=words):
        preprocess_of({"size": 24, "crop_size": 24} | options)
