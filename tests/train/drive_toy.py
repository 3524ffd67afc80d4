"""The toy task's config and metrics; as a script, a run in a process of its own, for tests that kill it.

python drive_toy.py WORKDIR '{"steps": 100}'
"""

import json
import logging
import os
import sys
from pathlib import Path

logging.basicConfig(level=logging.INFO)
sys.path.insert(0, os.path.dirname(__file__))


def config(**changes):
    from ml_collections import ConfigDict

    c = ConfigDict(
        {
            "task": "toy_task",
            "steps": 40,
            "log_every": 1,
            "data": {"source": "digits", "batch_size": 16},
            "optim": {"lr": 1e-2, "warmup_steps": 2, "players": {"discriminator": {"name": "sgd", "lr": 3e-2}}},
            "ema": {"decay": 0.9, "players": ("generator",)},
            "checkpoint": {"every": 10, "keep_last": 3},
            "evals": {"end": {"type": "norm", "every": 20}},
        }
    )
    c.update(ConfigDict(changes))
    return c


def metric_rows(workdir: Path) -> list[dict]:
    """The metric lines without what depends on the clock; an unfinished last line is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    clock = ("time", "steps_per", "examples_per", "mfu")
    return [{key: value for key, value in row.items() if not key.startswith(clock)} for row in rows]


if __name__ == "__main__":
    workdir, changes = sys.argv[1:]
    import train_jax
    from train_jax.errors import Stopped

    try:
        train_jax.run(config(**json.loads(changes)), workdir)
    except Stopped as stopped:
        print(stopped)
        sys.exit(stopped.exit_code)
