"""The devices of this machine: one call computes at a time, and calls that wait are computed together where they can be."""

import dataclasses
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any


@dataclasses.dataclass(eq=False)
class _Call:
    """A call that waits, or is done: then `result` is its result, or an exception to raise."""

    key: Hashable
    argument: Any
    is_done: bool = False
    result: Any = None


class Device:
    """A queue of calls, which are computed in the order of their arrival, those of one key together."""

    def __init__(self):
        self._changed, self._owner = threading.Condition(), None
        self._waiting: list[_Call] = []

    @property
    def waiting(self) -> int:
        """Number of calls that wait."""
        return len(self._waiting)

    def compute(
        self, function: Callable[[Sequence[Any]], Sequence[Any]], argument: Any, key: Hashable = None, limit: int = 1
    ) -> Any:
        """Computes `function([argument])[0]` when it is this call's turn, in the thread of one of the calls.

        Calls that wait with the same key are one call of the function, with the list of their arguments. If that raises an
        error, each argument is computed alone, so that the error of one is not that of others. A call from within a
        function that computes is computed at once.

        Args:
          function: from arguments to a result for each, which may be an exception to raise.
          key: None: this call is computed alone.
          limit: maximum number of arguments.
        """
        call = _Call(object() if key is None else key, argument)
        if self._owner == threading.get_ident():
            _compute(function, [call])
            return _result(call)
        with self._changed:
            self._waiting.append(call)
            self._changed.wait_for(lambda: call.is_done or (self._owner is None and self._waiting[0] is call))
            if call.is_done:
                return _result(call)
            calls = [other for other in self._waiting if other.key == call.key][:limit]
            self._waiting = [other for other in self._waiting if other not in calls]
            self._owner = threading.get_ident()
        _compute(function, calls)
        with self._changed:
            self._owner = None
            for other in calls:
                other.is_done = True
            self._changed.notify_all()
        return _result(call)


def _compute(function: Callable, calls: Sequence[_Call]) -> None:
    """Sets the results of calls. Raises nothing: also the stop of a job is a result."""
    try:
        results = function([call.argument for call in calls])
    except BaseException as error:
        if len(calls) > 1 and isinstance(error, Exception):
            for call in calls:
                _compute(function, [call])
            return
        results = [error] * len(calls)
    for call, result in zip(calls, results, strict=True):
        call.result = result


def _result(call: _Call) -> Any:
    if isinstance(call.result, BaseException):
        raise call.result
    return call.result


DEVICE = Device()
