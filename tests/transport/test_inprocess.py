from __future__ import annotations

import errno
import gc
import os
import select

import pytest

from openhcs_stream.errors import InvalidItem, ViewerUnreachable
from openhcs_stream.transport import (
    InProcessLane,
    InProcessListener,
    LaneClosed,
    connect_inprocess,
)


def test_is_found_by_name_or_address() -> None:
    with InProcessListener("here") as listener:
        assert listener.address == "inproc://here"
        assert listener.accept() is None
        assert not select.select([listener], [], [], 0)[0]
        first, second = connect_inprocess("here"), connect_inprocess("inproc://here")
        assert select.select([listener], [], [], 0)[0]
        for sender in (first, second):
            viewer = listener.accept()
            assert viewer is not None
            assert sender.send(b"x")
            assert viewer.receive() == (b"x", (), ())
            sender.close()
            viewer.close()
        assert not select.select([listener], [], [], 0)[0]


def test_random_names_differ() -> None:
    with InProcessListener() as one, InProcessListener() as other:
        assert one.address != other.address


def test_a_name_can_be_taken_once() -> None:
    with InProcessListener("once") as listener:
        with pytest.raises(InvalidItem, match="inproc://once is taken"):
            InProcessListener("once")
        connect_inprocess("once").close()
    listener.close()
    assert listener.fileno() == -1
    with pytest.raises(LaneClosed, match="on this side"):
        listener.accept()
    InProcessListener("once").close()


def test_nobody_listens() -> None:
    with pytest.raises(ViewerUnreachable, match="inproc://nobody"):
        connect_inprocess("nobody")
    with pytest.raises(InvalidItem, match="no in-process address"):
        connect_inprocess("tcp://127.0.0.1:1")


def test_a_full_backlog_and_lanes_that_were_never_accepted() -> None:
    with InProcessListener(backlog=1) as listener:
        lane = connect_inprocess(listener.address)
        with pytest.raises(ViewerUnreachable):
            connect_inprocess(listener.address)
    with pytest.raises(LaneClosed, match="closed it or died"):
        lane.receive()
    assert listener.connect() is None
    lane.close()


def test_capacity() -> None:
    with pytest.raises(InvalidItem, match="0 frames"):
        InProcessLane.pair(0)
    with InProcessListener(capacity=2) as listener, connect_inprocess(listener.address) as lane:
        assert [lane.send(b"x") for _ in range(3)] == [True, True, False]


def test_a_lane_that_was_dropped_is_closed() -> None:
    first, second = InProcessLane.pair()
    assert first.send(b"last")
    del first
    gc.collect()
    assert second.receive() == (b"last", (), ())
    with pytest.raises(LaneClosed):
        second.receive()
    second.close()


def test_fds_that_can_not_all_be_duplicated(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = InProcessLane.pair()
    read, write = os.pipe()
    copies = iter([os.dup(write)])

    def dup(_: int) -> int:
        for copy in copies:
            return copy
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with first, second:
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", dup)
            with pytest.raises(InvalidItem, match="can't be passed on: Too many open files"):
                first.send(b"x", fds=[write, write])
        assert second.receive() is None
        os.close(write)
        assert os.read(read, 1) == b""  # the first copy was closed
        os.close(read)


def test_blobs_are_the_same_memory() -> None:
    first, second = InProcessLane.pair()
    memory = bytearray(b"before")
    with first, second:
        assert first.send(b"x", blobs=[memoryview(memory)])
        frame = second.receive()
        assert frame is not None
        memory[:] = b"after!"
        assert bytes(frame.blobs[0]) == b"after!"
