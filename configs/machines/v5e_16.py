"""A slice of 16 TPU v5e of 16 GB, four hosts: bfloat16, parameters and moments split over all chips, blocks made again."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.compute = ConfigDict({"dtype": "bfloat16", "scan": True, "remat": "full"})
    c.data = ConfigDict({"workers": 16})
    return c
