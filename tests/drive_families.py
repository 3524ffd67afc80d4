"""Trains one family after the other on two hosts whose devices lie as in a TPU slice, for test_two_hosts.py.

python drive_families.py CONFIGS COORDINATOR INDEX

CONFIGS holds a Python literal: [(config as a dict, run directory), …].
"""

import ast
import sys
from pathlib import Path
from unittest import mock

import jax

sys.path.insert(0, str(Path(__file__).parent / "train"))

if __name__ == "__main__":
    configs, coordinator, index = sys.argv[1:]
    from drive_hosts import like_a_tpu
    from ml_collections import ConfigDict

    import train_jax
    from train_jax import distributed, sharding

    distributed.initialize(coordinator, 2, int(index))
    assert jax.process_count() == 2
    with mock.patch.object(sharding, "_arrange_devices", like_a_tpu):
        for config, workdir in ast.literal_eval(Path(configs).read_text()):
            train_jax.run(ConfigDict(config), workdir)
