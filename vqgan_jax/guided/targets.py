"""CLIP targets: embeddings, weights and stops of prompt parts, and the linear head of an aesthetic score."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from clip_jax.clip import Clip
from train_jax.data.errors import BrokenSample
from train_jax.data.files import read_arrays
from train_jax.errors import ConfigError
from vqgan_jax.guided import directions
from vqgan_jax.guided.prompts import Scene


def to_clip_tuple(clip: Clip | Sequence[Clip]) -> tuple[Clip, ...]:
    """Converts one or several CLIPs to a tuple. Raises ConfigError for none, TypeError for other types."""
    clips = (clip,) if isinstance(clip, Clip) else tuple(clip)
    if not clips:
        raise ConfigError("at least one CLIP is required")
    for item in clips:
        if not isinstance(item, Clip):
            raise TypeError(f"clip = {item!r}: it must be a CLIP, or a sequence of CLIPs, loaded by clip_jax.load")
    return clips


def resolve_clip_weights(weights, count: int) -> Float32[np.ndarray, "c"]:
    """Validates the weights of the CLIPs; None: equal weights of sum 1. Raises ConfigError for invalid weights."""
    if weights is None:
        return np.full(count, 1 / count, np.float32)
    is_list = isinstance(weights, list | tuple | np.ndarray) and np.ndim(weights) == 1
    if not is_list or not all(isinstance(w, int | float | np.number) and not isinstance(w, bool) for w in weights):
        raise ConfigError(f"clip_weights = {weights!r}; it must be a list of numbers, one per CLIP")
    if len(weights) != count:
        raise ConfigError(f"clip_weights = {list(weights)}: {count} CLIP(s) need {count} number(s)")
    if not np.all(np.isfinite(weights)) or not np.any(np.asarray(weights) != 0):
        raise ConfigError(f"clip_weights = {list(weights)}: they must be finite, and not all 0")
    return np.asarray(weights, np.float32)


def embed_scenes(
    clips: Sequence[Clip], scenes: Sequence[Scene]
) -> tuple[tuple[Float32[np.ndarray, "n p _"], ...], Float32[np.ndarray, "n p"], Float32[np.ndarray, "n p"]]:
    """Embeds the parts of all scenes by each CLIP.

    Returns the embeddings for each CLIP, and the weights and stops of the parts. Scenes are padded with weight 0.
    """
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
        target = np.zeros((len(scenes), max_parts, len(next(iter(vectors.values())))), np.float32)
        for i, scene in enumerate(scenes):
            target[i, : len(scene)] = [vectors[part.kind, part.content] for part in scene]
        targets.append(target)
    return tuple(targets), weights, stops


def embed_parts(clip: Clip, parts: Sequence[tuple[str, str]]) -> Float32[np.ndarray, "n d"]:
    """Embeds prompt parts as unit vectors.

    Args:
      parts: pairs `(kind, content)` of texts, image paths, noise seeds and paths of directions.

    Raises BrokenSample for an unreadable image, and ConfigError for a direction of another CLIP.
    """
    texts = [content for kind, content in parts if kind == "text"]
    files = [content for kind, content in parts if kind == "image"]
    vectors: dict[tuple[str, str], np.ndarray] = {}
    if texts:
        vectors |= {("text", text): vector for text, vector in zip(texts, clip.encode_text(texts), strict=True)}
    if files:
        try:
            vectors |= {("image", file): vector for file, vector in zip(files, clip.encode_image(files), strict=True)}
        except BrokenSample as error:
            raise BrokenSample(f"image={error}") from error
    width = clip.encode_text([]).shape[1]
    for kind, content in parts:
        if kind == "noise":
            vector = np.random.default_rng(int(content)).standard_normal(width).astype(np.float32)
            vectors[kind, content] = vector / np.linalg.norm(vector)
        elif kind == "direction":
            vectors[kind, content] = directions.load(content, clip)
    return np.stack([vectors[part] for part in parts])


def load_aesthetic_head(path: str, clip: Clip) -> Float32[np.ndarray, "d1"]:
    """Loads weight and bias of an aesthetic head, [d + 1]. Raises ConfigError if its width is not that of the CLIP."""
    width = clip.encode_text([]).shape[1]
    try:
        weight, bias = (x.astype(np.float32) for x in read_arrays(path, ("weight", "bias")).values())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"aesthetic = {path}: it must be an .npz with weight [d] and bias [] ({error})") from error
    if weight.shape != (width,) or bias.shape != ():
        raise ConfigError(
            f"aesthetic = {path}: weight {list(weight.shape)} and bias {list(bias.shape)}; the first CLIP, {clip.name}"
            f", needs weight [{width}] and bias []"
        )
    return np.append(weight, bias)
