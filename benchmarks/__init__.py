"""Benchmarks of speed, memory and design choices. `make bench` runs every module of this package."""

from train_jax.config_file import load as load_config

__all__ = ["load_config"]
