"""Models of the Hugging Face Hub, `hf:org/name[/folder or file][@revision]`, downloaded and cached by huggingface_hub.

Short names such as `clip:vit-b-32-openai` stand for such addresses (`train_jax.weights.known_models`).
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from train_jax import paths
from train_jax.errors import LoadError
from train_jax.weights import known_models

PREFIX = "hf:"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".msgpack")
_OF_RUNS = "artifacts.json"  # a file of run directories alone
_SETTINGS = (".json", ".yaml", ".yml", ".txt", ".model")  # suffixes of files that tell how to read a weight file beside them


def is_name(path: str | Path) -> bool:
    """Returns whether `path` is a repository of the hub, or the short name of one, instead of a local path."""
    return str(path).startswith(PREFIX) or known_models.is_name(path)


def resolve(path: str | Path, files: Sequence[str], fallback: Sequence[str] = ()) -> paths.AnyPath:
    """Returns the path of a model, after downloading it to the hub's cache if necessary.

    Args:
      path: `hf:org/name`, a folder or a weight file in it such as `hf:org/name/vqvae` or `hf:org/name/model.pt`, each with
        `@revision` if it is not the newest; or a short name. Other values are paths, as in `train_jax.paths.weights`.
      files: patterns of the files to download, such as "*.json" and "*.safetensors".
      fallback: patterns of weights in older formats, downloaded only if `files` matched no safetensors. Repositories often
        hold the same weights in several formats.

    A repository that holds a run directory (`train_jax.upload`) is downloaded whole.

    Raises LoadError for a malformed or unknown name or a failed download; the message explains a manual download.
    """
    if not is_name(path):
        return paths.weights(path)
    import huggingface_hub

    name, _, revision = known_models.find_address(path).removeprefix(PREFIX).partition("@")
    organisation, *rest = name.split("/")
    if not rest or not all((organisation, *rest)) or ".." in rest:
        raise LoadError(
            f"{path!r}: write hf:organisation/name, such as hf:openai/clip-vit-base-patch32, or hf:organisation/name/folder"
        )
    repository, inside = f"{organisation}/{rest[0]}", PurePosixPath(*rest[1:])
    is_file = inside.suffix in _WEIGHTS
    if is_file:
        files, fallback = (inside.name, *(x for x in files if x.endswith(_SETTINGS))), ()

    def snapshot(patterns: Sequence[str]) -> Path:
        patterns = [str((inside.parent if is_file else inside) / pattern) for pattern in patterns]
        root = huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
        return Path(root) / inside

    try:
        directory = snapshot([*files, _OF_RUNS] if not is_file else files)
        if (directory / _OF_RUNS).is_file() and not is_file:
            return snapshot(["*"])
        if fallback and not any(directory.rglob("*.safetensors")):
            directory = snapshot([*files, *fallback])
        return directory
    except Exception as error:  # error classes differ between versions of huggingface_hub
        reason = (str(error).splitlines() or [""])[0]
        raise LoadError(
            f"{path} could not be downloaded ({type(error).__name__}: {reason}). Without a network, copy "
            f"{', '.join([*files, *fallback])} of https://huggingface.co/{name} into a folder, and name that instead"
        ) from error
