"""Programs of CLIP for `train-jax plan --what=encode`: images and texts to embeddings."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from clip_jax import flops, model
from clip_jax.clip import compile_programs
from clip_jax.example import make_preprocess
from clip_jax.options import CLIPCompute
from clip_jax.pretrained.checkpoint import abstract_variables
from train_jax.options import Options, option
from train_jax.plan.program import Program, check_rows, place, rounded, trace_program


@dataclasses.dataclass(frozen=True)
class EncodingOptions(Options):
    """Options `--encode.…`."""

    images: int = option(64, "images of a batch, over all devices", least=1)
    texts: int = option(256, "texts of a batch, over all devices", least=1)


OPTIONS = EncodingOptions


def make(config: ConfigDict, folder: Path, mesh: Mesh, options: EncodingOptions) -> list[Program]:
    """Traces the encoders of images and of texts; see `train_jax.task`."""
    check_rows(mesh, "encode.images", options.images)
    check_rows(mesh, "encode.texts", options.texts)
    module = build_module(config)
    preprocess, length = make_preprocess(config.model, config.preprocess), module.options.text.context_length
    programs = compile_programs(module, preprocess)
    weights = place(rounded(abstract_variables(module), module.compute.array_dtype), mesh, P())
    image_flops, text_flops = flops.forward_flops(module.options, preprocess.max_patches)
    images = jax.ShapeDtypeStruct((options.images, *preprocess.shape), jnp.uint8)
    texts = jax.ShapeDtypeStruct((options.texts, length), jnp.int32)
    return [
        trace_program(
            name, function, mesh, {"weights": weights, "batch": place(batch, mesh, P("batch"))},
            unit=unit, units=batch.shape[0], flops=float(batch.shape[0] * count), passes=1,
        )
        for name, function, batch, unit, count in (
            ("encode_image", programs.encode_image, images, "images", image_flops),
            ("encode_text", programs.encode_text, texts, "texts", text_flops),
        )
    ]  # fmt: skip


def build_module(config: ConfigDict) -> model.CLIP:
    """Builds the module of a resolved config without its tokenizer: any token ends a text."""
    vocab_size = config.model.text.vocab_size or config.tokenizer.vocab_size
    return model.build(config.model, vocab_size, 0, CLIPCompute.parse(config.compute, "compute"))
