"""Preparation of TFDS data sets, once for all processes."""

import fcntl
import logging
from collections.abc import Callable
from pathlib import Path

from train_jax import paths

log = logging.getLogger(__name__)


def prepare_builder(make_builder: Callable):
    """Returns the TFDS builder of `make_builder()` after preparing its files if necessary. Safe for concurrent processes."""
    builder = make_builder()
    if builder.is_prepared():
        return builder
    root = paths.path(builder._data_dir_root)
    config = builder.builder_config.name.replace("/", " ") if builder.builder_config else "default"
    lock = (root if isinstance(root, Path) else paths.cache()) / f".{builder.name}-{config}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # TFDS reads its folder before the atomic rename
        builder = make_builder()
        if not builder.is_prepared():
            log.info("preparing the data set %s (once)", builder.info.full_name)
            # Only ArrayRecord files can be read without TensorFlow.
            builder.download_and_prepare(file_format="array_record")
    return make_builder()
