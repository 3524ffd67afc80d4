"""Sizes of goldens of CLIP whose files only name a tower: of open-clip-roberta and open-clip-vitamin."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from clip_jax.pretrained import bert, timm


@contextlib.contextmanager
def tiny_towers() -> Iterator[None]:
    """Adds or replaces named towers by those that `tests/golden/make_clip.py` makes."""
    with (
        mock.patch.dict(bert.MODELS, {"tiny-roberta": (32, 2, 4, 48, 320)}),
        mock.patch.dict(timm.VITAMIN, {"small": (8, (1, 2), 32, 2, 4)}),
    ):
        yield
