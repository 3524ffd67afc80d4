"""Speed and memory, measured side by side in one run; and what a choice is worth. `make bench` runs every module here."""

from train_jax.config_file import load as load_config

__all__ = ["load_config"]
