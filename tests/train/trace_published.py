"""Traces published configs on many fake devices, nothing compiled: `trace_published.py FOLDER`.

Mesh, batch, optimiser and the state's shardings for every number of devices; loss and gradient, which take seconds, where
their program depends on it. Prints one JSON object: config -> devices -> "" or what was refused.
"""

import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import vqgan_jax
from train_jax import config as config_lib
from train_jax import config_file, optim, sharding
from train_jax import task as task_lib
from vqgan_jax import model as vqgan_model
from vqgan_jax.pretrained.checkpoint import abstract_variables

COUNTS = (1, 8, 32, 128, 256)
TOKENIZERS = Path(__file__).resolve().parents[1] / "golden" / "clip"
CONFIGS = {
    **{f"clip/{name}": "hf-clip" for name in ("vit_b32", "vit_b16", "vit_l14", "rn50")},
    "clip/siglip_b16": "hf-siglip",
    **dict.fromkeys(("vqgan/f16_1024", "vqgan/f16_16384", "vqgan/f8_gumbel")),
    **dict.fromkeys(("dalle/mindalle_1b3", "dalle/dalle1_12b"), "hf-clip"),
}
# Rings and tiles of the losses depend on the number; of the others the largest is enough, of like programs one.
TRACED = dict.fromkeys(("clip/vit_b32", "clip/vit_l14", "clip/siglip_b16"), (1, 32, 256))
TRACED |= dict.fromkeys(("vqgan/f16_16384", "vqgan/f8_gumbel"), ())
CODES = {"dalle/mindalle_1b3": (16_384, 4), "dalle/dalle1_12b": (8192, 3)}  # and halvings of 256 pixels


def vqgan(folder: Path, codes: int, halvings: int) -> str:
    """A VQGAN of zeros with so many codes."""
    options = vqgan_model.VQGANOptions.defaults()
    options.update({"channels": 8, "multipliers": (1,) * (halvings + 1), "blocks": 1, "attention": (), "groups": 4})
    options.update({"resolution": 256, "z_channels": 4})
    options.quantizer.update({"type": "nearest", "size": codes, "dim": 4})
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_variables(vqgan_model.build(options)))
    vqgan_jax.save(vqgan_jax.Vqgan.assemble(options, variables, "zeros"), folder / f"{codes}.safetensors")
    return str(folder / f"{codes}.safetensors")


def prepared(name: str, folder: Path):
    """`(config, task, abstract batch, abstract parameters and state with their axes)`."""
    config = config_file.load(name)
    side = 0
    if CONFIGS[name]:
        config.tokenizer.path = str(TOKENIZERS / CONFIGS[name])
    if name in CODES:
        config.vqgan.path = vqgan(folder, *CODES[name])
        side = 256 >> CODES[name][1]
    if name.startswith("vqgan"):
        config.perceptual.type = "none"
    config = config_lib.resolve(config)
    task = task_lib.module(config).make(config, None)
    picture = io.BytesIO()
    Image.new("RGB", (300, 300)).save(picture, "PNG")
    record = {"image": picture.getvalue(), "captions": ["a"], "id": "0", "codes": np.zeros((1, side, side), np.int32)}
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
