"""Pickles as plain values, without Python's unpickler: nothing that a file names is ever imported or called.

An interpreter of the instructions that `pickletools` decodes. Numbers, text, tuples, lists, sets (as lists) and dicts become
themselves. What pickle would make by a call becomes a `Record` of that call, unless the caller said what the call means.
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
    """A class or function that a pickle names, as "module.name"."""

    name: str


@dataclasses.dataclass(eq=False)
class Record:
    """A call that a pickle asked for and that was not made: of what, with which arguments, and the state set
    afterwards.
    """

    callee: Any
    arguments: Any = ()
    state: Any = None


class Interpreter:
    """One reading of a pickle.

    Args:
      calls: "module.name" -> what stands for a call of it, a function of its positional arguments.
      persistent: what stands for a persistent id, a function of it.
    """

    def __init__(self, calls: Mapping[str, Callable], persistent: Callable[[Any], Any]):
        self._calls, self._persistent = calls, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes) -> Any:
        """The value that the pickle describes. Raises LoadError if it is damaged."""
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
        elif argument is not None and not name.startswith("EXT"):  # numbers, bytes and text stand in the instruction
            stack.append(argument)
        else:
            raise LoadError(f"a pickle with the instruction {name}, which is not read here")

    # -- the stack ------------------------------------------------------------------------------------------------------

    def _proto(self, _) -> None:
        """What says nothing about the value: the protocol's number, the length of a frame."""

    _frame = _proto

    def _mark(self, _) -> None:
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
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
        """Keys and values in turn, into the dict on the stack; those of a recorded object are left out."""
        if isinstance(target := self._stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[self._key(key)] = value

    def _key(self, key: Any) -> Any:
        """Plain keys as they are. Others by name or number: to hash what a file built can take any time and stack."""
        if key is None or isinstance(key, str | bytes):
            return key
        if isinstance(key, int | float):
            return key if abs(key) < 2**31 else str(key)  # larger ones may be chosen to have one hash
        return key.name if isinstance(key, Global) else f"{type(key).__name__} {len(self._stack[-1])}"

    # -- calls ----------------------------------------------------------------------------------------------------------

    def _global(self, argument: str) -> None:
        self._stack.append(Global(".".join(argument.split(" ", 1))))

    def _stack_global(self, _) -> None:
        module, name = self._stack[-2:]
        if not (isinstance(module, str) and isinstance(name, str)):
            raise LoadError("a pickle with a name that is no text")
        self._stack[-2:] = [Global(f"{module}.{name}")]

    def _call(self, callee: Any, arguments: Any) -> None:
        known = self._calls.get(callee.name) if isinstance(callee, Global) else None
        self._stack.append(known(*arguments) if known else Record(callee, arguments))

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
