"""What a prompt's parts are to CLIP: unit vectors, with weights and stops; and the linear head of an aesthetic score."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from clip_jax.clip import Clip
from train_jax.data.errors import BrokenSample
from train_jax.data.files import read_arrays
from train_jax.errors import ConfigError
from vqgan_jax.guided.prompts import Scene


def several(clip: Clip | Sequence[Clip]) -> tuple[Clip, ...]:
    """One or several as several. ConfigError for none, TypeError for what is no CLIP."""
    clips = (clip,) if isinstance(clip, Clip) else tuple(clip)
    if not clips:
        raise ConfigError("at least one CLIP must guide")
    for found in clips:
        if not isinstance(found, Clip):
            raise TypeError(f"clip = {found!r}: it must be a CLIP, or several; clip_jax.load opens them")
    return clips


def shares(weights, count: int) -> Float32[np.ndarray, "c"]:
    """The weights of the CLIPs; by default all alike, their sum 1."""
    if weights is None:
        return np.full(count, 1 / count, np.float32)
    listed = isinstance(weights, list | tuple | np.ndarray) and np.ndim(weights) == 1
    if not listed or not all(isinstance(w, int | float | np.number) and not isinstance(w, bool) for w in weights):
        raise ConfigError(f"clip_weights = {weights!r}; it must be a list of numbers, one a CLIP")
    if len(weights) != count:
        raise ConfigError(f"clip_weights = {list(weights)}: {count} CLIP(s) guide, so give {count} number(s)")
    if not np.all(np.isfinite(weights)) or not np.any(np.asarray(weights) != 0):
        raise ConfigError(f"clip_weights = {list(weights)}: they must be finite, and not all 0")
    return np.asarray(weights, np.float32)


def stacked(
    clips: Sequence[Clip], scenes: Sequence[Scene]
) -> tuple[tuple[Float32[np.ndarray, "n p _"], ...], Float32[np.ndarray, "n p"], Float32[np.ndarray, "n p"]]:
    """Of each CLIP the vectors of all scenes' parts, and the parts' weights and stops; scenes with fewer have weights 0."""
    most = max(map(len, scenes))
    weights = np.zeros((len(scenes), most), np.float32)
    stops = np.full((len(scenes), most), -np.inf, np.float32)
    for number, scene in enumerate(scenes):
        weights[number, : len(scene)] = [part.weight for part in scene]
        stops[number, : len(scene)] = [part.stop for part in scene]
    unique = list(dict.fromkeys((part.kind, part.what) for scene in scenes for part in scene))
    found = []
    for clip in clips:
        vectors = dict(zip(unique, embedded(clip, unique), strict=True))
        rows = np.zeros((len(scenes), most, len(next(iter(vectors.values())))), np.float32)
        for number, scene in enumerate(scenes):
            rows[number, : len(scene)] = [vectors[part.kind, part.what] for part in scene]
        found.append(rows)
    return tuple(found), weights, stops


def embedded(clip: Clip, parts: Sequence[tuple[str, str]]) -> Float32[np.ndarray, "n d"]:
    """Unit vectors of texts, pictures (by path) and seeds of noise, as `(kind, what)`. BrokenSample names a bad picture."""
    texts = [what for kind, what in parts if kind == "text"]
    files = [what for kind, what in parts if kind == "image"]
    rows: dict[tuple[str, str], np.ndarray] = {}
    if texts:
        rows |= {("text", what): row for what, row in zip(texts, clip.encode_text(texts), strict=True)}
    if files:
        try:
            rows |= {("image", what): row for what, row in zip(files, clip.encode_image(files), strict=True)}
        except BrokenSample as error:
            raise BrokenSample(f"image={error}") from error
    width = clip.encode_text([]).shape[1]
    for kind, what in parts:
        if kind == "noise":
            row = np.random.default_rng(int(what)).standard_normal(width).astype(np.float32)
            rows[kind, what] = row / np.linalg.norm(row)
    return np.stack([rows[part] for part in parts])


def head(path: str | None, clip: Clip) -> Float32[np.ndarray, "d1"]:
    """Weights and bias of an aesthetic head, [d + 1]; zeros where there is none. ConfigError for one of another CLIP."""
    width = clip.encode_text([]).shape[1]
    if path is None:
        return np.zeros(width + 1, np.float32)
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
