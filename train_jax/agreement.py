"""Communication between the hosts of a job: values, errors, requests to stop.

Messages use JAX's coordination service, not the devices, so they work even if the devices wait for a collective that a
failed host will never join. Every host must call `gather` the same number of times. A failed host calls `share_error`
instead: it joins the next `gather` of the other hosts, which then raises PeerError.
"""

import itertools
import json
import os
import sys
import traceback
from typing import Any

import jax
from jax._src import distributed  # the coordination service's client; there is no public name for it

from train_jax.data.errors import DataError
from train_jax.errors import ConfigError, UserError

_DAY = 24 * 3600.0
PATIENCE = 120.0  # seconds a failed host waits for the others, which may be blocked in a collective with it

_meetings = itertools.count()


class PeerError(UserError):
    """Failure of another host of the job; the message names the process and its error."""


def gather(value: Any = None) -> list:
    """Collects a JSON value from every host. Returns the values in order of process index.

    Raises PeerError if another host failed.
    """
    replies = _meet({"value": value}, _DAY)
    errors = [f"process {process} failed: {reply['error']}" for process, reply in enumerate(replies) if "error" in reply]
    if errors:
        raise PeerError("; ".join(errors))
    return [reply["value"] for reply in replies]


def barrier() -> None:
    """Waits until every host has called this function. Raises PeerError if another host failed."""
    gather()


def broadcast_from_first(value: Any = None) -> Any:
    """Broadcasts the value of process 0 to every host."""
    return gather(value if jax.process_index() == 0 else None)[0]


def check_same(count: int, what: str) -> None:
    """Raises DataError on every host unless all hosts have the same count of `what`.

    With different counts, some hosts would wait forever for missing batches.
    """
    counts = gather(count)
    if len(set(counts)) > 1:
        listed = ", ".join(f"process {process}: {count:,}" for process, count in enumerate(counts))
        raise DataError(f"hosts see different data: {what}: {listed}. Give all of them the same files")


def share_error(error: Exception) -> None:
    """Sends this host's error to the other hosts and waits until all hosts have received it.

    A PeerError and an error that was sent before are not sent again. If the other hosts do not answer, this function
    prints the error and ends the process; JAX then ends the other processes.
    """
    is_single = distributed.global_state.client is None or jax.process_count() == 1
    if is_single or isinstance(error, PeerError) or getattr(error, "_shared", False):
        return
    error._shared = True
    try:
        _meet({"error": f"{type(error).__name__}: {error}"}, PATIENCE)
    except Exception as absent:
        traceback.print_exception(error)
        print(f"error: {error}\nthe other hosts do not answer ({absent}); ending without them", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def check_connected() -> None:
    """Raises ConfigError if JAX sees several hosts but jax.distributed is not initialised."""
    if jax.process_count() > 1 and distributed.global_state.client is None:
        raise ConfigError(
            f"JAX sees {jax.process_count()} hosts, and jax.distributed is not initialised: start with --distributed=on, "
            "or call train_jax.distributed.initialize() first"
        )


def _meet(message: dict, timeout: float) -> list[dict]:
    """Exchanges one message with every host. Returns the messages in order of process index."""
    if jax.process_count() == 1:
        return [message]
    client = distributed.global_state.client
    meeting = next(_meetings)
    folder = f"train_jax/{meeting}"
    client.key_value_set(f"{folder}/{jax.process_index()}", json.dumps(message))
    client.wait_at_barrier(folder, int(1000 * timeout))
    if jax.process_index() == 0 and meeting:
        client.key_value_delete(f"train_jax/{meeting - 1}")  # every host has read the previous one
    messages = {int(key.rsplit("/", 1)[1]): json.loads(text) for key, text in client.key_value_dir_get(folder)}
    return [messages[process] for process in range(jax.process_count())]
