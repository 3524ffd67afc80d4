"""Handling of stop signals: the first SIGTERM or SIGINT asks a run to save and stop, the second ends the process."""

import os
import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 5.0  # seconds that the default handler of the second signal has to end the process


class StopRequest:
    """Context manager that records the first SIGTERM or SIGINT and then restores the previous handlers.

    Signal handlers do not run while the main thread waits for a device, so a thread watches for the second signal.
    Outside the main thread handlers cannot be installed, and nothing is recorded.

    Attributes:
      signal_number: number of the received signal; 0: none.
    """

    def __init__(self):
        self.signal_number = 0
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        self._closed = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        self._previous = {signal_number: signal.signal(signal_number, self._note) for signal_number in _SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        if not self._previous:
            return
        self._restore()
        signal.set_wakeup_fd(self._wakeup)
        self._closed.set()
        os.close(self._writer)  # ends the thread
        self._previous = {}

    def _note(self, signal_number: int, frame) -> None:
        """Records a signal and restores the previous handlers."""
        self.signal_number = signal_number
        self._restore()

    def _restore(self) -> None:
        """Restores the previous signal handlers."""
        for signal_number, handler in self._previous.items():
            signal.signal(signal_number, handler)

    def _watch(self) -> None:
        """Ends the process some time after the second signal, in a thread."""
        signals = 0
        while received := os.read(self._reader, 1):
            signals += received[0] in _SIGNALS
            if signals == 2 and not self._closed.wait(_GRACE):
                os._exit(128 + received[0])
        os.close(self._reader)
