"""Machine preset for a slice of 16 TPU v5e 16 GB, four hosts: bfloat16, FSDP over all chips, full rematerialisation."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.compute = ConfigDict({"dtype": "bfloat16", "scan": True, "remat": "full"})
    c.data = ConfigDict({"workers": 16, "threads": 4})
    return c
