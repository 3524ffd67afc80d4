"""Training that starts at a public checkpoint: its weights, tokenizer and preprocessing; contradictions are errors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import clip_jax
import train_jax
from clip_jax import task as clip_task
from tests.trees import set_options
from train_jax import config as config_lib
from train_jax import sharding

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "clip"
TEXTS = ["one red kite", "two blue kites above the sea", "a long story " * 5]
KINDS = ("hf-clip", "hf-siglip", "open-clip-resnet")


@pytest.fixture
def finetuning(pairs):
    """`finetuning(kind, {"optim.lr": …}) -> config` of two updates of a golden checkpoint on the folder `pairs`."""

    def make(kind: str, changes: dict | None = None) -> ConfigDict:
        config = ConfigDict({"task": "clip_jax.task", "steps": 2, "pretrained": str(GOLDEN / kind), "log_every": 1})
        config.data = ConfigDict({"source": f"folder:{pairs}", "batch_size": 8})
        config.optim = ConfigDict({"lr": 1e-3, "schedule": "constant"})
        return set_options(config, changes or {})

    return make


@pytest.mark.parametrize("kind, size", [*((kind, None) for kind in KINDS), ("hf-clip", 40)])
def test_a_task_starts_with_the_variables_of_its_checkpoint(finetuning, kind, size):
    """As `clip_jax.load` opens them: with a ResNet's running statistics, and positions interpolated to another size."""
    peer = clip_jax.load(GOLDEN / kind, image_size=size)
    task = clip_task.make(config_lib.resolve(finetuning(kind, {"model.image.size": size} if size else {})), None)
    params, mutable_variables = task.pretrained()
    jax.tree.map(np.testing.assert_array_equal, {"params": params["clip"], **mutable_variables}, dict(peer.variables))
    assert task.artifacts["tokenizer.json"] == peer.tokenizer.to_json()
    assert task.artifacts["preprocess.json"] == peer.preprocess.to_json()
    size = peer.preprocess.size
    batch = {"image": np.zeros((2, size, size, 3), np.uint8), "text": peer.tokenizer.encode(TEXTS[:2])}
    batch["truncated"] = np.zeros(2, bool)
    shapes = jax.tree.map(jnp.shape, sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch)))
    assert shapes == jax.tree.map(jnp.shape, (params, mutable_variables))
    value, _ = jax.eval_shape(task.loss, params, mutable_variables, batch, jax.random.key(0), 0)
    assert value.shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, optimizer", [("hf-siglip", "contrib.schedule_free_adamw"), ("open-clip-resnet", "adamw")]
)
def test_a_run_at_learning_rate_zero_keeps_the_checkpoint(finetuning, pairs, tmp_path, kind, optimizer):
    """`tests/train/test_command_line.py` runs it from hf-clip."""
    peer = clip_jax.load(GOLDEN / kind)
    config = finetuning(kind, {"optim.name": optimizer, "optim.lr": 1e-30, "optim.freeze": ("vision",)})
    history = train_jax.run(config, tmp_path / "run")
    run = clip_jax.load(tmp_path / "run")
    images = sorted(pairs.glob("*.png"))
    np.testing.assert_allclose(run.encode_image(images), peer.encode_image(images), atol=1e-6)
    np.testing.assert_allclose(run.encode_text(TEXTS), peer.encode_text(TEXTS), atol=1e-6)
    np.testing.assert_allclose(run.similarity(images, TEXTS), peer.similarity(images, TEXTS), atol=1e-4)
    assert run.preprocess == peer.preprocess and run.tokenizer.fingerprint == peer.tokenizer.fingerprint
    assert np.isfinite(history[-1]["loss"])


@pytest.mark.slow
def test_the_text_tower_trains_beside_a_frozen_image_tower_of_another_size(finetuning, pairs, tmp_path):
    train_jax.run(finetuning("hf-clip", {"model.image.size": 40, "optim.freeze": ("vision",)}), tmp_path / "run")
    run, peer = clip_jax.load(tmp_path / "run"), clip_jax.load(GOLDEN / "hf-clip", image_size=40)
    assert run.preprocess.size == 40 and run.variables["params"]["vision"]["positions"].shape == (26, 32)
    images = sorted(pairs.glob("*.png"))
    np.testing.assert_allclose(run.encode_image(images), peer.encode_image(images), atol=1e-6)
    assert np.abs(run.encode_text(TEXTS) - peer.encode_text(TEXTS)).max() > 1e-3


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.image.width": 64}, r"config.model.image.width = 64, but the checkpoint .* has 32: leave it out"),
        ({"model.activation": "gelu"}, "config.model.activation = 'gelu', but"),
        ({"preprocess.mode": "squash"}, "config.preprocess.mode = 'squash', but"),
        ({"tokenizer.vocab_size": 700}, "the tokenizer comes with the checkpoint"),
        ({"pretrained": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_options_that_contradict_the_checkpoint_are_named(finetuning, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train_jax.run(finetuning("hf-clip", changes), tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_config_resolves_to_itself(finetuning, kind):
    """The config.json of a run directory, with lists for tuples, does not contradict the checkpoint."""
    full = config_lib.resolve(finetuning(kind))
    assert config_lib.resolve(full) == full == config_lib.resolve(ConfigDict(json.loads(full.to_json())))
