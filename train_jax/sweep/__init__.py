"""Sweeps: many runs of one config, one after the other, beside each other, or together in one program."""
