"""Every network of a tiny unCLIP against diffusers' (`tests/golden/make_unclip.py`), and how networks start to train."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.text import mask_padding
from dalle_jax.unclip.context import Context, ContextEncoder
from dalle_jax.unclip.options import DecoderOptions, PriorOptions, UNetOptions
from dalle_jax.unclip.prior_networks import PriorTransformer
from dalle_jax.unclip.timestep import sinusoid
from dalle_jax.unclip.unet import UNet
from train_jax.compute import TransformerCompute
from train_jax.errors import ConfigError

DROPPED = np.array([True, True, False, False])  # rows of the null image embedding


def test_the_text_encoder_is_that_of_diffusers(karlo, golden, apply):
    """The embedding has no unit length; the states are those after the last norm; padding is hidden behind the end."""
    prompts = [str(prompt) for prompt in golden["prompts"]]
    ids = karlo.text.tokenizer.encode(prompts)
    mask = np.asarray(mask_padding(jnp.asarray(ids), karlo.text.options.text.pool, karlo.text.tokenizer.eos_id))
    np.testing.assert_array_equal(mask, golden["text_mask"][2:])
    np.testing.assert_array_equal(ids[mask], golden["ids"][mask])
    embedding, states = apply("text_encoder", ids, method="encode_tokens")
    np.testing.assert_allclose(embedding, golden["text_embedding"][2:], atol=1e-5)
    np.testing.assert_allclose(np.asarray(states)[mask], golden["text_states"][2:][mask], atol=1e-5)
    assert np.abs(np.linalg.norm(embedding, axis=1) - 1).min() > 0.1
    padded = golden["ids"].astype(np.int32)  # with the end token, as diffusers pads
    np.testing.assert_array_equal(mask_padding(jnp.asarray(padded), "argmax", 0), mask)


def test_the_prior_is_that_of_diffusers(golden, text, apply):
    np.testing.assert_allclose(apply("prior", golden["prior_x"], golden["t"], *text), golden["prior"], atol=1e-5)


def test_the_context_is_that_of_diffusers(golden, text, apply):
    image = np.concatenate([np.full_like(golden["image_embedding"], 9.0), golden["image_embedding"]])
    context = apply("context", image, *text, DROPPED)
    np.testing.assert_allclose(context.tokens, golden["context_tokens"], atol=1e-5)
    np.testing.assert_allclose(context.embedding, golden["context_embedding"], atol=1e-5)
    assert np.asarray(context.mask)[:, :4].all()
    np.testing.assert_array_equal(np.asarray(context.mask)[:, 4:], golden["text_mask"])


@pytest.fixture(scope="module")
def context(golden):
    mask = np.pad(golden["text_mask"], ((0, 0), (4, 0)), constant_values=True)
    return Context(golden["context_embedding"], golden["context_tokens"], mask)


def test_the_decoder_is_that_of_diffusers(golden, context, apply):
    actual = apply("decoder", golden["decoder_x"], golden["t"], context)
    np.testing.assert_allclose(actual, golden["decoder"], atol=1e-5)


@pytest.mark.parametrize("part", ["super_res_first", "super_res_last"])
def test_super_resolution_is_that_of_diffusers(part, golden, apply):
    np.testing.assert_allclose(apply(part, golden["super_res_x"], golden["t"][1:3]), golden[part], atol=1e-5)


def test_hidden_text_changes_nothing(golden, text, context, apply):
    embedding, states, mask = text
    changed = np.where(mask[..., None], states, 100.0).astype(np.float32)
    actual = apply("prior", golden["prior_x"], golden["t"], embedding, changed, mask)
    np.testing.assert_allclose(actual, golden["prior"], atol=1e-5)
    tokens = np.where(context.mask[..., None], context.tokens, 100.0).astype(np.float32)
    actual = apply("decoder", golden["decoder_x"], golden["t"], context._replace(tokens=tokens))
    np.testing.assert_allclose(actual, golden["decoder"], atol=1e-5)


def test_cosines_of_the_timestep_come_before_sines():
    actual = sinusoid(jnp.array([0, 3]), 4)
    np.testing.assert_allclose(actual, [[1, 1, 0, 0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]], atol=1e-6)


def test_default_options_are_the_published_sizes():
    """Numbers of parameters of kakaobrain/karlo-v1-alpha; the prior's include mean and deviation of its embeddings."""

    def count(module: nn.Module, *inputs) -> int:
        zeros = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in inputs]
        made = jax.eval_shape(module.init, jax.random.key(0), *zeros)
        return sum(x.size for x in jax.tree.leaves(made))

    f, t, embedding = jnp.float32, ((1,), jnp.int32), ((1, 768), jnp.float32)
    text = (embedding, ((1, 77, 768), f), ((1, 77), bool))
    compute = TransformerCompute()
    assert count(PriorTransformer(PriorOptions(), compute), embedding, t, *text) == 1_022_030_080 - 2 * 768
    assert count(ContextEncoder(DecoderOptions(), compute), embedding, *text, ((1,), bool)) == 7_878_400
    assert count(UNet(UNetOptions(), 3, compute), ((1, 8, 8, 6), f), t) == 691_579_523

    def decode(x, t, *context):
        return UNet(DecoderOptions(), 6, compute).init(jax.random.key(0), x, t, Context(*context))

    context = (((1, 1280), f), ((1, 81, 1536), f), ((1, 81), bool))
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((1, 8, 8, 3), f), t, *context)]
    assert sum(x.size for x in jax.tree.leaves(jax.eval_shape(decode, *shapes))) == 885_439_686


# ---------------------------------------------------------------------------------------------------------------------
# Training

PRIOR = PriorOptions(embed_dim=6, text_length=3, width=8, depth=2, heads=2)
UNET = {"size": 8, "channels": (8, 12), "blocks": 1, "groups": 4}
DECODER, UPSAMPLER = DecoderOptions(attention=(1,), head_dim=4, embed_dim=6, context_dim=10, **UNET), UNetOptions(**UNET)


def example(network: str) -> tuple:
    """Inputs of two examples."""
    rng = np.random.default_rng(0)

    def draw(*shape: int):
        return jnp.asarray(rng.standard_normal((2, *shape)), jnp.float32)

    t, mask = jnp.array([3, 700]), jnp.array([[True, True, False], [True, True, True]])
    text = (draw(6), draw(3, 5), mask)
    if network == "prior":
        return (draw(6), t, *text)
    if network == "context":
        return (draw(6), *text, jnp.array([False, True]))
    if network in ("upsampler", "patched"):
        return (draw(8, 8, 12 if network == "patched" else 6), t)
    return (draw(8, 8, 3), t, Context(draw(32), draw(7, 10), jnp.pad(mask, ((0, 0), (4, 0)), constant_values=True)))


def build(network: str, compute: TransformerCompute, dropout: float = 0.0) -> nn.Module:
    if network == "prior":
        return PriorTransformer(PRIOR, compute, dropout)
    if network == "context":
        return ContextEncoder(DECODER, compute)
    sizes = {"decoder": (DECODER, 6), "upsampler": (UPSAMPLER, 3), "patched": (UPSAMPLER, 12)}
    return UNet(*sizes[network], compute, dropout)


@functools.cache
def program(network: str, dtype: str = "float32", dropout: float = 0.0):
    """The compiled network `(params, dropout key or None, *inputs) -> output`, in training if there is a key."""
    module = build(network, TransformerCompute(dtype=dtype), dropout)

    def run(params, key, *inputs):
        more = () if key is None else (False,)
        return module.apply({"params": params}, *inputs, *more, rngs=None if key is None else {"dropout": key})

    return jax.jit(run)


def shapes(network: str):
    return jax.eval_shape(build(network, TransformerCompute()).init, jax.random.key(0), *example(network))["params"]


@functools.cache
def params(network: str):
    """Random parameters, also where networks start at zero."""
    draw = np.random.default_rng(1)

    def make(path, x):
        noise = draw.standard_normal(x.shape).astype(np.float32)
        is_kernel, is_scale = (path[-1].key == name for name in ("kernel", "scale"))
        return noise * np.prod(x.shape[:-1]) ** -0.5 if is_kernel else is_scale + 0.1 * noise

    return jax.tree_util.tree_map_with_path(make, nn.unbox(shapes(network)))


def test_a_u_net_starts_at_zero_and_so_do_its_branches():
    init = jax.jit(build("decoder", TransformerCompute()).init_with_output)
    output, variables = init(jax.random.key(0), *example("decoder"))
    made = nn.unbox(variables)["params"]
    np.testing.assert_array_equal(output, 0)
    ends = [name for name in made if "block" in name or "resize" in name]
    assert len(ends) == 10 and all(np.all(made[name]["conv2"]["kernel"] == 0) for name in ends)
    attentions = [name for name in made if "attention" in name]
    assert len(attentions) == 4 and all(np.all(made[name]["out"]["kernel"] == 0) for name in attentions)


@pytest.mark.parametrize("network, remats", [("prior", ("full", "dots")), ("decoder", ("dots",))])
def test_every_parameter_is_trained_and_rematerialisation_changes_no_gradient(network, remats):
    def gradient(remat: str):
        module = build(network, TransformerCompute(remat=remat))

        def loss(params):
            return jnp.mean(jnp.sin(module.apply({"params": params}, *example(network))))

        return jax.jit(jax.grad(loss))(params(network))

    expected = gradient("none")
    untrained = [path for path, x in jax.tree_util.tree_leaves_with_path(expected) if not np.any(x)]
    assert not untrained
    for remat in remats:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(remat), expected)


@pytest.mark.parametrize("network", ["prior", "context", "decoder"])
def test_bfloat16_is_close_and_parameters_stay_float32(network):
    module = build(network, TransformerCompute(dtype="bfloat16"))
    made = jax.eval_shape(module.init, jax.random.key(0), *example(network))
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    exact, rounded = (program(network, dtype)(params(network), None, *example(network)) for dtype in ("float32", "bfloat16"))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert np.abs(a.astype(np.float32) - b.astype(np.float32)).max() < 0.05 * max(1, np.abs(a).max())
    if network != "context":
        assert rounded.dtype == jnp.float32


@pytest.mark.parametrize("network", ["prior", "decoder"])
def test_dropout_acts_in_training_only(network):
    run = functools.partial(program(network, dropout=0.5), params(network))
    keys = (None, *map(jax.random.key, (0, 0, 1)))
    without, *draws = (run(key, *example(network)) for key in keys)
    np.testing.assert_allclose(without, program(network)(params(network), None, *example(network)), atol=1e-5)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2]) and not np.allclose(draws[0], without)


@pytest.mark.parametrize("network", ["prior", "context", "decoder", "upsampler"])
def test_every_parameter_names_its_axes(network):
    leaves = jax.tree.leaves(shapes(network), is_leaf=lambda leaf: hasattr(leaf, "names"))
    assert all(len(leaf.names) == len(leaf.value.shape) for leaf in leaves)


def test_patches_are_the_channels_of_a_smaller_u_net():
    """Against a loop over the pixels of a patch."""
    x, t = example("upsampler")
    patched = UNet(dataclasses.replace(UPSAMPLER, size=16, patch=2), 3)
    large = jnp.tile(x[..., :3], (1, 2, 2, 1)) * jnp.linspace(0, 1, 16)[None, :, None, None]
    variables = params("patched")
    pixels = [(row, column) for row in range(2) for column in range(2)]
    cut = jnp.concatenate([large[:, row::2, column::2] for row, column in pixels], axis=-1)
    small = UNet(UPSAMPLER, 12).apply({"params": variables}, cut, t)
    output = patched.apply({"params": variables}, large, t)
    assert output.shape == large.shape
    for index, (row, column) in enumerate(pixels):
        expected = small[..., 3 * index : 3 * index + 3]
        np.testing.assert_allclose(output[:, row::2, column::2], expected, atol=1e-5)


def test_wrong_inputs_are_refused():
    x, t, context = example("decoder")
    module = build("decoder", TransformerCompute())
    with pytest.raises(ValueError, match="images of 7 x 8 pixels; sides must be divisible by 2"):
        module.apply({}, x[:, :7], t, context)
    with pytest.raises(ValueError, match="a U-Net with attention needs a context"):
        module.apply({}, x, t)


@pytest.mark.parametrize(
    "options, values, message",
    [
        (PriorOptions, {"width": 7, "heads": 7}, "model.width = 7; it must be even"),
        (PriorOptions, {"width": 8, "heads": 3}, "model.heads = 3; it must be a divisor of model.width = 8"),
        (UNetOptions, {"channels": (48,)}, r"model.groups = 32; it must be a divisor of all model.channels = \(48,\)"),
        (UNetOptions, {"channels": ()}, r"model.channels = \(\); it must be one or more"),
        (UNetOptions, {"size": 12}, "model.size = 12; it must be divisible by 8, for 4 levels of patches of 1"),
        (UNetOptions, {"size": 40, "patch": 2}, "model.size = 40; it must be divisible by 16, for 4 levels of patches of 2"),
        (DecoderOptions, {"attention": (4,)}, r"model.attention = \(4,\); it must be one or more of the levels \(0, 1"),
        (DecoderOptions, {"attention": ()}, r"model.attention = \(\); it must be one or more of the levels"),
        (DecoderOptions, {"head_dim": 96}, "model.head_dim = 96; it must be a divisor of the channels"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, values, message):
    with pytest.raises(ConfigError, match=message):
        options.parse(values, "model")
