"""Coordination of hosts that train together: how far each runs ahead of its devices, and how one notifies the others.

Each batch carries a notice (`train_jax.step.NOTICE`), whose maximum over all hosts is a metric of the update. A host reads
it before it starts the update after the next: so all learn after the same update that one of them cannot go on,
or is asked to stop, and can meet (`train_jax.agreement`). No host waits for the devices longer than that takes.
"""

import collections
import contextlib

import jax
import numpy as np
from jax.sharding import Mesh

from train_jax import feed, sharding
from train_jax.step import NOTICE

AHEAD = 2  # updates that are under way at most: one runs, the next is queued


class Lockstep:
    """The updates of one run that are under way.

    Attributes:
      error: what failed in this host's own work beside the updates, carried to the next meeting. None if nothing did.
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

    def notice(self, *reasons) -> dict[str, jax.Array]:
        """Returns the entry that a batch carries: whether this host has any reason to meet the others."""
        return self._notices[any(reasons)]

    def started(self, metrics: dict[str, jax.Array]) -> None:
        """Notes the metrics of an update that has just been started."""
        self._metrics.append(metrics)

    def finished(self) -> dict[str, jax.Array] | None:
        """Waits for the oldest update if `AHEAD` are under way and returns its metrics; None if fewer are."""
        return jax.block_until_ready(self._metrics.popleft()) if len(self._metrics) == AHEAD else None

    @contextlib.contextmanager
    def carried(self):
        """Keeps an error of this host's own work until the hosts meet; a single host raises it at once."""
        try:
            yield
        except Exception as error:
            if jax.process_count() == 1:
                raise
            self.error = self.error or error
