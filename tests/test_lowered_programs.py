"""What programs for GPUs and TPUs contain and what they do not, read from their text; nothing runs."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from clip_jax import vision
from nn_jax import attention, transformer
from nn_jax.transformer import Transformer
from train_jax import sharding
from train_jax.plan import hlo, inference
from train_jax.plan.program import Program
from train_jax.plan.targets import Target

LENGTH, WIDTH, HEADS = 37, 128, 2
DALLE = {
    "task": "dalle_jax.task", "steps": 1, "data": {"source": "webdataset:not-there/*.tar", "batch_size": 8},
    "vqgan": {"path": "vqgan/digits"}, "tokenizer": {"vocab_size": 600}, "compute": {"dtype": "bfloat16"},
    "model": {"text_length": 6, "width": 48, "depth": 2, "heads": 3},
}  # fmt: skip


def lower(function, platform: str, *arguments) -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def for_cuda(monkeypatch):
    """Programs are traced as for a GPU, with the cuDNN of an H100's host."""
    for module in (attention, transformer):
        monkeypatch.setattr(module, "platform", lambda: "cuda")
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_attention_on_a_gpu_is_fused_in_16_bits_and_has_no_scores(for_cuda, dtype):
    """Causal, of odd length, forward and backward. In float32 there is no kernel, so that scores show."""
    module = Transformer(WIDTH, 2, HEADS, causal=True, dtype=jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct((4, LENGTH, WIDTH), jnp.float32)
    params = sharding.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    gradient = jax.grad(lambda params, x: jnp.sum(module.apply(params, x).astype(jnp.float32)))
    text = lower(gradient, "cuda", params, x)
    kernels = set(re.findall(r"__cudnn\$fmha\w+", text))
    scores = re.findall(rf"tensor<4x{HEADS}x(?:{LENGTH}x{LENGTH}|{LENGTH + 1}x{LENGTH + 1})xf32>", text)
    if dtype == "bfloat16":
        assert kernels == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} and not scores
    else:
        assert not kernels and scores


@pytest.fixture(scope="module")
def sampling() -> Program:
    """The sampling loop of a bfloat16 DALL-E on eight devices, with guidance and filters."""
    words = ["--sample.images=8"]
    return inference.trace_inference(ConfigDict(DALLE), Target.parse("fake:8"), "sample", words)[1]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_sampling_loop_reads_no_float32_kernels(sampling, platform):
    with jax.set_mesh(sampling.mesh):
        text = sampling.traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text
    params = sampling.traced.in_avals[0][0]
    kernels = {
        jax.tree_util.keystr(path): x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel"
    }
    assert len(kernels) >= 5 and all(x.dtype == jnp.bfloat16 for x in kernels.values())
    for name, x in kernels.items():
        assert f"tensor<{'x'.join(map(str, x.shape))}xf32>" not in text, name


def test_the_sampling_loop_exchanges_nothing(sampling):
    """Neither logits nor noise are gathered: each device samples its images."""
    with jax.set_mesh(sampling.mesh):
        compiled = sampling.traced.lower().compile()
    assert not hlo.collectives(hlo.parse(compiled.as_text()))


def test_noise_of_patch_dropout_is_not_gathered():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((16, 20, 8), jnp.float32, sharding=NamedSharding(mesh, P("batch")))
    with jax.set_mesh(mesh):
        patches = functools.partial(vision.sample_patches, (16, 20), 0.5, jax.random.key(0))
        compiled = jax.jit(lambda x: jnp.take_along_axis(x, patches()[:, :, None], axis=1)).lower(x).compile()
    assert not hlo.collectives(hlo.parse(compiled.as_text()))
