"""Plain data out of a pickle file without running it: lists, tuples, dictionaries, text, numbers. No name is ever looked up or called."""

from __future__ import annotations

import pickletools
from typing import Any

MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
NOTHING = {"PROTO", "FRAME"}


def read_plain_pickle(data: bytes) -> Any:
    """The value that a pickle of plain data describes.

    Args:
        data: the whole file, of any protocol.

    Raises:
        ValueError: if it is no pickle, is damaged, or asks for anything but plain data: a class, a function, a call.
    """
    try:
        return _Reader().read(data)
    except ValueError:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"this pickle is damaged ({type(error).__name__}: {error})") from error


class _Reader:
    """The stack machine's data instructions, one by one."""

    def __init__(self):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                if len(self.stack) != 1 or self.stack[0] is MARK:
                    raise ValueError("this pickle does not end with one value")
                return self.stack[0]
            self._step(opcode.name, argument, position)
        raise ValueError("this pickle has no end")

    def _step(self, name: str, argument: Any, position: int) -> None:
        stack = self.stack
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in NUMBERS or name in TEXTS:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name in PUTS:
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in GETS:
            stack.append(self.memo[int(argument)])
        elif name in ("APPEND", "SETITEM", "APPENDS", "SETITEMS"):
            self._fill(name)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "LIST", "DICT"):
            values = self._to_mark()
            stack.append(tuple(values) if name == "TUPLE" else values if name == "LIST" else _pairs(values))
        elif name == "POP":
            stack.pop()
        elif name not in NOTHING:
            raise ValueError(f"byte {position} of this pickle asks for {name}; only plain data is read, nothing is executed")

    def _fill(self, name: str) -> None:
        if name.endswith("S"):
            values = self._to_mark()
        else:
            count = 1 if name == "APPEND" else 2
            values = self.stack[-count:]
            del self.stack[-count:]
        target = self.stack[-1]
        wanted = list if name.startswith("APPEND") else dict
        if type(target) is not wanted or any(value is MARK for value in values):
            raise ValueError(f"this pickle is damaged: {name} on a {type(target).__name__}")
        if wanted is list:
            target.extend(values)
        else:
            target.update(_pairs(values))

    def _to_mark(self) -> list[Any]:
        start = next((index for index in range(len(self.stack) - 1, -1, -1) if self.stack[index] is MARK), -1)
        if start < 0:
            raise ValueError("this pickle is damaged: a mark is missing")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise ValueError("this pickle is damaged: a key has no value")
    return dict(zip(values[::2], values[1::2], strict=True))
