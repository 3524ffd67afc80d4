"""Sweeps: many runs of one config, one after the other, beside each other, or together in one program."""

from train_jax.sweep.sweep import Sweep, run

__all__ = ["Sweep", "run"]
