"""A host with eight H100 of 80 GB: bfloat16, a replica of the parameters on each, 16 processes that decode."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    c.compute = ConfigDict({"dtype": "bfloat16", "scan": True, "remat": "dots"})
    c.data = ConfigDict({"workers": 16})
    return c
