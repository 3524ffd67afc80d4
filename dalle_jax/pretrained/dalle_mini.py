"""dalle-mini and dalle-mega: encoder-decoders (BART), which read a prompt in another way than one stream does."""

from pathlib import Path

from train_jax.errors import LoadError
from vqgan_jax.pretrained.checkpoint import read_config


def refuse(path: Path) -> None:
    """Raises LoadError that says so, where a folder holds one."""
    file = path / "config.json"
    if not file.is_file():
        return
    try:
        config = read_config(file)
    except LoadError:  # whatever it is, it is none of dalle-mini's
        return
    if config.get("model_type") == "dallebart" or "DalleBart" in str(config.get("architectures")):
        raise LoadError(
            f"{path} is dalle-mini's encoder-decoder (BART), which is not built here: only models of one stream of text and "
            "codes are. Its VQGAN opens with vqgan_jax.load"
        )
