"""Every config of unCLIP is complete; those at published sizes have the published sizes."""

import pytest

from dalle_jax.unclip import decoder_task, prior_task
from dalle_jax.unclip.flops import unet_flops
from dalle_jax.unclip.options import DecoderModelOptions, PriorModelOptions, UNetOptions
from train_jax import config as config_lib
from train_jax import config_file

CONFIGS = config_file.FOLDER / "unclip"


def load(name: str):
    return config_lib.resolve(config_file.load(f"unclip/{name}"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_is_complete_and_its_docstring_tells_how_to_run_it(path):
    load(path.stem)
    assert f"train-jax --config=configs/unclip/{path.name} --workdir=" in path.read_text().split('"""')[1]


def test_karlos_configs_are_karlo():
    """The options whose defaults are karlo's, which `test_networks.py` counts."""
    assert PriorModelOptions.parse(load("karlo_prior").model, "model") == PriorModelOptions()
    assert DecoderModelOptions.parse(load("karlo_decoder").model, "model") == DecoderModelOptions()
    upsampler = UNetOptions.parse({**load("karlo_upsampler").model, "size": 256}, "model")
    assert upsampler == UNetOptions()
    assert prior_task.OPTIONS().diffusion.x0_range == 5 and decoder_task.OPTIONS().diffusion.learned_variance
    for name in ("karlo_prior", "karlo_decoder", "karlo_upsampler"):
        config = load(name)
        assert config.data.split == "train[1%:]" and all(options.split == "train[:1%]" for options in config.evals.values())


def test_the_decoder_of_scenes_is_small():
    options = DecoderModelOptions.parse(load("decoder_shapes").model, "model")
    assert 0.5e9 < unet_flops(options, 6, 3) < 0.7e9
