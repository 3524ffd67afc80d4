"""Cache of compiled programs on disk, so that a resumed run need not compile its step again."""

import logging

import jax
from jax.experimental.compilation_cache import compilation_cache

from train_jax import paths
from train_jax.paths import AnyPath

log = logging.getLogger(__name__)


def enable(platform: str, folder: AnyPath | None = None) -> None:
    """Caches the programs for an accelerator in the user's cache folder, unless JAX has been told of a folder or of none.

    Programs for a CPU are machine code of its model, which another machine with the same home directory may not run: they
    are cached only where the user names a folder. On several hosts with GPUs, whose compilers measure kernels together,
    no host may skip the compilation: there, too, the user must name a folder that all hosts share.

    Args:
      platform: platform of the devices, such as "gpu" or "tpu".
      folder: folder of this machine to use on one host, also for a CPU, instead of the user's cache folder.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    if folder is None:
        if platform == "cpu" or (platform == "gpu" and jax.process_count() > 1):
            return
        folder = paths.cache() / "compiled"
    compilation_cache.reset_cache()  # an earlier compilation has found that there is none
    compilation_cache.set_cache_dir(str(folder))
    log.info("compiled programs are cached in %s; JAX_COMPILATION_CACHE_DIR names another folder", folder)
