"""Models on the Hugging Face Hub, `hf:org/name`, as local directories that huggingface_hub downloads or has cached."""

from collections.abc import Sequence
from pathlib import Path

from train_jax import paths
from train_jax.errors import LoadError

PREFIX = "hf:"


def is_name(path: str | Path) -> bool:
    """Whether `path` names a repository of the hub rather than a local path."""
    return str(path).startswith(PREFIX)


def resolve(path: str | Path, files: Sequence[str], fallback: Sequence[str] = ()) -> paths.AnyPath:
    """Returns the local path of a model: for `hf:org/name` or `hf:org/name@revision` the directory in the hub's cache.

    Args:
      path: such a name; anything else is a path, as in `train_jax.paths.weights`.
      files: patterns of the files to bring, such as "*.json" and "*.safetensors".
      fallback: patterns of weights in older formats, brought only where `files` brought no safetensors: a repository often
        holds the same weights in several formats.

    Raises LoadError for a malformed name, and one that says what to download and where to put it if the hub cannot be
    reached or refuses.
    """
    if not is_name(path):
        return paths.weights(path)
    import huggingface_hub

    repository, _, revision = str(path).removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise LoadError(f"{path!r}: write hf:organisation/name, such as hf:openai/clip-vit-base-patch32")

    def snapshot(patterns: Sequence[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns))
        )

    try:
        directory = snapshot(files)
        if fallback and not any(directory.rglob("*.safetensors")):
            directory = snapshot([*files, *fallback])
        return directory
    except Exception as error:  # offline, not there, no access: the hub's errors share no class over its versions
        reason = (str(error).splitlines() or [""])[0]
        raise LoadError(
            f"{path} could not be brought ({type(error).__name__}: {reason}). Without a network, copy "
            f"{', '.join([*files, *fallback])} of https://huggingface.co/{repository} into a folder, and name that folder "
            "instead"
        ) from error
