"""Runs the toy task in a process of its own, for tests that kill it or that start several.

python drive_toy.py WORKDIR '{"steps": 100}' [COORDINATOR PROCESSES INDEX]
"""

import json
import logging
import os
import sys

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


if __name__ == "__main__":
    workdir, changes, *job = sys.argv[1:]
    from train_jax import distributed

    if job:
        distributed.initialize(job[0], int(job[1]), int(job[2]))
    import train_jax
    from train_jax.errors import Stopped

    try:
        train_jax.run(config(**json.loads(changes)), workdir)
    except Stopped as stopped:
        print(stopped)
        sys.exit(stopped.exit_code)
