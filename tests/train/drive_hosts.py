"""Scenarios of two hosts of four devices, for test_hosts.py: many short runs of the toy in one pair of processes.

python drive_hosts.py FOLDER COORDINATOR INDEX SCENARIO…

Writes FOLDER/INDEX.json: scenario -> results on this process. Each scenario trains in FOLDER/<scenario>. The last of all,
in which nothing can be agreed any more, ends the processes.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import jax
import numpy as np

sys.path.insert(0, os.path.dirname(__file__))

SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def run(workdir, **changes):
    """Runs the toy; returns error, steps of checkpoints, and number of meetings of the hosts."""
    from drive_toy import config

    import train_jax
    from train_jax import agreement

    meetings = []
    meet = agreement._meet

    def counted(*args):
        meetings.append(args)
        return meet(*args)

    changes = {"steps": 20, "mesh": {"data": 4, "fsdp": 2}, "evals": {}, "checkpoint": {"every": 1000}} | changes
    error = None
    c = config()
    c.evals = {}
    c.update(changes)
    try:
        with mock.patch.object(agreement, "_meet", counted):
            train_jax.run(c, workdir)
    except Exception as e:
        error = f"{type(e).__name__}: {e}"
    saved = [int(p.name) for p in (Path(workdir) / "checkpoints").glob("*") if p.name.isdigit()]
    return {"error": error, "saved": sorted(saved), "meetings": len(meetings)}


def on_host(index, target, name, replacement):
    """Replaces an attribute on one host."""
    return mock.patch.object(target, name, replacement if jax.process_index() == index else getattr(target, name))


ORDER = {"order": {"type": "order", "every": 10}}


@scenario
def tpu_order(workdir):
    return run(workdir, evals=ORDER | {"end": {"type": "norm", "every": 10}})


@scenario
def tensor_over_hosts(workdir):
    return run(workdir, evals=ORDER | {"end": {"type": "norm", "every": 10}}, mesh={"data": 1, "fsdp": 1, "tensor": 8})


@scenario
def unreadable_on_one_host(workdir):
    import toy_task

    from train_jax.data.errors import BrokenSample

    made = []

    def example(record, rng):
        made.append(record["id"])
        if len(made) > 100:
            raise BrokenSample("gone")
        return toy_task.TASK.example(record, rng)

    with on_host(1, toy_task, "example", example):
        return run(workdir, steps=400)


@scenario
def too_many_broken(workdir):
    import toy_task

    from train_jax.data.errors import BrokenSample

    def example(record, rng):
        # Known by content, which both hosts see alike; each host's own share differs from that of all.
        if sum(record["image"]) % 4 == 0:
            raise BrokenSample("spoilt")
        return toy_task.TASK.example(record, rng)

    with mock.patch.object(toy_task, "example", example):
        return run(workdir, steps=400, data={"max_broken": 0.05})


@scenario
def broken_in_an_evaluation(workdir):
    import toy_task

    from train_jax.data.errors import BrokenSample

    def example(record, rng):
        raise BrokenSample("gone")

    with on_host(1, toy_task, "evaluated_example", example):
        return run(workdir, evals=ORDER)


@scenario
def an_evaluator_fails(workdir):
    import toy_task

    with on_host(1, toy_task, "norm_of", mock.Mock(side_effect=OSError("the labels are gone"))):
        return run(workdir, evals={"end": {"type": "norm", "every": 10}})


@scenario
def a_full_disk(workdir):
    from train_jax import metrics

    write = metrics.Writer.write

    def full(self, step, values):
        if step == 7:
            raise OSError("no space left")
        write(self, step, values)

    with on_host(0, metrics.Writer, "write", full):
        return run(workdir)


@scenario
def one_host_cannot_read(workdir):
    from train_jax.checkpoint import Checkpoints

    first = run(workdir, checkpoint={"every": 10, "keep_last": 5})
    load, tries = Checkpoints._load, []

    def failing(self, step, *arguments):
        tries.append(step)
        if len(tries) == 1:
            raise OSError("stale file handle")
        return load(self, step, *arguments)

    with on_host(1, Checkpoints, "_load", failing):
        second = run(workdir, steps=20, checkpoint={"every": 10, "keep_last": 5})
    return {"first": first, "second": second, "aside": (Path(workdir) / "checkpoints" / "damaged-20").is_dir()}


@scenario
def one_host_is_asked_to_stop(workdir):
    from train_jax import metrics

    write = metrics.Writer.write

    def ask(self, step, values):
        write(self, step, values)
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with on_host(1, metrics.Writer, "write", ask):
        first = run(workdir)
    return {"first": first, "second": run(workdir)}


@scenario
def no_shared_directory(workdir):
    from train_jax import ownership

    with mock.patch.object(ownership, "_SILENCE", 1.0):
        return run(Path(workdir) / str(jax.process_index()))


@scenario
def wrong_on_one_host(workdir):
    return run(workdir, data={"source": "no-such-set" if jax.process_index() else "digits"})


@scenario
def meetings(workdir):
    """How often hosts meet in a short and in a longer run without logs, evaluations and checkpoints."""
    from jax.experimental import multihost_utils

    def never(*args, **kwargs):
        raise AssertionError("hosts wait for the devices")

    with mock.patch.object(multihost_utils, "process_allgather", never):
        return [run(Path(workdir) / str(n), steps=n, log_every=1000)["meetings"] for n in (5, 45)]


@scenario
def unreachable_peer(workdir):
    """Host 1 fails where host 0 waits for it in a program: nothing can be agreed."""
    import toy_task
    from jax.experimental import multihost_utils

    from train_jax import agreement

    def waits_for_both(params):
        multihost_utils.sync_global_devices("never reached")

    agreement.PATIENCE = 3.0
    with (
        on_host(1, toy_task, "norm_of", mock.Mock(side_effect=OSError("the labels are gone"))),
        on_host(0, toy_task, "norm_of", waits_for_both),
    ):
        run(workdir, evals={"end": {"type": "norm", "every": 10}})
    sys.exit("the other host answered")


def traced_once():
    """Runs of the same step trace, lower and compile it once: most of a short run's time."""
    from train_jax import prepare

    trace_step, traced = prepare.trace_step, {}

    def trace_once(config, task, mesh, batch, notice):
        key = config.steps, str(dict(mesh.shape)), config.optim.to_json(), config.ema.to_json(), str(batch)
        if key not in traced:
            traced[key] = trace_step(config, task, mesh, batch, notice)
        return traced[key]

    return mock.patch.object(prepare, "trace_step", trace_once)


def like_a_tpu(shape, devices):
    """The devices of two hosts as two TPU hosts of 2 x 2 chips side by side: rows of chips run over both."""
    chips = np.asarray(devices).reshape(2, 2, 2).transpose(1, 0, 2)
    return chips.reshape(shape)


if __name__ == "__main__":
    folder, coordinator, index, *names = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    jax.distributed.initialize(coordinator, 2, int(index), heartbeat_timeout_seconds=10)
    from train_jax import sharding

    results, start = {}, time.monotonic()
    with mock.patch.object(sharding, "_arrange_devices", like_a_tpu), traced_once():
        for name in names:
            print(f"===== {name} ({time.monotonic() - start:.1f} s)", flush=True)
            try:
                results[name] = SCENARIOS[name](f"{folder}/{name}")
            except Exception:
                results[name] = {"error": traceback.format_exc()}
            Path(folder, f"{index}.json").write_text(json.dumps(results))
