"""Coordination of training hosts: limits asynchronous dispatch, and synchronises errors and stop requests.

Each batch contains a notice (`train_jax.step.NOTICE`); its maximum over all hosts is a metric of the update. Every host
reads this metric two updates later, so all hosts learn at the same update that one of them has failed or should stop, and
can exchange messages (`train_jax.agreement`). Hosts do not wait for the devices longer than this.
"""

import collections
import contextlib

import jax
import numpy as np
from jax.sharding import Mesh

from train_jax import feed, sharding
from train_jax.step import NOTICE

AHEAD = 2  # maximum number of updates in flight: one runs, the next is queued


class Lockstep:
    """Updates of one run that are in flight.

    Attributes:
      error: deferred error of this host, to be raised when the hosts next exchange messages; None if there is none.
    """

    def __init__(self, mesh: Mesh):
        self.error: Exception | None = None
        self._metrics: collections.deque = collections.deque()
        parts = sharding.parts(mesh)
        split = sharding.batch_sharding(mesh)
        local_rows = len(sharding.host_rows(split, parts))
        self._notices = [
            feed.to_device({NOTICE: np.full(local_rows, value, np.int32)}, split, parts) for value in (False, True)
        ]

    def make_notice(self, *reasons) -> dict[str, jax.Array]:
        """Returns the notice of a batch: whether any of `reasons` requires an exchange between the hosts."""
        return self._notices[any(reasons)]

    def record_update(self, metrics: dict[str, jax.Array]) -> None:
        """Records the metrics of an update that was just dispatched."""
        self._metrics.append(metrics)

    def wait_for_oldest(self) -> dict[str, jax.Array] | None:
        """Waits for the oldest update in flight and returns its metrics; None if fewer than `AHEAD` are in flight."""
        return jax.block_until_ready(self._metrics.popleft()) if len(self._metrics) == AHEAD else None

    @contextlib.contextmanager
    def defer_errors(self):
        """Defers errors of the enclosed code until the next exchange between hosts; a single host raises at once."""
        try:
            yield
        except Exception as error:
            if jax.process_count() == 1:
                raise
            self.error = self.error or error
