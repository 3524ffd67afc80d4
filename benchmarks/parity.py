"""Compares outputs on this device in bfloat16 and float32 with those in float32 on the CPU: CLIP, VQGAN and DALL-E.

    python -m benchmarks.parity

Models of published widths with random weights: ViT-B/32's image tower, VQGAN f16 at 256 pixels, two blocks of the 1.3
billion DALL-E. The errors are relative: the largest difference over the largest value, and the L2 norm of the difference
over that of the value. A GPU computes float32 products in TF32, JAX's default.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import code_models, guided
from benchmarks.command import main
from benchmarks.results import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tiny", action="store_true", help="use toy models, to test the benchmark")
    parser.add_argument("--reference", metavar="FILE", help=argparse.SUPPRESS)  # computed and written by this process


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.reference:
        np.savez(arguments.reference, **compute_outputs("float32", arguments.tiny))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference.npz"
        command = [sys.executable, "-m", "benchmarks.parity", f"--reference={file}", *(["--tiny"] * arguments.tiny)]
        subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        reference = dict(np.load(file))
    for dtype in ("bfloat16", "float32"):
        for name, values in compute_outputs(dtype, arguments.tiny).items():
            expected, settings = reference[name], {"output": name, "dtype": dtype}
            difference = values - expected
            yield Row("largest error", float(np.abs(difference).max() / np.abs(expected).max()), "", settings)
            yield Row("L2 error", float(np.linalg.norm(difference) / np.linalg.norm(expected)), "", settings)


def compute_outputs(dtype: str, tiny: bool) -> dict[str, np.ndarray]:
    """Computes outputs of models of this dtype on the default device, as float32 arrays."""
    vq, clip = guided.build_models(dtype, tiny)
    rng, side = np.random.default_rng(0), 32 if tiny else 256
    images = rng.integers(0, 256, (2, clip.preprocess.size, clip.preprocess.size, 3), np.uint8)
    codes = rng.integers(0, vq.num_codes, (2, *[side // vq.factor] * 2), np.int32)
    module = code_models.build("1b3", dtype, tiny, depth=2)
    variables = {"params": code_models.random_params(module)}
    prompts = rng.integers(0, module.condition_size, (1, module.condition_length), np.int32)
    sampled = rng.integers(0, module.num_codes, (1, module.length), np.int32)
    text_logits, code_logits = jax.jit(module.apply)(variables, jnp.asarray(prompts), jnp.asarray(sampled))
    outputs = {
        "CLIP, image embeddings": clip.encode_image(images),
        "CLIP, text embeddings": clip.encode_text(guided.PROMPTS),
        "VQGAN, decoded images": vq.decode(codes),
        "DALL-E, logits of text": text_logits,
        "DALL-E, logits of codes": code_logits,
    }
    return {name: np.asarray(x, np.float32) for name, x in outputs.items()}


if __name__ == "__main__":
    main(rows, add_arguments)
