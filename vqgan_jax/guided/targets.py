"""Targets for CLIP: unit vectors, weights and stops of a prompt's parts; and the linear head of an aesthetic score."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from clip_jax.clip import Clip
from train_jax.data.errors import BrokenSample
from train_jax.data.files import read_arrays
from train_jax.errors import ConfigError
from vqgan_jax.guided.prompts import Scene


def clip_tuple(clip: Clip | Sequence[Clip]) -> tuple[Clip, ...]:
    """One CLIP or several as a tuple. ConfigError for none, TypeError for what is no CLIP."""
    clips = (clip,) if isinstance(clip, Clip) else tuple(clip)
    if not clips:
        raise ConfigError("at least one CLIP must guide")
    for item in clips:
        if not isinstance(item, Clip):
            raise TypeError(f"clip = {item!r}: it must be a CLIP, or several; clip_jax.load opens them")
    return clips


def resolve_clip_weights(weights, count: int) -> Float32[np.ndarray, "c"]:
    """Checks the weights of the CLIPs. None: all alike, with sum 1. ConfigError for weights that cannot be."""
    if weights is None:
        return np.full(count, 1 / count, np.float32)
    is_list = isinstance(weights, list | tuple | np.ndarray) and np.ndim(weights) == 1
    if not is_list or not all(isinstance(w, int | float | np.number) and not isinstance(w, bool) for w in weights):
        raise ConfigError(f"clip_weights = {weights!r}; it must be a list of numbers, one a CLIP")
    if len(weights) != count:
        raise ConfigError(f"clip_weights = {list(weights)}: {count} CLIP(s) guide, so give {count} number(s)")
    if not np.all(np.isfinite(weights)) or not np.any(np.asarray(weights) != 0):
        raise ConfigError(f"clip_weights = {list(weights)}: they must be finite, and not all 0")
    return np.asarray(weights, np.float32)


def prompt_targets(
    clips: Sequence[Clip], scenes: Sequence[Scene]
) -> tuple[tuple[Float32[np.ndarray, "n p _"], ...], Float32[np.ndarray, "n p"], Float32[np.ndarray, "n p"]]:
    """For each CLIP the vectors of all scenes' parts; the parts' weights and stops. Scenes are padded by weights 0."""
    max_parts = max(map(len, scenes))
    weights = np.zeros((len(scenes), max_parts), np.float32)
    stops = np.full((len(scenes), max_parts), -np.inf, np.float32)
    for i, scene in enumerate(scenes):
        weights[i, : len(scene)] = [part.weight for part in scene]
        stops[i, : len(scene)] = [part.stop for part in scene]
    unique = list(dict.fromkeys((part.kind, part.content) for scene in scenes for part in scene))
    targets = []
    for clip in clips:
        vectors = dict(zip(unique, embed_parts(clip, unique), strict=True))
        rows = np.zeros((len(scenes), max_parts, len(next(iter(vectors.values())))), np.float32)
        for i, scene in enumerate(scenes):
            rows[i, : len(scene)] = [vectors[part.kind, part.content] for part in scene]
        targets.append(rows)
    return tuple(targets), weights, stops


def embed_parts(clip: Clip, parts: Sequence[tuple[str, str]]) -> Float32[np.ndarray, "n d"]:
    """Unit vectors of a prompt's parts.

    Args:
      parts: `(kind, content)`: texts, paths of pictures, seeds of noise.

    Raises BrokenSample that names a bad picture.
    """
    texts = [content for kind, content in parts if kind == "text"]
    files = [content for kind, content in parts if kind == "image"]
    rows: dict[tuple[str, str], np.ndarray] = {}
    if texts:
        rows |= {("text", text): row for text, row in zip(texts, clip.encode_text(texts), strict=True)}
    if files:
        try:
            rows |= {("image", file): row for file, row in zip(files, clip.encode_image(files), strict=True)}
        except BrokenSample as error:
            raise BrokenSample(f"image={error}") from error
    width = clip.encode_text([]).shape[1]
    for kind, content in parts:
        if kind == "noise":
            row = np.random.default_rng(int(content)).standard_normal(width).astype(np.float32)
            rows[kind, content] = row / np.linalg.norm(row)
    return np.stack([rows[part] for part in parts])


def aesthetic_head(path: str, clip: Clip) -> Float32[np.ndarray, "d1"]:
    """Weights and bias of an aesthetic head, [d + 1]. ConfigError for the head of another CLIP."""
    width = clip.encode_text([]).shape[1]
    try:
        weight, bias = (x.astype(np.float32) for x in read_arrays(path, ("weight", "bias")).values())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"aesthetic = {path}: it must be an .npz with weight [d] and bias [] ({error})") from error
    if weight.shape != (width,) or bias.shape != ():
        raise ConfigError(
            f"aesthetic = {path}: weight {list(weight.shape)} and bias {list(bias.shape)}; the first CLIP, {clip.name}, "
            f"needs weight [{width}] and bias []"
        )
    return np.append(weight, bias)
