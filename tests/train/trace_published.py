"""Traces published configs on many fake devices, nothing compiled: `trace_published.py FOLDER`.

Mesh, batch, optimiser and the state's shardings for every number of devices; loss and gradient, which take seconds, where
their program depends on it. Prints one JSON object: config -> devices -> "" or what was refused.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from train_jax import config as config_lib
from train_jax import config_file, optim, sharding
from train_jax import task as task_lib

COUNTS = (1, 8, 32, 128, 256)
CONFIGS = (
    *(f"clip/{name}" for name in ("vit_b32", "vit_b16", "vit_l14", "rn50", "siglip_b16")),
    *(f"vqgan/{name}" for name in ("f16_1024", "f16_16384", "f8_gumbel")),
    *(f"dalle/{name}" for name in ("mindalle_1b3", "dalle1_12b")),
    *(f"unclip/{name}" for name in ("karlo_prior", "karlo_decoder", "karlo_upsampler")),
)
# Rings and tiles of the losses depend on the number; of the others the largest is enough, of like programs one.
TRACED = dict.fromkeys(("clip/vit_b32", "clip/vit_l14", "clip/siglip_b16"), (1, 32, 256))
TRACED |= dict.fromkeys(("vqgan/f16_16384", "vqgan/f8_gumbel"), ())
FIRST_STAGES = {"dalle/mindalle_1b3": "vqgan/f16_16384", "dalle/dalle1_12b": "vqgan/f8_gumbel"}


def prepared(name: str, folder: Path):
    """`(config, task, abstract batch, abstract parameters and state with their axes)`."""
    config = config_file.load(name)
    if name in FIRST_STAGES:
        config.vqgan = {"path": FIRST_STAGES[name], "size": 256}
    if name.startswith("vqgan"):
        config.perceptual.type = "none"
    if "clip" in config:
        config.clip.path = "clip/vit_l14"
    module, folder = task_lib.module(config), folder / name
    folder.mkdir(parents=True)
    config, record = module.write_placeholders(config_lib.resolve(config), folder)
    task = module.make(config, folder)
    example = {name: np.asarray(x) for name, x in task.example(record, np.random.default_rng(0)).items()}
    batch = {name: jax.ShapeDtypeStruct((config.data.batch_size, *x.shape), x.dtype) for name, x in example.items()}
    return config, task, batch, jax.eval_shape(task.init, jax.random.key(0), batch)


def check(config, task, batch, boxed, mesh, traced: bool) -> None:
    sharding.check_batch(mesh, config.data.batch_size, config.accumulate)
    sharding.shardings(boxed, mesh)
    params, extra = sharding.unbox(boxed)
    optim.make(config.optim, params, config.steps, sharding.logical_axes(boxed[0]))
    if traced:
        gradient = sharding.with_rules(jax.value_and_grad(task.loss, has_aux=True))
        with jax.set_mesh(mesh):
            jax.eval_shape(gradient, params, extra, batch, jax.random.key(0), jax.ShapeDtypeStruct((), jnp.int32))


def main(folder: Path) -> None:
    answers = {}
    for name in CONFIGS:
        config, *parts = prepared(name, folder)
        answers[name] = {}
        for count in COUNTS:
            try:
                mesh = sharding.make_mesh(config.mesh, jax.devices()[:count])
                check(config, *parts, mesh, count in TRACED.get(name, COUNTS[-1:]))
                answers[name][count] = ""
            except ValueError as error:
                answers[name][count] = f"{type(error).__name__}: {error}"
    print(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
