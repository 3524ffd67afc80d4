"""Sizes of goldens of CLIP whose files only name a tower: of open-clip-roberta, -vitamin and -mci."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from clip_jax.pretrained import bert, mci, timm


@contextlib.contextmanager
def tiny_towers() -> Iterator[None]:
    """Adds or replaces named towers by those that `tests/golden/make_clip.py` makes."""
    with (
        mock.patch.dict(bert.MODELS, {"tiny-roberta": (32, 2, 4, 48, 320)}),
        mock.patch.dict(timm.VITAMIN, {"small": (8, (1, 2), 32, 2, 4)}),
        mock.patch.dict(mci.MCI, {"mci1": (8, (1, 1, 2, 1))}),
    ):
        yield
