"""Codes from a code transformer: of the size it was trained on, or of any larger one through a sliding window."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from nn_jax.decode import Sampling, decode
from vqgan_jax.prior.model import CodeTransformer, for_sampling


class Rows(NamedTuple):
    """What is asked for, one sequence a row.

    Attributes:
      seeds: uint32 [b, 2], (seed, number of the sequence): the noise depends on them alone.
      labels: below 0 for none.
      before: codes that come first, all given.
      kept: codes after those, given where `keep` is true.
    """

    seeds: Array
    labels: Int[Array, "b"]
    before: Int[Array, "b p"]
    kept: Int[Array, "b l"]
    keep: Bool[Array, "b l"]


def program(module: CodeTransformer) -> Callable:
    """`(params, sampling, rows, places, most, guided) -> int32 [b, p + l]`: codes, as `nn_jax.decode.decode` draws them."""

    def sample(params, sampling: Sampling, rows: Rows, places: Int[Array | np.ndarray, "l"], most: int, guided: bool):
        plain, params = for_sampling(module, params)
        variables = {"params": params}
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s[0]), s[1]))(rows.seeds)
        labels, before = rows.labels, rows.before
        if guided:
            labels = jnp.stack([labels, jnp.full_like(labels, -1)], axis=1).reshape(-1)
            before = jnp.repeat(before, 2, axis=0)
        logits, cache = plain.apply(variables, labels, before, method="begin")
        codes, _, _ = decode(
            lambda codes, index, cache: plain.apply(variables, codes, index, cache, method="step"),
            logits,
            cache,
            keys,
            sampling,
            places=places,
            most=most,
            guided=guided,
            kept=rows.kept,
            keep=rows.keep,
            first=before.shape[1],
        )
        return jnp.concatenate([rows.before, codes], axis=1)

    return sample


class Window(NamedTuple):
    """A part of a large image: its corner, how many of its codes are known from the start, and which others are."""

    top: int
    left: int
    before: int
    keep: Bool[np.ndarray, "l"]


def windows(size: tuple[int, int], window: tuple[int, int], stride: int) -> Iterator[Window]:
    """Windows over an image of `size` codes, in an order in which each knows what those above and left of it drew.

    The known part moves with the window, so a code sees what lies above and left of it, as far as the window reaches
    (arXiv 2012.09841, section 3.3 and figure 3).
    """
    known = np.zeros(size, bool)
    h, w = window
    for top in _offsets(size[0], h, stride):
        for left in _offsets(size[1], w, stride):
            here = known[top : top + h, left : left + w]
            rows = int(np.argmin(here.all(axis=1))) if not here.all() else h
            before = rows * w  # whole rows, so that there are few shapes to compile
            yield Window(top, left, before, here.reshape(-1)[before:].copy())
            here[:] = True


def _offsets(size: int, window: int, stride: int) -> list[int]:
    return [*range(0, size - window, stride), size - window]


def sample_windows(
    sample: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    count: int,
    size: tuple[int, int],
    window: tuple[int, int],
    stride: int,
    given: Int32[np.ndarray, "n H W"] | None = None,
    keep: Bool[np.ndarray, "H W"] | None = None,
) -> Int32[np.ndarray, "n H W"]:
    """Codes of `count` images of `size`, drawn window by window.

    Args:
      sample: `(before [n, p], kept [n, l], keep [n, l], places [l]) -> codes [n, p + l]`.
      stride: codes between two windows.
      given, keep: codes that are given, where `keep` is true.
    """
    codes = np.zeros((count, *size), np.int32) if given is None else np.array(given, np.int32)
    given_at = np.zeros(size, bool) if keep is None else keep
    numbers = np.arange(size[0] * size[1]).reshape(size)
    for top, left, before, known in windows(size, window, stride):
        part = np.s_[top : top + window[0], left : left + window[1]]
        here = codes[:, *part].reshape(count, -1)
        hold = known | given_at[part].reshape(-1)[before:]
        new = sample(
            here[:, :before],
            here[:, before:],
            np.broadcast_to(hold, (count, len(hold))),
            numbers[part].reshape(-1)[before:],
        )
        codes[:, *part] = new.reshape(count, *window)
    return codes
