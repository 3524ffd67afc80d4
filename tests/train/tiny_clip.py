"""Config of a tiny CLIP whose data and tokenizer are not there."""

TOWER = {"width": 32, "depth": 1, "heads": 2}
CLIP = {
    "task": "clip_jax.task", "steps": 10, "data": {"source": "webdataset:not-there/*.tar", "batch_size": 32},
    "model": {"embed_dim": 16, "image": {"size": 16, "patch": 8, **TOWER}, "text": {"vocab_size": 640, **TOWER}},
    "tokenizer": {"path": "not-there"},
}  # fmt: skip
