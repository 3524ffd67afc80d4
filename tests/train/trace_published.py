"""Traces the loss and gradient of published configs on many fake devices, nothing compiled: `trace_published.py FOLDER`.

Prints one JSON object: config -> devices -> "" or what was refused.
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
CODES = {"dalle/mindalle_1b3": (16_384, 4), "dalle/dalle1_12b": (8192, 3)}  # and halvings of 256 pixels


def vqgan(folder: Path, codes: int, halvings: int) -> str:
    """A VQGAN of zeros with so many codes."""
    options = vqgan_model.defaults()
    options.update({"channels": 8, "multipliers": (1,) * (halvings + 1), "blocks": 1, "attention": (), "groups": 4})
    options.update({"resolution": 256, "z_channels": 4})
    options.quantizer.update({"type": "nearest", "size": codes, "dim": 4})
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_variables(vqgan_model.build(options)))
    vqgan_jax.save(vqgan_jax.Vqgan.assemble(options, variables, "zeros"), folder / f"{codes}.safetensors")
    return str(folder / f"{codes}.safetensors")


def prepared(name: str, folder: Path):
    """`(config, task, one example's arrays)`."""
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
    return config, task, task.example(record, np.random.default_rng(0))


def trace(config, task, example, mesh) -> None:
    size = config.data.batch_size
    sharding.check_batch(mesh, size, config.accumulate)
    batch = {name: jax.ShapeDtypeStruct((size, *np.shape(x)), np.asarray(x).dtype) for name, x in example.items()}
    with jax.set_mesh(mesh):
        boxed, extra = jax.eval_shape(task.init, jax.random.key(0), batch)
        sharding.shardings(boxed, mesh)
        params, extra = sharding.unbox((boxed, extra))
        optim.make(config.optim, params, config.steps, sharding.logical_axes(boxed))
        gradient = sharding.with_rules(jax.value_and_grad(task.loss, has_aux=True))
        jax.eval_shape(gradient, params, extra, batch, jax.random.key(0), jax.ShapeDtypeStruct((), jnp.int32))


def main(folder: Path) -> None:
    answers = {}
    for name in CONFIGS:
        config, task, example = prepared(name, folder)
        answers[name] = {}
        for count in COUNTS:
            try:
                trace(config, task, example, sharding.make_mesh(config.mesh, jax.devices()[:count]))
                answers[name][count] = ""
            except ValueError as error:
                answers[name][count] = f"{type(error).__name__}: {error}"
    print(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
