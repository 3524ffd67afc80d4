"""Preparation of embedded TFDS data sets, once for all processes."""

import fcntl
import logging
from pathlib import Path

from train_jax import paths

log = logging.getLogger(__name__)


def prepare_builder(builder_class, config: str | None, data_dir: str | None):
    """Returns a TFDS builder after preparing its files if necessary. Safe for concurrent processes.

    Raises ValueError for an unknown config of the builder.
    """
    configs = list(builder_class.builder_configs)
    if config is not None and config not in configs:
        allowed = f"choose one of {', '.join(configs)}" if configs else "this set has no variants"
        raise ValueError(f"there is no {config!r}: {allowed}")
    builder = builder_class(config=config, data_dir=data_dir)
    if builder.is_prepared():
        return builder
    root = paths.path(builder._data_dir_root)
    lock = (root if isinstance(root, Path) else paths.cache()) / f".{builder.name}-{config or 'default'}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # TFDS reads its folder before the atomic rename
        builder = builder_class(config=config, data_dir=data_dir)
        if not builder.is_prepared():
            log.info("preparing the data set %s (once)", builder.info.full_name)
            builder.download_and_prepare(file_format="array_record")
    return builder_class(config=config, data_dir=data_dir)
