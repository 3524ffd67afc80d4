"""Low-rank adapters: their products against sums written out, and what they train, save and load."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import clip_jax
import train_jax
from train_jax import lora, sharding, trained_weights
from train_jax.errors import ConfigError


def boxed(shape, names):
    return nn.LogicallyPartitioned(jnp.ones(shape), names)


PARAMS = {
    "clip": {
        "dense": {"kernel": boxed((4, 6), ("embed", "mlp")), "bias": boxed((6,), ("mlp",))},
        "joint": {"kernel": boxed((2, 4, 3, 2, 5), ("layers", "embed", "qkv", "heads", "head_dim"))},
        "out": {"kernel": boxed((2, 5, 4), ("heads", "head_dim", "embed"))},
        "conv": {"kernel": boxed((3, 3, 4, 6), ("patch", "patch", "channels_in", "channels_out"))},
    },
    "other": {"dense": {"kernel": boxed((4, 6), ("embed", "mlp"))}},
}
ADAPTERS = (("clip/joint", 2, 6.0), ("clip", 1, 3.0))


def add():
    return lora.add_adapters(PARAMS, ADAPTERS, jax.random.key(0))


def test_adapters_have_the_axes_of_their_kernels_and_the_first_matching_rank():
    axes = sharding.logical_axes(add())
    shapes = {name: x.shape for name, x in _by_path(sharding.unbox(add())).items() if "/lora/" in name}
    assert shapes == {
        "clip/lora/dense/kernel/a": (4, 1, 1), "clip/lora/dense/kernel/b": (1, 6, 1), "clip/lora/dense/kernel/scale": (),
        "clip/lora/joint/kernel/a": (2, 4, 3, 1, 1, 2), "clip/lora/joint/kernel/b": (2, 1, 3, 2, 5, 2),
        "clip/lora/joint/kernel/scale": (), "clip/lora/out/kernel/a": (2, 5, 1, 1), "clip/lora/out/kernel/b": (1, 1, 4, 1),
        "clip/lora/out/kernel/scale": (), "clip/lora/conv/kernel/a": (3, 3, 4, 1, 1),
        "clip/lora/conv/kernel/b": (1, 1, 1, 6, 1), "clip/lora/conv/kernel/scale": (),
    }  # fmt: skip
    assert axes["clip/lora/joint/kernel/a"] == ("layers", "embed", "qkv", None, None, None)
    assert axes["clip/lora/joint/kernel/b"] == ("layers", None, "qkv", "heads", "head_dim", None)


def _by_path(tree):
    return {sharding.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
def test_merging_adds_the_products(library):
    """Against the sum over the rank of products that are broadcast."""
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: library.asarray(draw.standard_normal(x.shape, np.float32)), jax.device_get(sharding.unbox(add()))
    )
    merged = lora.merge(params)
    assert merged["other"] is params["other"] and set(merged["clip"]) == set(PARAMS["clip"])
    np.testing.assert_array_equal(merged["clip"]["dense"]["bias"], params["clip"]["dense"]["bias"])
    for module, adapter in params["clip"]["lora"].items():
        kernel, adapter = params["clip"][module]["kernel"], jax.device_get(adapter["kernel"])
        expected = kernel + adapter["scale"] * (adapter["a"] * adapter["b"]).sum(-1)
        np.testing.assert_allclose(merged["clip"][module]["kernel"], expected, rtol=1e-5, atol=1e-5)


def test_before_training_nothing_has_changed():
    params = sharding.unbox(add())
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params), sharding.unbox(PARAMS))
    a = params["clip"]["lora"]["dense"]["kernel"]["a"]
    assert np.std(a) > 0 and float(params["clip"]["lora"]["joint"]["kernel"]["scale"]) == 3


def test_a_pattern_that_is_no_kernels_first_match_is_an_error():
    for adapters in ((("bias", 1, 1.0),), (("clip", 1, 1.0), ("clip/dense", 2, 1.0))):
        with pytest.raises(ConfigError, match="is the first match of no kernel; they are named clip/conv/kernel"):
            lora.add_adapters(PARAMS, adapters, jax.random.key(0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny CLIP, and a run that adapts its attention."""
    folder = tmp_path_factory.mktemp("lora")
    tower = {"width": 8, "depth": 2, "heads": 2}
    c = ConfigDict({"task": "clip_jax.task", "steps": 1, "data": {"source": "digits", "batch_size": 16}})
    c.data.data_dir = str(folder / "data")
    c.model = {"embed_dim": 8, "image": {"size": 8, "patch": 4, **tower}, "text": {"context_length": 12, **tower}}
    c.tokenizer = {"vocab_size": 560}
    train_jax.run(c, folder / "base")
    c.model, c.tokenizer = {}, {}
    c.pretrained, c.steps = str(folder / "base"), 3
    c.optim = {"lr": 0.05, "lora": (("transformer/.*/attention", 2, 4.0),), "weight_decay": 0.5}
    c.evals = {"test": {"type": "zero_shot", "split": "test[:40]"}}
    history = train_jax.run(c, folder / "tuned")
    return folder, c, history


def test_only_adapters_are_trained_and_a_loaded_model_has_them_merged(runs):
    folder, _, history = runs
    base, _, _ = trained_weights.load_weights(folder / "base" / "checkpoints")
    tuned, _, _ = trained_weights.load_weights(folder / "tuned" / "checkpoints")
    before, after = _by_path(base), _by_path(tuned)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "/transformer/" in name and "/attention/" in name and "kernel" in name}
    for name in changed:
        delta = (after[name] - before[name]).reshape(2, 8, -1)  # of two blocks
        assert max(np.linalg.matrix_rank(x, tol=1e-5) for x in delta) <= 2 * (3 if delta.shape[-1] == 24 else 1)
    clip = clip_jax.load(folder / "tuned")
    texts = [f"a photo of the digit {digit}" for digit in range(10)]
    assert np.isfinite(clip.encode_text(texts)).all()
    assert not np.allclose(clip.encode_text(texts), clip_jax.load(folder / "base").encode_text(texts), atol=1e-3)


def test_evaluators_and_evaluations_see_merged_kernels(runs, capsys):
    from train_jax.evaluation import command

    folder, _, history = runs
    trained = next(row for row in reversed(history) if "test/top1" in row)["test/top1"]
    assert command.main(["evaluate", str(folder / "tuned")][1:]) == 0
    assert f"top1 {trained:.5g}" in capsys.readouterr().out


def test_random_weights_are_not_adapted(runs, tmp_path):
    _, c, _ = runs
    c = c.copy_and_resolve_references()
    c.pretrained, c.tokenizer = "", {"vocab_size": 560}
    with pytest.raises(ConfigError, match="set config.pretrained"):
        train_jax.run(c, tmp_path)
