"""Programs of VQGAN for `train-jax plan --what=encode`: images to codes, and codes to images."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from train_jax.compute import Compute
from train_jax.options import Options, option
from train_jax.plan.program import Program, check_rows, place, rounded, trace_program
from vqgan_jax import model
from vqgan_jax.pretrained.checkpoint import abstract_variables
from vqgan_jax.vqgan import compile_programs


@dataclasses.dataclass(frozen=True)
class EncodingOptions(Options):
    """Options `--encode.…`."""

    images: int = option(32, "images of a batch, over all devices", least=1)


OPTIONS = EncodingOptions


def make(config: ConfigDict, folder: Path, mesh: Mesh, options: EncodingOptions) -> list[Program]:
    """Traces the encoder to codes and the decoder to pixels; see `train_jax.task`."""
    check_rows(mesh, "encode.images", options.images)
    compute = dataclasses.replace(Compute.parse(config.compute, "compute"), remat="none")
    module = model.build(config.model, compute)
    size, side = config.model.resolution, config.model.resolution // module.factor
    programs = compile_programs(module)
    weights = place(rounded(abstract_variables(module), compute.array_dtype), mesh, P())
    images = jax.ShapeDtypeStruct((options.images, size, size, 3), jnp.uint8)
    codes = jax.ShapeDtypeStruct((options.images, side, side), jnp.int32)
    return [
        trace_program(
            name, function, mesh, {"weights": weights, "batch": place(batch, mesh, P("batch"))},
            unit="images", units=options.images, passes=1,
        )
        for name, function, batch in (("encode", programs.encode, images), ("decode", programs.decode_uint8, codes))
    ]  # fmt: skip
