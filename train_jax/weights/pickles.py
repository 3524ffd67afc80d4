"""Safe reading of pickles as plain values: nothing that a file names is imported or called.

An interpreter executes the instructions that `pickletools` decodes. Numbers, strings, tuples, lists, sets (as lists) and
dicts are read as such. A call becomes a `Record` of the call, unless the caller provides a function for it.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from train_jax.errors import LoadError

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True)
class Global:
    """Reference of a pickle to a class or function, as "module.name"."""

    name: str


@dataclasses.dataclass(eq=False)
class Record:
    """Record of a call in a pickle that was not executed: callee, arguments, and the state that the pickle sets."""

    callee: Any
    arguments: Any = ()
    state: Any = None


class Interpreter:
    """Interpreter of one pickle.

    Args:
      calls: "module.name" -> function of the positional arguments that replaces calls of this name.
      persistent: function that converts a persistent id to a value.
    """

    def __init__(self, calls: Mapping[str, Callable], persistent: Callable[[Any], Any]):
        self._calls, self._persistent = calls, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes) -> Any:
        """Returns the value of a pickle. Raises LoadError for a damaged or unsupported pickle."""
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode, argument)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, LoadError):
                raise
            raise LoadError(f"a damaged pickle ({type(error).__name__}: {error})") from error
        raise LoadError("a pickle that does not end")

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Executes one instruction. The other private methods are named after instructions."""
        stack, name = self._stack, opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif method := getattr(self, f"_{name.lower()}", None):
            method(argument)
        elif argument is not None and not name.startswith("EXT"):  # literals: numbers, bytes, strings
            stack.append(argument)
        else:
            raise LoadError(f"a pickle with the instruction {name}, which is not read here")

    # -- the stack ------------------------------------------------------------------------------------------------------

    def _proto(self, _) -> None:
        """Ignores an instruction without effect on the value: protocol version, frame length."""

    _frame = _proto

    def _mark(self, _) -> None:
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        """Pops the stack down to the last mark and returns the popped items."""
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _pop(self, _) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _pop_mark(self, _) -> None:
        self._since_mark()

    def _dup(self, _) -> None:
        self._stack.append(self._stack[-1])

    # -- containers -----------------------------------------------------------------------------------------------------

    def _tuple(self, _) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _list(self, _) -> None:
        self._stack.append(self._since_mark())

    _frozenset = _list

    def _dict(self, _) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._put(items)

    def _append(self, _) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _setitem(self, _) -> None:
        items = self._stack[-2:]
        del self._stack[-2:]
        self._put(items)

    def _setitems(self, _) -> None:
        self._put(self._since_mark())

    def _put(self, items: list[Any]) -> None:
        """Adds alternating keys and values to the dict on the stack; ignores items of a `Record`."""
        if isinstance(target := self._stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[self._key(key)] = value

    def _key(self, key: Any) -> Any:
        """Converts a key to a plain key: other objects are named or numbered.

        Hashing nested objects of a file could take unlimited time and stack.
        """
        if key is None or isinstance(key, str | bytes):
            return key
        if isinstance(key, int | float):
            return key if abs(key) < 2**31 else str(key)  # large integers could be chosen to have equal hashes
        return key.name if isinstance(key, Global) else f"{type(key).__name__} {len(self._stack[-1])}"

    # -- calls ----------------------------------------------------------------------------------------------------------

    def _global(self, argument: str) -> None:
        self._stack.append(Global(".".join(argument.split(" ", 1))))

    def _stack_global(self, _) -> None:
        module, name = self._stack[-2:]
        if not (isinstance(module, str) and isinstance(name, str)):
            raise LoadError("a pickle with a name that is not a string")
        self._stack[-2:] = [Global(f"{module}.{name}")]

    def _call(self, callee: Any, arguments: Any) -> None:
        """Pushes the result of a known call, or the `Record` of an unknown call."""
        function = self._calls.get(callee.name) if isinstance(callee, Global) else None
        self._stack.append(function(*arguments) if function else Record(callee, arguments))

    def _reduce(self, _) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        self._call(callee, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _) -> None:
        self._stack.pop()  # keyword arguments
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        items = self._since_mark()
        self._global(argument)
        self._call(self._stack.pop(), tuple(items))

    def _obj(self, _) -> None:
        callee, *arguments = self._since_mark()
        self._call(callee, tuple(arguments))

    def _build(self, _) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], Record):
            self._stack[-1].state = state

    def _persid(self, argument: str) -> None:
        self._stack.append(self._persistent(argument))

    def _binpersid(self, _) -> None:
        self._stack.append(self._persistent(self._stack.pop()))
