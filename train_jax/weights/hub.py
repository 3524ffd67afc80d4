"""Models of the Hugging Face Hub, `hf:org/name`, downloaded and cached by huggingface_hub."""

from collections.abc import Sequence
from pathlib import Path

from train_jax import paths
from train_jax.errors import LoadError

PREFIX = "hf:"


def is_name(path: str | Path) -> bool:
    """Returns whether `path` is a repository of the hub instead of a local path."""
    return str(path).startswith(PREFIX)


def resolve(path: str | Path, files: Sequence[str], fallback: Sequence[str] = ()) -> paths.AnyPath:
    """Returns the path of a model, after downloading it to the hub's cache if necessary.

    Args:
      path: `hf:org/name` or `hf:org/name@revision`; other values are paths, as in `train_jax.paths.weights`.
      files: patterns of the files to download, such as "*.json" and "*.safetensors".
      fallback: patterns of weights in older formats, downloaded only if `files` matched no safetensors. Repositories often
        hold the same weights in several formats.

    Raises LoadError for a malformed name or a failed download; the message explains a manual download.
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
    except Exception as error:  # error classes differ between versions of huggingface_hub
        reason = (str(error).splitlines() or [""])[0]
        raise LoadError(
            f"{path} could not be downloaded ({type(error).__name__}: {reason}). Without a network, copy "
            f"{', '.join([*files, *fallback])} of https://huggingface.co/{repository} into a folder, and name that folder "
            "instead"
        ) from error
