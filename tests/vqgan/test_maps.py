"""Taming's second stages of maps, against what its own code computes (`tests/golden/make_vqgan.py`)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from ml_collections import ConfigDict

import vqgan_jax
from train_jax import config as config_lib
from train_jax.errors import ConfigError
from vqgan_jax import LoadError
from vqgan_jax.cli import main
from vqgan_jax.prior import prior, task
from vqgan_jax.prior.maps import Coordinates

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vqgan" / "taming-maps"
NAMES = ("segmentation", "coordinates", "reduced")


@pytest.fixture(scope="module")
def outputs() -> dict:
    with np.load(GOLDEN / "outputs.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_logits_and_the_most_likely_codes_are_those_of_the_peer(name, outputs, tmp_path, capsys):
    model, maps = vqgan_jax.load_prior(GOLDEN / f"{name}.ckpt"), list(outputs[f"{name}/maps"])
    tokens = model.condition.encode(maps)
    np.testing.assert_array_equal(tokens, outputs[f"{name}/tokens"])
    np.testing.assert_array_equal(model.vqgan.encode(outputs["images"]).reshape(2, -1), outputs["codes"])
    logits = model.logits(tokens, outputs["codes"])[1]
    np.testing.assert_allclose(logits, outputs[f"{name}/logits"], atol=1e-5)
    drawing = model.draw(maps, temperature=0, progress=False)
    np.testing.assert_array_equal(drawing.codes.reshape(2, -1), outputs[f"{name}/greedy"])
    with pytest.raises(ValueError, match="guidance = 2: .* was not trained without map"):
        model.draw(maps, guidance=2)
    with pytest.raises(ValueError, match="a map conditions images of 8 x 8 pixels only"):
        model.draw(maps, size=(8, 16))
    for wrong in (None, maps[0][:4], maps[0].astype(np.complex64), maps[0] - 9, str(tmp_path / "none.npy")):
        with pytest.raises(ValueError, match="the condition must be|none.npy could not be read"):
            model.condition.encode([wrong])
    if name == "segmentation":
        np.save(tmp_path / "map.npy", maps[0])
        assert model.condition.seed(str(tmp_path / "map.npy")) == model.condition.seed(maps[0])
        shared = ["sample", "--model", str(GOLDEN / f"{name}.ckpt"), "--n", "1", "--out", str(tmp_path / "grid.png")]
        assert main([*shared, "--map", str(tmp_path / "map.npy")]) == 0 and (tmp_path / "grid.png").is_file()
        assert main([*shared, "--class", "1"]) == 2
        assert "is conditioned on a map: name it by --map" in capsys.readouterr().err


def test_coordinates_without_a_token_are_refused():
    """The peer rounds 1 to a token that its table has not."""
    with pytest.raises(ValueError, match="coordinates with the token 24: the model has tokens below 24"):
        Coordinates(24, 2, 24).check(np.ones((4, 4), np.float32), 4)


def test_maps_are_not_trained_on():
    config = ConfigDict({"task": "vqgan_jax.prior.task", "pretrained": str(GOLDEN / "coordinates.ckpt")})
    with pytest.raises(ConfigError, match="conditioned on maps, which records do not have"):
        config_lib.resolve(config)
    with pytest.raises(ConfigError, match="conditioned on maps"):
        task.make_evaluation(config, prior.open_checkpoint(GOLDEN / "coordinates.ckpt"))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("coordinates", {"pkeep": 0.0}, "pkeep = 0.0; only a model that reads its codes"),
        ("coordinates", {"unheard_of": 1}, "Net2NetTransformer with unheard_of; its options are ckpt_path"),
        ("reduced", {"downsample_cond_size": 2}, "20 positions do not form a square grid of codes behind their condition"),
        ("reduced", {"downsample_cond_size": 0}, "downsample_cond_size = 0; it must be -1, or the side of reduced maps"),
        ("reduced", {"cond_stage_config": "__is_unconditional__"}, "downsample_cond_size = 4; it must be -1"),
        ("segmentation", {"cond_stage_config": {"target": "taming.modules.misc.BoxStage"}}, "the condition BoxStage; only"),
        ("segmentation", {"cond_stage_config": {"target": "VQ", "params": {"ddconfig": {"ch": 4}}}}, "lacks 'in_channels'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, name, changes, message):
    config = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())
    config["model"]["params"] |= changes
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(GOLDEN / f"{name}.ckpt", tmp_path)
    with pytest.raises(LoadError, match=message):
        vqgan_jax.load_prior(tmp_path / f"{name}.ckpt")
