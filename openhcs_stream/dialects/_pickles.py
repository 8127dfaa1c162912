"""Pickles of plain containers and scalars, read without unpickling.

OpenHCS's control messages are pickled dictionaries. To unpickle what somebody sent is to run what
they wrote. So the few opcodes that plain data is made of are interpreted here, and nothing else
is: there is no opcode here that imports, calls or builds anything but None, bool, int, float, str,
bytes, list, tuple, dict, set and frozenset. All else is refused by its name, and every size is
checked against what has really come before anything of that size is made.

Source of the format: CPython's Lib/pickletools.py, protocols 2 to 5.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final, NoReturn

from openhcs_stream.errors import ProtocolViolation

__all__ = ["MAX_PICKLE_NBYTES", "dump_plain", "load_plain"]

#: Bytes of one pickle: a control message has a few hundred.
MAX_PICKLE_NBYTES: Final = 1 << 16
#: Containers within containers.
MAX_DEPTH: Final = 16
#: Values altogether, each counted as often as it is put anywhere: it bounds copies of copies.
MAX_VALUES: Final = 4096
#: Bytes of one whole number; its text has three times as many characters.
MAX_INT_NBYTES: Final = 32

_CURE: Final = "Send a dictionary of plain values; classes of other packages are not built here."

# Opcodes that run something, or ask for it, by name, so that a refusal says what was tried.
_REFUSED: Final = {
    b"c": "GLOBAL", b"\x93": "STACK_GLOBAL", b"R": "REDUCE", b"b": "BUILD", b"i": "INST",
    b"o": "OBJ", b"\x81": "NEWOBJ", b"\x92": "NEWOBJ_EX", b"P": "PERSID", b"Q": "BINPERSID",
    b"\x82": "EXT1", b"\x83": "EXT2", b"\x84": "EXT4", b"\x96": "BYTEARRAY8",
    b"\x97": "NEXT_BUFFER", b"\x98": "READONLY_BUFFER",
}  # fmt: skip

#: On the stack: where a group of values begins.
_MARK: Final = object()
#: On the stack: a class that is told by its name and never built. Called with one value it is it.
_NAMED: Final = object()


def load_plain(data: bytes | memoryview, *, packages: tuple[str, ...] = ()) -> Any:
    """Read a pickle of plain containers and scalars.

    Parameters
    ----------
    data : bytes-like
        One whole pickle, of protocol 2 to 5.
    packages : tuple of str
        Names with which the modules of classes may begin. Such a class is not looked for: called
        with one value, as an enumeration is, it stands for this value.

    Raises
    ------
    ProtocolViolation
        It is none, holds anything else, or is larger or deeper than any control message.
    """
    if len(data) > MAX_PICKLE_NBYTES:
        _refuse(f"a pickle of {len(data)} bytes is beyond {MAX_PICKLE_NBYTES}")
    return _Reader(bytes(data), packages).read()


def dump_plain(value: Any) -> bytes:
    """Pickle plain containers and scalars, as every Python since 3.4 reads them."""
    return pickle.dumps(value, protocol=4)


def _refuse(what: str) -> NoReturn:
    raise ProtocolViolation(f"{what}.", cure=_CURE)


class _Reader:
    """Interprets one pickle."""

    def __init__(self, data: bytes, packages: tuple[str, ...] = ()) -> None:
        self._data = data
        self._packages = packages
        self._at = 0
        self._stack: list[Any] = []
        self._marks = 0
        self._memo: dict[int, Any] = {}
        self._values = 0
        # Of each container that was made, how deep it goes; the container is kept beside it,
        # so that its number is not given away again.
        self._depths: dict[int, tuple[int, Any]] = {}
        # Containers that were put into others: from then on they must not grow, or what they
        # are in would be deeper than was counted, or hold itself.
        self._sealed: dict[int, Any] = {}

    def read(self) -> Any:
        """Interpret all of it."""
        try:
            while True:
                opcode = self._take(1)
                if opcode == b".":
                    break
                self._do(opcode)
        except IndexError:
            _refuse("a pickle takes more from its stack than it put there")
        if len(self._stack) != 1 or any(self._stack[0] is each for each in (_MARK, _NAMED)):
            _refuse(f"a pickle leaves {len(self._stack)} values, not one")
        if self._at != len(self._data):
            _refuse(f"{len(self._data) - self._at} bytes follow on a pickle")
        return self._stack[0]

    def _do(self, opcode: bytes) -> None:
        stack = self._stack
        match opcode:
            # --- the frame around it
            case b"\x80":
                version = self._number("B")
                if not 2 <= version <= 5:
                    _refuse(f"a pickle of protocol {version} is not read here")
            case b"\x95":
                length = self._number("Q")
                if length > len(self._data) - self._at:
                    _refuse(f"a pickle announces {length} bytes that did not come")
            # --- scalars
            case b"N":
                self._push(None)
            case b"\x88":
                self._push(True)
            case b"\x89":
                self._push(False)
            case b"K":
                self._push(self._number("B"))
            case b"M":
                self._push(self._number("H"))
            case b"J":
                self._push(self._number("i"))
            case b"\x8a":
                self._push(self._long(self._number("B")))
            case b"\x8b":
                self._push(self._long(self._number("i")))
            case b"G":
                self._push(struct.unpack(">d", self._take(8))[0])
            case b"\x8c":
                self._push(self._text(self._number("B")))
            case b"X":
                self._push(self._text(self._number("I")))
            case b"\x8d":
                self._push(self._text(self._number("Q")))
            case b"C":
                self._push(self._take(self._number("B")))
            case b"B":
                self._push(self._take(self._number("I")))
            case b"\x8e":
                self._push(self._take(self._number("Q")))
            # --- containers
            case b"]":
                self._make([])
            case b"}":
                self._make({})
            case b")":
                self._make(())
            case b"\x8f":
                self._make(set())
            case b"(":
                self._marks += 1
                if self._marks > MAX_DEPTH:
                    _refuse(f"a pickle has more than {MAX_DEPTH} groups in each other")
                stack.append(_MARK)
            case b"l":
                self._make(self._group())
            case b"t":
                self._make(tuple(self._group()))
            case b"\x85" | b"\x86" | b"\x87":
                count = opcode[0] - 0x84
                self._make(tuple([self._pop() for _ in range(count)][::-1]))
            case b"d":
                group = self._group()
                self._make({})
                self._set_items(group)
            case b"\x91":
                self._make(frozenset(map(self._hashable, self._group())))
            case b"a":
                value = self._pop()
                self._append([value])
            case b"e":
                self._append(self._group())
            case b"s":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case b"u":
                self._set_items(self._group())
            case b"\x90":
                self._add(self._group())
            # --- the memo
            case b"\x94":
                self._remember(len(self._memo))
            case b"q":
                self._remember(self._number("B"))
            case b"r":
                self._remember(self._number("I"))
            case b"h":
                self._recall(self._number("B"))
            case b"j":
                self._recall(self._number("I"))
            # --- names of classes
            case b"\x93" if self._packages and self._is_known():
                self._pop()
                self._pop()
                self._push(_NAMED)
            case b"R" | b"\x81" if len(stack) > 1 and stack[-2] is _NAMED:
                self._call()
            case _ if opcode in _REFUSED:
                _refuse(f"a pickle wants to run {_REFUSED[opcode]}{self._asked_for()}")
            case _:
                _refuse(f"a pickle has the opcode {opcode!r}, which no plain value needs")

    # --- the bytes ----------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            _refuse(f"a pickle ends {end - len(self._data)} bytes too early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def _number(self, form: str) -> int:
        size = struct.calcsize(f"<{form}")
        number: int = struct.unpack(f"<{form}", self._take(size))[0]
        return number

    def _long(self, size: int) -> int:
        if not 0 <= size <= MAX_INT_NBYTES:
            _refuse(f"a pickle has a whole number of {size} bytes")
        return int.from_bytes(self._take(size), "little", signed=True)

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            _refuse(f"a pickle has a text that is no UTF-8: {error.reason}")

    def _is_known(self) -> bool:
        """Whether the two texts on the stack name a class of `packages`."""
        module, name = self._stack[-2:] if len(self._stack) > 1 else (None, None)
        return (
            isinstance(module, str)
            and isinstance(name, str)
            and f"{module}.".startswith(self._packages)
        )

    def _call(self) -> None:
        """Put the one value in the place of the class that is called with it."""
        given = self._pop()
        self._stack.pop()
        if not (isinstance(given, tuple) and len(given) == 1 and given[0] is not _NAMED):
            _refuse("a pickle builds an object of several values")
        self._push(given[0])

    def _asked_for(self) -> str:
        """What a class that is asked for is called, as far as it is a plain name."""
        names = [each for each in self._stack[-2:] if isinstance(each, str) and len(each) < 100]
        return f" of {'.'.join(names)}" if len(names) == 2 else ""

    # --- the stack ----------------------------------------------------------------------------

    def _push(self, value: Any) -> None:
        self._count(1)
        self._stack.append(value)

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            _refuse(f"a pickle has more than {MAX_VALUES} values")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            _refuse("a pickle takes a value where a group begins")
        return value

    def _group(self) -> list[Any]:
        if not self._marks:
            _refuse("a pickle ends a group that did not begin")
        group: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            group.append(value)
        self._marks -= 1
        return group[::-1]

    # --- containers ---------------------------------------------------------------------------

    def _make(self, container: Any) -> None:
        self._push(container)
        inside = () if isinstance(container, dict) else container
        self._deepen(container, inside)

    def _top(self, kind: type) -> Any:
        container = self._stack[-1]
        if type(container) is not kind:
            _refuse(f"a pickle adds to a {type(container).__name__} as to a {kind.__name__}")
        if id(container) in self._sealed:
            _refuse("a pickle adds to a container that is in another already")
        return container

    def _append(self, values: list[Any]) -> None:
        container = self._top(list)
        self._deepen(container, values)
        container.extend(values)

    def _add(self, values: list[Any]) -> None:
        container = self._top(set)
        self._deepen(container, values)
        container.update(map(self._hashable, values))

    def _set_items(self, group: list[Any]) -> None:
        container = self._top(dict)
        if len(group) % 2:
            _refuse("a pickle has a key without a value")
        self._deepen(container, group[1::2])
        for key, value in zip(group[::2], group[1::2], strict=True):
            container[self._hashable(key)] = value

    def _hashable(self, key: Any) -> Any:
        if not isinstance(key, str | int | float | bytes | None):
            _refuse(f"a pickle has a {type(key).__name__} as a key")
        return key

    def _deepen(self, container: Any, inside: Any) -> None:
        """Count what goes into a container, and how deep it is then."""
        self._count(len(inside))
        depth = self._depths.get(id(container), (1, None))[0]
        for value in inside:
            if value is container:
                _refuse("a pickle has a container in itself")
            if value is _NAMED:
                _refuse("a pickle has a class as a value")
            depth = max(depth, 1 + self._depths.get(id(value), (0, None))[0])
            if isinstance(value, list | dict | set):
                self._sealed[id(value)] = value
        if depth > MAX_DEPTH:
            _refuse(f"a pickle has more than {MAX_DEPTH} containers in each other")
        self._depths[id(container)] = (depth, container)

    # --- the memo -----------------------------------------------------------------------------

    def _remember(self, number: int) -> None:
        if number > MAX_VALUES:
            _refuse(f"a pickle remembers a value under the number {number}")
        value = self._stack[-1]
        if value is _MARK:
            _refuse("a pickle remembers the beginning of a group")
        self._memo[number] = value

    def _recall(self, number: int) -> None:
        if number not in self._memo:
            _refuse(f"a pickle recalls a value {number} that it did not remember")
        self._push(self._memo[number])
