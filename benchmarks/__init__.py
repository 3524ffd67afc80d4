"""Benchmarks of speed, memory and design choices. Each module is one, and a command: `python -m benchmarks.MODULE --help`.

A benchmark is a function `rows(arguments)` that yields `benchmarks.results.Row`s. `benchmarks.command.main` prints each and
stores it in `benchmarks/results/DEVICE.json` at once. `make bench` runs all that need no trained model, and
`python -m benchmarks.report` makes the tables of docs/benchmarks.md of the files of all devices.
"""

from train_jax.config_file import load as load_config

__all__ = ["load_config"]
