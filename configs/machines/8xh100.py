"""Machine preset for a host with eight H100 80 GB: bfloat16, data parallelism, 32 worker processes of four threads.

Workers use up to 8 MiB of shared memory each for images of 224 pixels: in Docker, `--shm-size=1g`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    c.compute = ConfigDict({"dtype": "bfloat16", "scan": True, "remat": "dots"})
    c.data = ConfigDict({"workers": 32, "threads": 4})
    return c
