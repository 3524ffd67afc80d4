"""The formulas of `clip_jax.flops` against the operations that the compiler counts in the forward pass."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax import flops, model
from clip_jax.options import CLIPCompute, CLIPOptions
from train_jax import sharding

VOCAB, LENGTH, SIZE = 600, 10, 64


def counted(image: dict, method: str | None = None) -> tuple[CLIPOptions, float]:
    """Options of a model, and the FLOPs of its forward pass (or of one method's on an image) for one pair."""
    options = CLIPOptions.defaults()
    options.update({"embed_dim": 8})
    options.image.update({"size": SIZE, **image})
    options.text.update({"context_length": LENGTH, "width": 128, "depth": 2, "heads": 2})
    module = model.build(options, VOCAB, VOCAB - 1, CLIPCompute(scan=False))
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    variables = sharding.unbox(jax.eval_shape(module.init, jax.random.key(0), images, ids))
    inputs = (images,) if method else (images, ids)
    program = jax.jit(lambda variables, *inputs: module.apply(variables, *inputs, method=method))
    return module.options, program.lower(variables, *inputs).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("stem, pool", [("patch", "cls"), ("conv", "mean"), ("patch", "map"), ("patch", "query")])
def test_flops_of_both_towers(stem, pool):
    """Norms, softmax and activations come on top of the formula."""
    options, expected = counted({"stem": stem, "pool": pool, "patch": 16, "width": 128, "depth": 2, "heads": 2})
    assert sum(flops.forward_flops(options)) == pytest.approx(expected, rel=0.06)


def test_flops_of_gated_mlps():
    image = {"patch": 16, "width": 128, "depth": 2, "heads": 2, "gated": True}
    options, expected = counted(image, "encode_image")
    assert flops.forward_flops(options)[0] == pytest.approx(expected, rel=0.06)


def test_flops_of_a_resnet():
    options, expected = counted({"tower": "resnet", "width": 16, "layers": (1, 1, 1, 1), "heads": 4}, "encode_image")
    assert flops.forward_flops(options)[0] == pytest.approx(expected, rel=0.08)


def test_flops_of_a_vitamin():
    image = {"patch": 16, "width": 64, "depth": 2, "heads": 2, "pool": "mean", "gated": True, "mlp_ratio": 2.0}
    options, expected = counted(image | {"stem": "mbconv", "stem_channels": 16, "stem_layers": (2, 1)}, "encode_image")
    assert flops.forward_flops(options)[0] == pytest.approx(expected, rel=0.08)


def test_flops_of_the_stem_hmlp():
    image = {"patch": 16, "width": 64, "depth": 1, "heads": 2, "stem": "hmlp"}
    options, expected = counted(image, "encode_image")
    assert flops.forward_flops(options)[0] == pytest.approx(expected, rel=0.08)


def test_flops_of_a_convnext():
    image = {"tower": "convnext", "width": 16, "layers": (1, 1, 2, 1), "proj_hidden": 16}
    options, expected = counted(image, "encode_image")
    assert flops.forward_flops(options)[0] == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("layers", [(1, 1, 2, 1), (1, 1, 1, 2, 1)])
def test_flops_of_an_mci(layers):
    image = {"tower": "mci", "width": 64, "layers": layers}
    options, expected = counted(image, "encode_image")
    assert flops.forward_flops(options)[0] == pytest.approx(expected, rel=0.08)


def test_flops_of_training_by_what_is_trained():
    """A backward pass takes twice a forward pass; a frozen tower has none, and a hard negative is a second text."""
    options = CLIPOptions.parse(CLIPOptions.defaults(), "model")
    image, text = flops.forward_flops(options)
    assert flops.training_flops(options) == 3 * (image + text)
    assert flops.training_flops(options, texts=2) == 3 * (image + 2 * text)
    assert flops.training_flops(options, patch_dropout=0.5, frozen=("vision",)) == image + 3 * text
    assert flops.training_flops(options, frozen=("text",)) == 3 * image + text
    native = CLIPOptions.defaults()
    native.image.update({"native": True, "pool": "map"})
    native = CLIPOptions.parse(native, "model")
    assert flops.forward_flops(native, max_patches=49) == flops.forward_flops(native)
    assert flops.training_flops(native, max_patches=98) > flops.training_flops(native) * 1.5
    assert flops.training_flops(options, patch_dropout=0.5) - 3 * text == pytest.approx(1.5 * image, rel=0.05)
