"""Programs of a second stage for `train-jax plan --what=sample`: the prefill of conditions, and the scans over codes."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from nn_jax.attention import KVCache
from nn_jax.code_transformer import UNROLLED, CodeTransformer
from nn_jax.decoding import Sampling
from train_jax import task as task_lib
from train_jax.compute import TransformerCompute
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.plan.program import Program, check_rows, place, rounded, trace_program
from vqgan_jax.stage2 import model, sampling


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
    """Options `--sample.…`."""

    images: int = option(64, "images of a batch, over all devices", least=1)
    conditions: int = option(1, "different conditions in a batch, which share its images evenly", least=1)
    guided: bool = option(True, "classifier-free guidance, which doubles the sequences")
    filtered: bool = option(True, "top_k or top_p")


OPTIONS = SamplingOptions


def make(config: ConfigDict, folder: Path, mesh: Mesh, options: SamplingOptions) -> list[Program]:
    """Traces prefill and sampling of a batch of images; see `train_jax.task`."""
    check_rows(mesh, "sample.images", options.images)
    if options.images % options.conditions:
        raise ConfigError(f"--sample.images={options.images} must be a multiple of --sample.conditions={options.conditions}")
    vq, model_options, condition = task_lib.module(config).open_parts(config, folder)
    if options.guided and not (condition.droppable and condition.vocabulary_size != 1):
        raise ConfigError("--sample.guided=True: this model is trained without guidance; set --sample.guided=false")
    grid = ((config.vqgan.size or vq.size) // vq.factor,) * 2
    compute = TransformerCompute.parse(config.compute, "compute")
    module = model.build(model_options, condition, vq.num_codes, grid, compute)
    module = module.clone(blocks={**module.blocks, **UNROLLED})
    programs = sampling.compile_programs(module)
    weights, rows, length = place(abstract_weights(module), mesh, P()), options.images, module.length

    def abstract(*shape: int, dtype: Any = jnp.int32, replicated: bool = False):
        return place(jax.ShapeDtypeStruct(shape, dtype), mesh, P() if replicated else P("batch"))

    row = module.condition.row
    tokens = abstract(options.conditions + options.guided, *row.shape, dtype=row.dtype, replicated=True)
    known = abstract(tokens.shape[0], 0, replicated=True)
    prefill = trace_program(
        "prefill", programs.prefill, mesh, {"weights": weights, "conditions": tokens, "known codes": known},
        unit="conditions", units=tokens.shape[0], passes=1,
    )  # fmt: skip
    indices, device = abstract(rows), abstract(mesh.size)
    group = sampling.group_size(options.conditions, rows // options.conditions, rows, rows // mesh.size)
    with jax.set_mesh(mesh):
        prefilled = jax.eval_shape(programs.prefill, weights, tokens, known)
        unconditional = (indices, device) if options.guided else None
        prefixes, (logits, caches) = jax.eval_shape(
            programs.assign, prefilled, indices, abstract(rows // group), unconditional
        )
    settings = Sampling(*[jax.ShapeDtypeStruct((), dtype) for dtype in (np.float32, np.int32, np.float32, np.float32)])
    static = {"filtered": options.filtered, "guided": options.guided}

    def trace_segment(start: int, end: int) -> Program:
        count = end - start
        room = [jax.eval_shape(functools.partial(KVCache.grow, length=end), cache) for cache in caches]
        requests = sampling.Requests(
            abstract(rows, 3, dtype=jnp.uint32), np.arange(start, end, dtype=np.int32), abstract(rows, count),
            abstract(rows, count, dtype=bool),
        )  # fmt: skip
        arguments = {
            "weights": weights,
            "settings": settings,
            "prefixes": place(prefixes, mesh, P("batch")),
            "caches and logits": place((logits, room), mesh, P("batch")),
            "requests": requests,
            "start": jax.ShapeDtypeStruct((), jnp.int32),
        }
        name = f"decode codes {start} to {end - 1}"
        decode = programs.decode_chunk
        return trace_program(name, decode, mesh, arguments, static, unit="codes", units=rows * count, passes=count)

    return [prefill, *itertools.starmap(trace_segment, sampling.segments(length))]


def abstract_weights(module: CodeTransformer) -> Any:
    """Returns the shapes and dtypes of the weights for inference."""

    def init(key):
        row, codes = module.condition.row, jnp.zeros((1, module.length), jnp.int32)
        return nn.unbox(module.init(key, jnp.zeros((1, *row.shape), row.dtype), codes)["params"])

    return rounded(jax.eval_shape(init, jax.random.key(0)), module.dtype)
