"""Process of one run of a sweep: `train-jax`, which saves and stops when the sweep that started it has ended.

    python -m train_jax.sweep.child --config=… --workdir=…          (its standard input is a pipe from the sweep)
"""

import os
import signal
import sys
import threading

from train_jax.__main__ import cli


def _stop_with_parent() -> None:
    """Asks this process to save and stop when its standard input ends, as it does when the sweep is killed."""
    # Not through sys.stdin, whose lock a thread that waits would keep when the interpreter ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    cli(sys.argv[1:])
