"""Speed and memory, measured side by side in one run; and what a choice is worth. `make bench` runs every module here."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def load_config(name: str) -> ConfigDict:
    """The config in `configs/<name>.py`."""
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
