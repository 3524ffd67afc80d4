"""The model: parameter counts, shapes, pooling, sharding, and errors of options."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import model as model_lib
from clip_jax.options import CLIPCompute
from nn_jax.layers import Dense
from train_jax import sharding
from train_jax.errors import ConfigError

VOCAB, EOS, LENGTH, SIZE = 50, 49, 8, 16
SMALL = {
    "embed_dim": 12,
    "image": {"size": SIZE, "patch": 4, "width": 16, "depth": 2, "heads": 4},
    "text": {"context_length": LENGTH, "width": 16, "depth": 2, "heads": 4},
}


def options(**changes):
    config = model_lib.CLIPOptions.defaults()
    config.update(SMALL)
    config.update(changes)
    return config


def build(compute: dict | None = None, **changes):
    return model_lib.build(options(**changes), VOCAB, EOS, CLIPCompute(**compute or {}))


def inputs(count=2):
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.standard_normal((count, SIZE, SIZE, 3)), jnp.float32)
    return images, jnp.asarray(draw.integers(0, EOS, (count, LENGTH)), jnp.int32).at[:, 5].set(EOS)


@pytest.fixture(scope="module")
def random_params(random_variables):
    return lambda module: random_variables(module.init, jax.random.key(0), *inputs())["params"]


def apply(module, variables, *inputs, **options):
    return jax.jit(functools.partial(module.apply, **options))(variables, *inputs)


@pytest.fixture(scope="module")
def model(random_params):
    module = build()
    return module, random_params(module)


def count(module, size):
    images, ids = jnp.zeros((1, size, size, 3)), jnp.full((1, module.options.text.context_length), module.eos_id)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images, ids)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("scan", [True, False])
def test_the_defaults_have_as_many_parameters_as_openais_vit_b_32(scan):
    config = model_lib.CLIPOptions.defaults()
    # Counted in the published weights.
    assert count(model_lib.build(config, 49408, 49407, CLIPCompute(scan=scan)), 224) == 151_277_313


def test_vit_l_14_has_as_many_parameters_as_openais():
    config = model_lib.CLIPOptions.defaults()
    config.embed_dim = 768
    config.image.update({"patch": 14, "width": 1024, "depth": 24, "heads": 16})
    config.text.update({"width": 768, "heads": 12})
    assert count(model_lib.build(config, 49408, 49407), 224) == 427_616_513


@pytest.mark.parametrize("stem, pool", [("patch", "cls"), ("conv", "mean")])
def test_embeddings_are_float32_of_unit_norm(random_params, stem, pool):
    module = build(image=SMALL["image"] | {"stem": stem, "pool": pool}, compute={"dtype": "bfloat16"})
    image, text, scale, bias = jax.jit(module.apply)({"params": random_params(module)}, *inputs())
    assert image.shape == text.shape == (2, 12)
    assert image.dtype == text.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([image, text]), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose([scale, bias], [1 / 0.07, 0], rtol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "map", "resnet"])
def test_embeddings_of_bfloat16_are_float32_sums_of_its_products(random_variables, pool):
    image = {"tower": "resnet", "width": 8, "layers": (1, 1, 1, 1), "size": 32} if pool == "resnet" else {"pool": pool}
    image = SMALL["image"] | image
    if pool == "map":
        image |= {"proj": False, "width": 12}  # as SigLIP has it: the last product is that of the pool's MLP
    module = build(image=image, compute={"dtype": "bfloat16"}, activation="gelu")
    images, ids = jnp.ones((2, image["size"], image["size"], 3)), inputs()[1]
    variables = random_variables(module.init, jax.random.key(0), images, ids)
    last = {"cls": ("vision", "proj"), "map": ("vision", "head"), "resnet": ("vision", "pool")}[pool]

    @jax.jit
    def products(variables):
        """Records input, parameters and output of the last dense layer of both towers."""
        heard = {}

        def listen(call, args, kwargs, context):
            y = call(*args, **kwargs)
            path = context.module.path
            if isinstance(context.module, Dense) and (path[:2] == last or path == ("text", "proj")):
                heard["/".join(path)] = (args[0], context.module.variables["params"], y)
            return y

        with nn.intercept_methods(listen):
            image, text, *_ = module.apply(variables, images, ids)
        *_, vision = (name for name in heard if name.startswith("vision"))
        return image, text, {name: heard[name] for name in (vision, "text/proj")}

    image, text, heard = products(variables)
    assert image.dtype == text.dtype == jnp.float32
    for x, params, y in heard.values():
        x, kernel = (np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, params["kernel"]))
        summed = kernel.ndim - 1
        exact = np.tensordot(x, kernel, (range(x.ndim - summed, x.ndim), range(summed)))
        exact += np.asarray(params.get("bias", 0.0))
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max())


def test_the_sigmoid_loss_has_a_bias():
    for module, first in (
        (build(), [1 / 0.07, 0]),
        (build(loss="sigmoid", init_logit_scale=math.log(10)), [10, -10]),
    ):
        values, _ = module.init_with_output(jax.random.key(0), method="scale_and_bias")
        np.testing.assert_allclose(values, first, rtol=1e-6)


def test_the_scale_is_clamped_to_100(model):
    module, params = model

    def scale(value):
        return module.apply({"params": params | {"logit_scale": value}}, method="scale_and_bias")[0]

    np.testing.assert_allclose(scale(jnp.asarray(math.log(100) - 0.01)), 100 * math.exp(-0.01), rtol=1e-5)
    np.testing.assert_allclose(scale(jnp.asarray(7.0)), 100, rtol=1e-5)


def test_a_scale_above_its_limit_can_decrease(model):
    """An update may exceed the limit; with a gradient of zero there, the parameter would never change again."""
    module, params = model

    def slope(value, sign):
        def loss(value):
            return sign * module.apply({"params": params | {"logit_scale": value}}, method="scale_and_bias")[0]

        return float(jax.grad(loss)(jnp.asarray(value)))

    assert slope(4.0, 1.0) == pytest.approx(math.exp(4)) and slope(4.0, -1.0) == pytest.approx(-math.exp(4))
    assert slope(5.0, 1.0) == pytest.approx(100), "descent would lead back"
    assert slope(5.0, -1.0) == 0, "descent would lead farther out"


def test_patches_are_read_row_by_row_and_mean_pooling_ignores_their_order(random_params):
    """Without positions and with mean pooling, shuffled patches give the same embedding; shuffled pixels do not."""
    module = build(image=SMALL["image"] | {"stem": "patch", "pool": "mean"})
    params = random_params(module)
    params["vision"]["positions"] = jnp.zeros_like(params["vision"]["positions"])
    image = np.asarray(inputs()[0])
    patches = image.reshape(2, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(2, 16, 4, 4, 3)  # [B, patch, row, column, C]
    order = np.random.default_rng(0).permutation(16)
    shuffled = patches[:, order].reshape(2, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(image.shape)
    turned = patches[:, :, ::-1].reshape(2, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(image.shape)
    encode = jax.jit(lambda x: module.apply({"params": params}, x, method="encode_image"))
    np.testing.assert_allclose(encode(image), encode(shuffled), atol=1e-5)
    assert np.abs(encode(image) - encode(turned)).max() > 1e-2


def test_the_class_token_is_normalised_and_projected(random_params):
    """With blocks that add zero the embedding does not depend on the image and has a closed form."""
    module = build(image=SMALL["image"] | {"pool": "cls", "pre_norm": False})
    params = random_params(module)
    block = params["vision"]["transformer"]["blocks"]
    for branch in (block["attention"]["out"], block["mlp_out"]):
        branch.update(jax.tree.map(jnp.zeros_like, branch))
    vision = jax.tree.map(np.asarray, params["vision"])
    x = (vision["cls"] + vision["positions"][0]).astype(np.float64)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * vision["norm_post"]["scale"] + vision["norm_post"]["bias"]
    x = x @ vision["proj"]["kernel"]
    embeddings = apply(module, {"params": params}, inputs()[0], method="encode_image")
    np.testing.assert_allclose(embeddings, np.stack(2 * [x / np.linalg.norm(x)]), atol=1e-6)


def test_text_is_pooled_at_the_first_end_token(model):
    module, params = model
    encode = jax.jit(lambda ids: module.apply({"params": params}, ids, method="encode_text"))
    short = jnp.asarray([[1, 2, 3, EOS, 0, 0, 0, 0]], jnp.int32)
    for padding in (EOS, 7):
        np.testing.assert_allclose(encode(short), encode(short.at[:, 4:].set(padding)), atol=1e-6)
    assert np.abs(encode(short) - encode(short.at[:, 2].set(4))).max() > 1e-3, "what precedes the end matters"
    assert np.abs(encode(short) - encode(short.at[:, 3].set(4).at[:, 4].set(EOS))).max() > 1e-3


def test_eos_need_not_be_the_largest_id(random_params):
    module = model_lib.build(options(), VOCAB, 2)
    params = random_params(module)
    encode = jax.jit(lambda ids: module.apply({"params": params}, ids, method="encode_text"))
    ids = jnp.asarray([[1, 40, 2, 30, 30, 30, 30, 30]], jnp.int32)
    np.testing.assert_allclose(encode(ids), encode(ids.at[:, 3:].set(45)), atol=1e-6)


def test_quick_gelu_and_gelu_differ(model):
    """With the wrong activation the same weights give slightly different embeddings."""
    module, params = model
    exact = build(activation="gelu")
    quick, other = (apply(m, {"params": params}, inputs()[0], method="encode_image") for m in (module, exact))
    assert 1e-5 < np.abs(quick - other).max() < 0.3


def test_eps_reaches_the_towers(random_params):
    few, many = (build(eps=eps) for eps in (1e-5, 1e-1))
    params = random_params(few)
    (image, text, *_), (other_image, other_text, *_) = (apply(m, {"params": params}, *inputs()) for m in (few, many))
    assert np.abs(image - other_image).max() > 1e-3 and np.abs(text - other_text).max() > 1e-3


def split(mesh_sizes, **changes):
    """Axis names, and the number of shards of each axis, by the path of a parameter."""
    mesh = sharding.make_mesh(mesh_sizes)
    boxed = jax.eval_shape(build(**changes).init, jax.random.key(0), *inputs())["params"]
    with_names = sharding.logical_axes(boxed)
    num_shards = {}
    leaves = jax.tree_util.tree_leaves_with_path(sharding.shardings(boxed, mesh))
    plain = jax.tree_util.tree_leaves_with_path(sharding.unbox(boxed))
    shapes = {sharding.path_name(path): leaf.shape for path, leaf in plain}
    for path, leaf in leaves:
        name = sharding.path_name(path)
        shard = leaf.shard_shape(shapes[name])
        num_shards[name] = tuple(n // s for n, s in zip(shapes[name], shard, strict=True))
    return with_names, num_shards


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_every_parameter_of_the_towers_names_its_axes(scan, stem):
    names, _ = split({"data": 8, "fsdp": 1, "tensor": 1}, compute={"scan": scan}, image=SMALL["image"] | {"stem": stem})
    unnamed = [path for path, axes in names.items() if axes and None in axes]
    assert unnamed == []
    assert len(names) > 30


@pytest.mark.parametrize("scan", [True, False])
def test_tensor_and_fsdp_really_split_the_kernels(scan):
    _, num_shards = split({"data": 1, "fsdp": 4, "tensor": 2}, compute={"scan": scan})
    blocks, lead = ("blocks", (1,)) if scan else ("block_1", ())
    for tower in ("vision", "text"):
        block = f"{tower}/transformer/{blocks}"
        assert num_shards[f"{block}/attention/qkv/kernel"] == (*lead, 4, 1, 2, 1)
        assert num_shards[f"{block}/attention/qkv/bias"] == (*lead, 1, 2, 1)
        assert num_shards[f"{block}/attention/out/kernel"] == (*lead, 2, 1, 4)
        assert num_shards[f"{block}/mlp_in/kernel"] == (*lead, 4, 2)
        assert num_shards[f"{block}/mlp_out/kernel"] == (*lead, 2, 4)
    assert num_shards["text/tokens"] == (2, 4)
    assert num_shards["vision/stem/kernel"] == (1, 1, 1, 4)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"activation": "relu"}, "activation = 'relu'.*quick_gelu"),
        ({"loss": "triplet"}, "loss = 'triplet'.*softmax, sigmoid"),
        ({"image": {"stem": "pool"}}, "stem = 'pool'"),
        ({"image": {"pool": "max"}}, "pool = 'max'"),
        ({"image": {"heads": 3}}, "heads = 3 does not divide width = 16"),
        ({"text": {"heads": 5}}, "heads = 5 does not divide width = 16"),
        ({"image": {"patch": 5}}, "patch = 5 does not divide size = 16"),
        ({"image": {"size": 18, "patch": 6, "stem": "conv"}}, "patch = 6 must be a power of two"),
        ({"text": {"context_length": 2}}, "context_length = 2"),
        ({"image": {"size": 18, "stem": "conv", "drop_margin": True}}, "patch = 4 does not divide size = 18"),
        ({"image": {"pool": "map", "norm_after_pool": True}}, "norm_after_pool = True with pool = 'map'"),
        ({"image": {"pool": "query", "pool_heads": 5}}, "pool_heads = 5 does not divide 12, the width of the pool"),
        ({"image": {"rope_offset": 1.0}}, "rope_offset and rope_grid have no meaning"),
        ({"image": {"rope": "rows_first", "heads": 8}}, "makes heads of 2; rope needs a multiple of 4"),
        ({"image": {"proj": False, "proj_bias": True}}, "proj_bias and proj_hidden need config.model.image.proj"),
        ({"image": {"tower": "convnext", "size": 32, "layers": (1, 1)}}, "tower = 'convnext' has four stages"),
        ({"image": {"tower": "mci", "layers": (1, 1)}}, "tower = 'mci' has four or five stages"),
        ({"image": {"tower": "mci", "size": 96, "layers": (1,) * 5}}, "96 must be a multiple of 64 with the 5 stages"),
        ({"image": {"tower": "mci", "size": 32, "width": 12}}, "width = 12 must be a multiple of 8 with an mci"),
        ({"text": {"proj": False}}, "embed_dim = 12 must be text.width = 16"),
        ({"text": {"eps": -1.0}}, "eps = -1"),
        ({"image": {"stem": "mbconv", "patch": 8}}, "stem = 'mbconv' needs patch = 16"),
        ({"image": {"stem": "mbconv", "patch": 16, "stem_layers": (1,)}}, "needs patch = 16, .* two stem_layers"),
        ({"image": {"stem": "hmlp", "patch": 8}}, "stem = 'hmlp' needs patch = 16"),
        ({"text": {"pad_id": 1, "pool": "cls"}}, "pad_id = 1 must be -1 with config.model.text.pool = 'cls'"),
    ],
)
def test_values_that_are_not_allowed_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        build(**changes)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_convnext_trains_and_embeds_each_position(random_params, remat):
    """The mean features of positions are those of the image if nothing but the last norm stands between."""
    image = {"tower": "convnext", "size": 64, "width": 4, "layers": (1, 1, 2, 1)}
    module = build(image=image, compute={"dtype": "float32", "remat": remat})
    images, ids = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32), inputs()[1]
    params = random_params(module)
    assert module.apply({"params": params}, images, method="encode_patches").shape == (2, 4, 12)
    grads = jax.jit(jax.grad(lambda p: module.apply({"params": p}, images, ids)[0][:, 0].sum()))(params)["vision"]
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    flat = {"stem", "norm_stem", "stage1_0", "norm2", "downsample2", "stage2_0", "stage3_1", "norm_post", "proj"}
    assert flat < set(grads) and set(module.options.image.identity()) == {"tower", "size", "width", "layers"}


@pytest.mark.parametrize("size, width, layers", [(64, 8, (1, 1, 2, 1)), (128, 4, (1, 1, 1, 1, 1))])
def test_an_mci_trains_and_embeds_each_position(random_params, size, width, layers):
    image = {"tower": "mci", "size": size, "width": width, "layers": layers}
    module = build(image=image, compute={"dtype": "float32", "remat": "dots"})
    images, ids = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), jnp.float32), inputs()[1]
    params = random_params(module)
    assert module.apply({"params": params}, images, method="encode_patches").shape == (2, 4, 12)
    grads = jax.jit(jax.grad(lambda p: module.apply({"params": p}, images, ids)[0][:, 0].sum()))(params)["vision"]
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    assert set(module.options.image.identity()) == {"tower", "size", "width", "layers"}


def test_every_part_of_a_vitamin_is_trained(random_params):
    image = {"size": 32, "patch": 16, "stem": "mbconv", "stem_channels": 8, "stem_layers": (1, 2), "pool": "mean"}
    module = build(image=SMALL["image"] | image | {"gated": True, "branch_norms": "double", "learned_positions": False})
    images, ids = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32), inputs()[1]
    params = random_params(module)
    assert "positions" not in params["vision"] and {"stage1_0", "stage2_1"} < set(params["vision"]["stem"])
    grads = jax.jit(jax.grad(lambda p: module.apply({"params": p}, images, ids)[0][:, 0].sum()))(params)["vision"]
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_the_stem_hmlp_trains_with_the_statistics_of_the_batch():
    """Against the stem in NumPy: windows that do not overlap are matrix products."""
    module = build(image=SMALL["image"] | {"size": 32, "patch": 16, "stem": "hmlp", "width": 16}, activation="gelu")
    images, ids = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32), inputs()[1]
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), images, ids))
    options = {"method": lambda m, x: m.vision(x, False), "rngs": {"dropout": jax.random.key(1)}}
    options |= {"mutable": ["batch_stats", "intermediates"], "capture_intermediates": lambda m, _: m.name == "stem"}
    _, updated = module.apply(variables, images, **options)
    stem, statistics, x = variables["params"]["vision"]["stem"], updated["batch_stats"]["vision"]["stem"], np.asarray(images)

    def convolve(x, kernel):
        window, (n, h, w, c) = kernel.shape[0], x.shape
        x = x.reshape(n, h // window, window, w // window, window, c).swapaxes(2, 3)
        return x.reshape(n, h // window, w // window, -1) @ np.asarray(kernel).reshape(-1, kernel.shape[-1])

    for index in (1, 2):
        x = convolve(x, stem[f"conv{index}"]["kernel"])
        mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        np.testing.assert_allclose(statistics[f"norm{index}"]["mean"], 0.1 * mean, atol=1e-5)
        np.testing.assert_allclose(statistics[f"norm{index}"]["var"], 0.9 + 0.1 * var, atol=1e-5)
        x = np.asarray(jax.nn.gelu((x - mean) / np.sqrt(var + 1e-5), approximate=False))
    expected = convolve(x, stem["proj"]["kernel"]) + np.asarray(stem["proj"]["bias"])
    np.testing.assert_allclose(updated["intermediates"]["vision"]["stem"]["__call__"][0], expected, atol=1e-4)


def test_padding_that_is_not_attended_to_does_not_matter(random_params):
    """A tower as BERT's, whose mean leaves padding out; with pad_id -1 it counts."""
    ids = jnp.asarray([[5, 6, 7, 0, 0, 0, 0, 0]])
    text = {"context_length": 8, "causal": False, "pool": "mean", "branch_norms": "post", "proj_hidden": 10}
    for pad_id, is_same in ((0, True), (-1, False)):
        module = build(text=SMALL["text"] | text | {"pad_id": pad_id})
        params = random_params(module)
        assert "norm_pre" in params["text"] and "norm_post" not in params["text"]
        short, long = (module.apply({"params": params}, x, method="encode_text") for x in (ids[:, :5], ids))
        assert np.allclose(short, long, atol=1e-6) == is_same


def test_options_that_are_not_set_leave_fingerprints_as_they_were():
    """Indexes and results are found by them."""
    identity = build().options.identity()
    assert set(identity["image"]) == {
        "tower", "size", "patch", "width", "depth", "heads", "mlp_ratio", "stem", "stem_bias", "pool", "pre_norm", "proj"
    }  # fmt: skip
    assert set(identity["text"]) == {
        "context_length", "vocab_size", "width", "depth", "heads", "mlp_ratio", "causal", "pool", "proj_bias"
    }  # fmt: skip
    assert build(image=SMALL["image"] | {"class_token": True}).options.identity()["image"]["class_token"]


def encode(module, params, method, x, **options):
    return np.asarray(apply(module, {"params": params}, x, method=method, **options))


def test_the_text_tower_may_have_its_own_activation_and_eps(random_params):
    mixed = build(activation="gelu", eps=1e-5, text=SMALL["text"] | {"activation": "quick_gelu", "eps": 1e-2})
    params, (images, ids) = random_params(mixed), inputs()
    for method, x, activation, eps in (
        ("encode_image", images, "gelu", 1e-5),
        ("encode_text", ids, "quick_gelu", 1e-2),
    ):
        alone = build(activation=activation, eps=eps)
        np.testing.assert_array_equal(encode(mixed, params, method, x), encode(alone, params, method, x))


def test_pixels_beyond_the_last_patch_are_dropped(random_params):
    ragged, whole = build(image=SMALL["image"] | {"size": 18, "drop_margin": True}), build()
    images = jnp.pad(inputs()[0], ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=9.0)
    params = random_params(whole)
    expected = encode(whole, params, "encode_image", images[:, :16, :16])
    np.testing.assert_allclose(encode(ragged, params, "encode_image", images), expected, atol=1e-6)


def captured(module, params, method, x, name):
    """The features, and the output of the module of this name in the tower."""
    _, state = module.apply(
        {"params": params}, x, method=method, capture_intermediates=lambda m, _: m.name == name, mutable=["intermediates"]
    )
    (tower,) = state["intermediates"].values()
    return np.asarray(tower[name]["__call__"][0], np.float64)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def layer_norm(x, norm):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]


def test_the_mean_may_leave_out_a_class_token_and_precede_the_norm(random_params):
    image = SMALL["image"] | {"pool": "mean", "class_token": True, "norm_after_pool": True, "proj_bias": True}
    module = build(image=image)
    params, images = random_params(module), inputs()[0]
    tower = jax.tree.map(np.asarray, params["vision"])
    assert tower["positions"].shape == (17, 16) and tower["cls"].shape == (16,)
    tokens = captured(module, params, "encode_image", images, "transformer")
    pooled = layer_norm(tokens[:, 1:].mean(1), tower["norm_post"])
    expected = unit(pooled @ tower["proj"]["kernel"] + tower["proj"]["bias"])
    np.testing.assert_allclose(encode(module, params, "encode_image", images), expected, atol=1e-6)
    patches = encode(module, params, "encode_patches", images)
    assert patches.shape == (2, 16, 12)


@pytest.mark.parametrize("rope", ["none", "rows_first"])
def test_a_register_is_a_class_token_without_position_that_is_not_pooled(random_params, rope):
    image = SMALL["image"] | {"pool": "mean", "rope": rope, "qk_norm": True}
    module, twin = build(image=image | {"registers": 1}), build(image=image | {"class_token": True})
    params, images = random_params(module), inputs()[0]
    vision = {name: x for name, x in params["vision"].items() if name != "registers"}
    vision |= {"cls": params["vision"]["registers"][0], "positions": jnp.pad(vision["positions"], ((1, 0), (0, 0)))}
    expected = encode(twin, params | {"vision": vision}, "encode_image", images)
    np.testing.assert_allclose(encode(module, params, "encode_image", images), expected, atol=1e-6)
    mapped = build(image=image | {"pool": "map", "registers": 2})  # attention pooling reads all other tokens
    params = random_params(mapped)
    assert encode(mapped, params, "encode_patches", images).shape == (2, 16, 12)
    grads = jax.jit(jax.grad(lambda p: mapped.apply({"params": p}, *inputs())[0][:, 0].sum()))(params)["vision"]
    assert np.abs(grads["registers"]).min() > 0


ROPE = SMALL["image"] | {"heads": 2, "pool": "mean", "class_token": True, "rope": "rows_first", "rope_grid": 3}


def test_rotary_positions_turn_patches_but_not_the_class_token(random_params, monkeypatch):
    """Without learned positions, exchanging two patches changes the features only with rope."""
    turned, plain = build(image=ROPE), build(image=ROPE | {"rope": "none", "rope_grid": 0})
    params, images = random_params(plain), inputs()[0]
    params["vision"]["positions"] = jnp.zeros_like(params["vision"]["positions"])
    exchanged = images.at[:, :4, :4].set(images[:, 4:8, 8:12]).at[:, 4:8, 8:12].set(images[:, :4, :4])
    for module, is_equal in ((plain, True), (turned, False)):
        difference = encode(module, params, "encode_image", images) - encode(module, params, "encode_image", exchanged)
        assert (np.abs(difference).max() < 1e-5) == is_equal
    monkeypatch.setattr("clip_jax.vision.grid_angles", lambda *_, **__: np.zeros((16, 4), np.float32))
    zero = encode(turned, params, "encode_image", images)  # an angle of 0, which is that of the class token
    np.testing.assert_allclose(zero, encode(plain, params, "encode_image", images), atol=1e-6)


def test_rotary_positions_follow_patches_that_are_kept(random_params, monkeypatch):
    """All patches "kept" in another order have the same mean."""
    module = build(image=ROPE).clone(patch_dropout=0.5)
    params, images = random_params(module), inputs()[0]
    order = np.stack([np.random.default_rng(seed).permutation(16) for seed in range(2)])
    monkeypatch.setattr("clip_jax.vision.sample_patches", lambda *_: jnp.asarray(order))
    rngs = {"dropout": jax.random.key(0)}
    shuffled = apply(module, {"params": params}, images, deterministic=False, method="encode_image", rngs=rngs)
    np.testing.assert_allclose(shuffled, encode(module, params, "encode_image", images), atol=1e-5)


def test_cocas_pool_is_one_query_and_no_mlp(random_params):
    module = build(image=SMALL["image"] | {"pool": "query", "pool_heads": 3, "class_token": True})
    params, images = random_params(module), inputs()[0]
    tower = jax.tree.map(np.asarray, params["vision"])
    head = tower["head"]
    tokens = layer_norm(captured(module, params, "encode_image", images, "transformer"), head["norm"])
    query, attention = layer_norm(head["query"], head["norm_query"])[0], head["attention"]

    def project(x, name):
        return np.einsum("...w,wnh->...nh", x, attention[name]["kernel"]) + attention[name]["bias"]

    scores = np.einsum("nh,bsnh->bns", project(query, "q"), project(tokens, "k")) / 2  # heads of 4
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    y = np.einsum("bns,bsnh,nhe->be", weights, project(tokens, "v"), attention["out"]["kernel"]) + attention["out"]["bias"]
    expected = unit(layer_norm(y, tower["norm_post"]) @ tower["proj"]["kernel"])
    np.testing.assert_allclose(encode(module, params, "encode_image", images), expected, atol=1e-5)


def test_cocas_class_token_of_a_text_reads_one_padding(random_params):
    """As open_clip's: what may be attended to is shifted by one token."""
    module = build(text=SMALL["text"] | {"pool": "cls"})
    params, ids = random_params(module), inputs()[1].at[:, 6:].set(0)  # five tokens, the end at 5, two paddings
    assert params["text"]["positions"].shape == (LENGTH + 1, 16)
    features = encode(module, params, "encode_text", ids)
    table = params["text"]["positions"]
    for position, is_read in ((0, True), (5, True), (6, True), (7, False), (8, True)):
        changed = params | {"text": params["text"] | {"positions": table.at[position, 0].add(1.0)}}
        assert (np.abs(encode(module, changed, "encode_text", ids) - features).max() > 1e-6) == is_read, position


def test_a_text_tower_without_projection(random_params):
    module = build(embed_dim=16, text=SMALL["text"] | {"proj": False})
    params, ids = random_params(module), inputs()[1]
    assert "proj" not in params["text"]
    tokens = captured(module, params, "encode_text", ids, "transformer")
    expected = unit(layer_norm(tokens[:, 5], jax.tree.map(np.asarray, params["text"]["norm_post"])))
    np.testing.assert_allclose(encode(module, params, "encode_text", ids), expected, atol=1e-6)


def test_a_dict_from_json_builds_the_same_module():
    assert model_lib.build(options().to_dict(), VOCAB, EOS) == build()
    assert hash(build()) == hash(build()), "verbs of a loaded model compile once for equal modules"


@pytest.mark.parametrize("pool, scan", [("mean", True), ("map", False)])
def test_the_embedding_of_a_single_patch_is_that_of_the_image(random_variables, pool, scan):
    clip, variables, images = _small(random_variables, {"size": 8, "patch": 8, "pool": pool}, scan)
    embeddings = apply(clip, variables, images, method="encode_image")
    patches = apply(clip, variables, images, method="encode_patches")
    np.testing.assert_allclose(patches[:, 0], embeddings, atol=1e-6)


@pytest.mark.parametrize("pool, depth", [("cls", 1), ("mean", 1), ("map", 1), ("mean", 2)])
def test_in_the_last_block_a_patch_attends_only_to_itself(random_variables, pool, depth):
    """With one block, another patch changes nothing; with two it does."""
    clip, variables, images = _small(random_variables, {"size": 24, "patch": 8, "depth": depth, "pool": pool}, True)
    encode = jax.jit(lambda x: clip.apply(variables, x, method="encode_patches"))
    moved = np.abs(np.asarray(encode(images) - encode(images.at[:, :8, 8:16].add(1.0)))).max(axis=(0, 2)) > 1e-6
    assert moved[1] and moved.sum() == (1 if depth == 1 else 9)


def _small(random_variables, image: dict, scan: bool):
    options = model_lib.CLIPOptions.defaults()
    options.update({"embed_dim": 16})
    options.image.update({"width": 16, "depth": 2, "heads": 2, **image})
    options.text.update({"width": 16, "depth": 1, "heads": 2, "context_length": 8})
    clip = model_lib.build(options, 20, 19, CLIPCompute(scan=scan))
    images = jax.random.normal(jax.random.key(1), (2, options.image.size, options.image.size, 3))
    return clip, random_variables(clip.init, jax.random.key(0), images, jnp.full((2, 8), 19)), images
