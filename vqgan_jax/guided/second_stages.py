"""Second stages beside a painting, as its prior or for its start: what opens, what they read of a prompt, what they draw."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from train_jax import paths, run_directory
from train_jax import task as task_lib
from train_jax.errors import ConfigError, LoadError
from vqgan_jax.guided.options import Options
from vqgan_jax.guided.prompts import Scene
from vqgan_jax.stage2.condition import Condition
from vqgan_jax.stage2.generator import CodeGenerator


def load(path: str, name: str, dtype: str) -> CodeGenerator:
    """Loads the run directory of a prior or of a DALL-E, with its VQGAN.

    Args:
      name: name of the option, for messages.

    Raises ConfigError for another directory.
    """
    try:
        config = run_directory.read_config(paths.path(path))
        module = None if config is None else task_lib.module(ConfigDict({"task": config["task"]}))
        if not hasattr(module, "open_weights"):
            raise ConfigError(f"{name} = {path}: it must be the run directory of a prior or of a DALL-E")
        return module.open_weights(path).load(CodeGenerator, dtype)
    except LoadError as error:
        raise ConfigError(f"{name} = {path}: {error}") from error


def read_texts(condition: Condition, scenes: Sequence[Scene], name: str) -> list[str]:
    """Returns the first text of positive weight of each prompt.

    Args:
      condition: condition of the second stage that reads them.
      name: the option and its value, for messages.

    Raises ConfigError for a second stage that has no texts, and for a prompt without such a text.
    """
    if condition.kind != "text":
        raise ConfigError(f"{name}: the condition is a {condition.kind}; it must be a DALL-E")
    texts = [[part.content for part in scene if part.kind == "text" and part.weight > 0] for scene in scenes]
    if not all(texts):
        raise ConfigError(f"{name}: each prompt must have a text of positive weight, which the DALL-E reads")
    return [first for first, *_ in texts]


def draw_starts(
    options: Options, clip: "clip_jax.Clip", scenes: Sequence[Scene], seeds: Sequence[int]
) -> UInt8[np.ndarray, "n H W 3"]:
    """Draws the initial image of each scene by the DALL-E of `options.start`, at its own size.

    It depends on the first text of the scene and on its seed; of several drawings, the one most similar to the text by
    `clip` is returned.
    """
    path, drawn = options.start.init_dalle, options.drawn_start
    generator = load(path, "init_dalle", clip.dtype)
    texts = read_texts(generator.condition, scenes, f"init_dalle = {path}")
    settings = {"temperature": drawn.init_temperature, "guidance": drawn.init_guidance}
    if drawn.init_best > 1:
        settings |= {"rerank": clip, "best": 1}
    first = np.zeros(len(texts), int)  # else a repeated text would have the drawings after those before
    try:
        drawing = generator.draw(texts, drawn.init_best, seed=list(seeds), first=first, progress=False, **settings)
    except ValueError as error:
        raise ConfigError(f"init_dalle = {path}: {error}") from error
    return drawing.images[:, 0]
