"""Files below a folder that somebody handed over, and none elsewhere."""

from __future__ import annotations

import os
import stat
from typing import Final

from openhcs_stream.errors import ProtocolViolation

__all__ = ["Handle", "read_beneath"]

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
#: What a file that is read as a whole may have: a compressed chunk, or what describes an array.
_MOST_NBYTES: Final = 1 << 30


class Handle:
    """A descriptor that is closed with the last who uses it.

    Attributes
    ----------
    fd : int
        The descriptor.
    """

    __slots__ = ("_close", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._close = os.close

    def __del__(self) -> None:
        self._close(self.fd)


def read_beneath(folder: int, path: str, start: int = 0, stop: int | None = None) -> bytes | None:
    """Read a file below a folder, without following any link.

    Each name is opened in the folder before it, so that nothing that is moved or replaced
    meanwhile leads out of it.

    Parameters
    ----------
    folder : int
        A descriptor of the folder.
    path : str
        Names with slashes between them.
    start, stop : int
        Which of its bytes; a negative `start` counts from the end.

    Returns
    -------
    bytes or None
        None: there is no such file.

    Raises
    ------
    ProtocolViolation
        The path leads out of the folder, or to what is no file.
    """
    *folders, name = path.split("/")
    if any(each in ("", ".", "..") or "\0" in each for each in (*folders, name)):
        raise ProtocolViolation(f"{path!r} is no path below the folder that was handed over.")
    opened: list[int] = []
    try:
        for each in folders:
            folder = os.open(each, _READ | os.O_DIRECTORY, dir_fd=folder)
            opened.append(folder)
        # A pipe without a writer would block for ever.
        fd = os.open(name, _READ | os.O_NONBLOCK, dir_fd=folder)
        opened.append(fd)
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise ProtocolViolation(f"{path!r} is no file.")
        if start < 0:
            start = max(0, about.st_size + start)
        stop = about.st_size if stop is None else min(stop, about.st_size)
        if stop - start > _MOST_NBYTES:
            raise ProtocolViolation(f"{path!r} has {stop - start} bytes to be read at once.")
        with open(fd, "rb", closefd=False) as file:
            file.seek(start)
            return file.read(max(0, stop - start))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ProtocolViolation(f"{path!r} goes through what is no folder, or a link.") from error
    except OSError as error:
        raise ProtocolViolation(f"{path!r} can't be read: {error.strerror}.") from error
    finally:
        for each_fd in opened:
            os.close(each_fd)
