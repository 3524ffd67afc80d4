"""Machine preset for a host with eight H100 80 GB: bfloat16, data parallelism, 32 worker processes of four threads."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    c.compute = ConfigDict({"dtype": "bfloat16", "scan": True, "remat": "dots"})
    c.data = ConfigDict({"workers": 32, "threads": 4})
    return c
