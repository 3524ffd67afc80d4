"""Export of the towers of a CLIP as StableHLO programs, which run without this repository and without Flax.

    clip-jax export runs/clip-shapes --out=exported

    program = jax.export.deserialize(bytearray(Path("exported/image_tower.jax_export").read_bytes()))
    program.call(images)                # uint8 [n, size, size, 3] -> float32 [n, dim] of unit norm
    program.mlir_module_serialized      # portable StableHLO bytecode, for other compilers
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from clip_jax.clip import Clip

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".jax_export"


def export_towers(clip: Clip, directory: str | Path, platforms: Sequence[str] = PLATFORMS) -> list[Path]:
    """Writes the towers as programs with their weights inside, for any batch size. Returns their files.

    `image_tower.jax_export` maps uint8 [n, size, size, 3], preprocessed squares (of native aspect ratio: what
    `Preprocess.pack` makes), and `text_tower.jax_export` int32 [n, length], token ids, to float32 [n, dim] of unit norm.
    `preprocess.json` and `tokenizer.json` tell how to get there.

    Args:
      directory: new or empty folder.
      platforms: platforms to compile for, of PLATFORMS.

    Raises ValueError for an unknown platform, FileExistsError if the folder is not empty, ImportError without flatbuffers.
    """
    if unknown := set(platforms) - set(PLATFORMS):
        raise ValueError(f"platforms {sorted(unknown)} are unknown; there are {', '.join(PLATFORMS)}")
    if importlib.util.find_spec("flatbuffers") is None:  # JAX would say so only after the export
        raise ImportError("the package flatbuffers writes programs: pip install 'multimodal-jax[export]'")
    directory = Path(directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds files already; name a new directory")
    module, variables, preprocess = clip.module, clip.variables, clip.preprocess

    def image_tower(images):
        return module.apply(variables, preprocess.normalize(images), method="encode_image")

    def text_tower(ids):
        return module.apply(variables, ids, method="encode_text")

    (count,) = export.symbolic_shape("n")
    inputs = {
        image_tower: jax.ShapeDtypeStruct((count, *preprocess.shape), jnp.uint8),
        text_tower: jax.ShapeDtypeStruct((count, clip.tokenizer.context_length), jnp.int32),
    }
    programs = {f.__name__: export.export(jax.jit(f), platforms=platforms)(x).serialize() for f, x in inputs.items()}
    directory.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (directory / f"{name}{SUFFIX}").write_bytes(program)
    (directory / "preprocess.json").write_text(preprocess.to_json())
    (directory / "tokenizer.json").write_text(clip.tokenizer.to_json())
    return [directory / f"{name}{SUFFIX}" for name in programs]
