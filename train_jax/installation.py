"""Check of what is installed: another project's distribution has the import name `clip_jax`, too."""

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

from train_jax.errors import UserError

_OTHER = "clip-jax"  # of other authors, on the package index


@functools.cache
def check_import_name() -> None:
    """Raises UserError if the folder of the `clip_jax` that Python imports has files of the distribution `clip-jax`.

    One look-up of metadata, at the first use in a process.
    """
    try:
        other = importlib.metadata.distribution(_OTHER)
    except importlib.metadata.PackageNotFoundError:
        return
    spec = importlib.util.find_spec("clip_jax")
    folders = [Path(folder).resolve() for folder in spec.submodule_search_locations] if spec else []
    if Path(other.locate_file("clip_jax")).resolve() in folders:
        raise UserError(
            f"{folders[0]} has files of {_OTHER} {other.version}, a project of other authors with the import name clip_jax: "
            f"pip uninstall {_OTHER}, then install this project again (pip install --force-reinstall --no-deps …)"
        )
