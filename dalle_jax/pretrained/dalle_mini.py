"""Rejection of dalle-mini and dalle-mega checkpoints, which are encoder-decoders (BART)."""

from pathlib import Path

from train_jax.errors import LoadError
from vqgan_jax.pretrained.checkpoint import read_config


def reject(path: Path) -> None:
    """Raises LoadError if a directory holds a dalle-mini or dalle-mega."""
    file = path / "config.json"
    if not file.is_file():
        return
    try:
        config = read_config(file)
    except LoadError:  # not a configuration of dalle-mini
        return
    if config.get("model_type") == "dallebart" or "DalleBart" in str(config.get("architectures")):
        raise LoadError(
            f"{path} is dalle-mini's encoder-decoder (BART), which is not supported: only models of one sequence of "
            "text and codes are. Its VQGAN opens with vqgan_jax.load"
        )
