"""`hf:org/name`: a model directory that huggingface_hub brings, or has brought before."""

from pathlib import Path

from train_jax.errors import LoadError

PREFIX = "hf:"
# One kind of weights is enough; of the others a repository often holds a copy.
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_OLD_FILES = ("pytorch_model*.bin", "open_clip_pytorch_model.bin")


def fetch(name: str) -> Path:
    """The directory of `hf:org/name` or `hf:org/name@revision`, in the hub's own cache.

    Raises LoadError that says what to download and where to put it, if the hub cannot be reached.
    """
    import huggingface_hub

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise LoadError(f"{name!r}: write hf:organisation/name, such as hf:openai/clip-vit-base-patch32")

    def snapshot(patterns: tuple[str, ...]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns))
        )

    try:
        found = snapshot(_FILES)
        return found if any(found.glob("*.safetensors")) else snapshot(_FILES + _OLD_FILES)
    except Exception as error:  # offline, not there, no access: the hub's errors share no class over its versions
        reason = (str(error).splitlines() or [""])[0]
        raise LoadError(
            f"{name} could not be brought ({type(error).__name__}: {reason}). Without a network, copy {', '.join(_FILES)} "
            f"of https://huggingface.co/{repository} into a folder, and give that folder instead"
        ) from error
