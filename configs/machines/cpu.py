"""Machine preset for a CPU: float32, and unrolled blocks, which run faster on a CPU."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    c.compute = ConfigDict({"dtype": "float32", "scan": False, "remat": "none"})
    c.data = ConfigDict({"workers": 0, "threads": 2})
    return c
