"""Trains one family after the other on two hosts whose devices lie as in a TPU slice, for test_two_hosts.py.

python drive_families.py CONFIGS COORDINATOR INDEX

CONFIGS holds a Python literal: [(config as a dict, run directory), …].
"""

import ast
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np


def like_a_tpu(shape, devices):
    """The devices of two hosts as two TPU hosts of 2 x 2 chips side by side: rows of chips run over both."""
    return np.asarray(devices).reshape(2, 2, 2).transpose(1, 0, 2).reshape(shape)


if __name__ == "__main__":
    configs, coordinator, index = sys.argv[1:]
    from ml_collections import ConfigDict

    import train_jax
    from train_jax import distributed, sharding

    distributed.initialize(coordinator, 2, int(index))
    assert jax.process_count() == 2
    with mock.patch.object(sharding, "_laid_out", like_a_tpu):
        for config, workdir in ast.literal_eval(Path(configs).read_text()):
            train_jax.run(ConfigDict(config), workdir)
