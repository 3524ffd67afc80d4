"""Config file of a sweep's tests: the toy task, a run of a second."""

from drive_toy import config


def get_config():
    c = config(steps=20, log_every=5, checkpoint={"every": 10})
    c.optim.max_skipped = 3
    c.optim.warmup_steps = 1
    return c
