"""Workers of every kind, as programs of their own: ``worker_programs.py NAME ADDRESS`` tells JSON.

In a file, for processes that `multiprocessing`, joblib and `concurrent.futures` start import the
functions that they run.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

#: Called at the interpreter's end after the library's own ending: registered before it.
_at_the_very_end: list[Callable[[], Any]] = []
atexit.register(lambda: [each() for each in _at_the_very_end])

import numpy as np  # noqa: E402

import openhcs_stream  # noqa: E402
from openhcs_stream.errors import StreamError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream.stream import Receipt, Stream

IMAGE: npt.NDArray[np.uint16] = np.arange(128 * 128, dtype=np.uint16).reshape(128, 128)


def connect(address: str, **options: Any) -> Stream:
    return openhcs_stream.connect(address, timeout_s=10.0, quota_nbytes=64 << 20, **options)


def send(address: str, number: int) -> str:
    """What a process of a pool does: its own stream, kept for its next task."""
    with _lock:
        stream = _streams.get(os.getpid())
        if stream is None:
            stream = _streams[os.getpid()] = connect(address, name=f"worker {os.getpid()}")
    receipt = stream.image(IMAGE + number, name="pool", place={"z": number})
    return receipt.wait().state


_streams: dict[int, Stream] = {}
_lock = threading.Lock()


def send_and_close(address: str, number: int) -> str:
    with connect(address) as stream:
        return stream.image(IMAGE + number, name="pool", place={"z": number}).wait().state


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def error_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The class of what a call raises; what it returned, where it did not."""
    begin = time.monotonic()
    try:
        result = call(*args, **kwargs)
    except StreamError as error:
        name = type(error).__name__
        return name if time.monotonic() - begin < 5.0 else f"{name}, late"
    return f"returned {result!r}"


# --- fork -----------------------------------------------------------------------------------------


def in_child(act: Callable[[], Any]) -> Any:
    """Fork, act in the child, give what it returns; the child ends at once."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(theirs, json.dumps(act()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    return json.loads(said)


def fork(address: str) -> None:
    """In the child all of the parent's stream is refused, and the parent does not notice."""
    stream = connect(address)
    lent = stream.allocate((16, 16), np.uint16)

    def child() -> dict[str, Any]:
        def batch() -> None:
            with stream.batch():
                stream.image(IMAGE)

        refused = {
            "image": error_of(stream.image, IMAGE),
            "labels": error_of(stream.labels, IMAGE),
            "rois": error_of(stream.rois, []),
            "points": error_of(stream.points, np.zeros((2, 2))),
            "allocate": error_of(stream.allocate, (4, 4), np.uint8),
            "batch": error_of(batch),
            "flush": error_of(stream.flush),
            "request": error_of(stream.request, "status"),
            "status": error_of(stream.status),
            "wait": error_of(receipt.wait, "displayed", timeout_s=10.0),
            "close": error_of(stream.close),
        }
        with connect(address, name="of the child") as mine:
            refused["own"] = mine.image(IMAGE, name="child").wait().state
        return refused

    with stream.batch():  # so that what is waited for has certainly not come
        receipt = stream.image(IMAGE, name="before")
        said = in_child(child)
    receipt.wait()
    lent[:] = 7
    stream.image(lent, name="lent").wait()
    after = stream.image(IMAGE + 1, name="after").wait().state
    stream.close()
    say({"child": said, "after": after})


def fork_in_a_batch(address: str) -> None:
    """The child leaves the block too, by the end of it and by an exception."""
    stream = connect(address)
    said: list[Any] = []
    with stream.batch():
        receipts = [stream.image(IMAGE, name="batch", place={"z": z}) for z in range(4)]
        said.append(in_child(lambda: [receipt.state for receipt in receipts]))
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            said.append(os.waitstatus_to_exitcode(status))
        else:
            # Through the end of the block, as code that forks in the middle of something does.
            atexit.register(os._exit, 5)
            with contextlib.suppress(StreamError):
                stream.flush()
            raise SystemExit
    stream.flush()
    stream.close()
    say({"children": said, "states": [receipt.state for receipt in receipts]})


def fork_while_sending(address: str) -> None:
    """Locks are held by other threads at the moment of the fork: no child may wait for them."""
    stream = connect(address)
    ending = threading.Event()

    def keep_sending() -> None:
        while not ending.is_set():
            stream.image(IMAGE, name="sending")

    threads = [threading.Thread(target=keep_sending) for _ in range(3)]
    for thread in threads:
        thread.start()
    said = set()
    for _ in range(20):
        said |= {
            in_child(
                lambda: ", ".join(
                    [error_of(stream.image, IMAGE), error_of(stream.flush), error_of(stream.status)]
                )
            )
        }
    ending.set()
    for thread in threads:
        thread.join()
    stream.flush()
    failed = sum(status.failed for status in stream.status())
    stream.close()
    say({"children": sorted(said), "failed": failed})


def fork_with_locks_held(address: str) -> None:
    """Each lock of the library is some thread's at the moment of the fork."""
    from openhcs_stream import stream as room
    from openhcs_stream import tracker, transport

    stream = connect(address)
    locks = [
        *(lane._send_lock for lane in _lanes_of(stream)),
        *(lane._receive_lock for lane in _lanes_of(stream)),
        stream._lock,
        stream._pool._lock,
        tracker.registry()._lock,
        transport._zmq._context_lock,
        room._connect._shared_lock,
    ]
    for lock in locks:
        lock.acquire()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            refused = [error_of(stream.image, IMAGE), error_of(stream.close)]
            with connect(address) as mine:
                mine.image(IMAGE, name="child").wait()
            openhcs_stream.view(IMAGE, address)
            code = 0 if refused == ["ForkedStream", "returned None"] else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    for lock in locks:
        lock.release()
    say([os.waitstatus_to_exitcode(status), stream.image(IMAGE, name="parent").wait().state])
    stream.close()


def _lanes_of(stream: Stream) -> list[Any]:
    return [link.data for link in stream._group.links]


def fork_and_leave(address: str) -> None:
    """Children that end in all ways close nothing of their parent's."""
    stream = connect(address)
    endings: dict[str, Callable[[], Any]] = {
        "os._exit": lambda: os._exit(0),
        "sys.exit": lambda: sys.exit(0),
        "del": lambda: (globals().pop("kept"), sys.exit(0)),
        "exception": lambda: 1 // 0,
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    }
    globals()["kept"] = stream
    states = {}
    for name, end in endings.items():
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            end()
            raise AssertionError(name)
        _, status = os.waitpid(child, 0)
        state = stream.image(IMAGE, name="it").wait().state
        states[name] = [os.waitstatus_to_exitcode(status), state]
    stream.close()
    say(states)


def fork_pool(address: str) -> None:
    """`multiprocessing` by fork, while the parent has a stream that it uses."""
    stream = connect(address)
    stream.image(IMAGE, name="parent").wait()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        states = pool.starmap(send, [(address, number) for number in range(12)])
    states.append(stream.image(IMAGE, name="parent").wait().state)
    stream.close()
    say(sorted(set(states)))


def fork_that_closes_nothing(address: str) -> None:
    """Its last images are still gathered when the child's work is done."""
    child = multiprocessing.get_context("fork").Process(target=send_many, args=(address,))
    child.start()
    child.join()
    say(child.exitcode)


def send_many(address: str) -> None:
    globals()["kept"] = stream = connect(address)
    for number in range(300):
        stream.image(IMAGE, name="left", place={"z": number})


# --- other processes ------------------------------------------------------------------------------


def spawn_pool(address: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        states = pool.starmap(send, [(address, number) for number in range(6)])
        pool.close()
        pool.join()
    say(sorted(set(states)))


def forkserver_pool(address: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openhcs_stream", "openhcs_stream.stream"])
    with context.Pool(2) as pool:
        states = pool.starmap(send, [(address, number) for number in range(6)])
    say(sorted(set(states)))


def process_executor(address: str) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(send, address, number) for number in range(6)]
        say(sorted({task.result(40) for task in tasks}))


def executor_whose_process_dies(address: str) -> None:
    """One of its processes is killed at work; the others' items are displayed."""
    from concurrent.futures.process import BrokenProcessPool

    stream = connect(address)
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    assert pool.submit(send, address, 0).result(30) == "displayed"
    doomed = pool.submit(send_until_killed, address)
    broken = isinstance(doomed.exception(30), BrokenProcessPool)
    pool.shutdown()
    say([broken, stream.image(IMAGE, name="parent").wait().state])
    stream.close()


def send_until_killed(address: str) -> NoReturn:
    stream = connect(address)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        stream.image(IMAGE, name="doomed")


def joblib_backend(address: str, backend: str) -> None:
    import joblib

    states = joblib.Parallel(n_jobs=2, backend=backend)(
        joblib.delayed(send)(address, number) for number in range(6)
    )
    # The next pool is the same one, or another: each process keeps its stream.
    states += joblib.Parallel(n_jobs=2, backend=backend)(
        joblib.delayed(send_and_close)(address, number) for number in range(4)
    )
    say(sorted(set(states)))


def joblib_given_a_stream(address: str) -> None:
    """A stream, and a receipt, can't be sent to another process: that is said, with the cure."""
    import joblib

    stream = connect(address)
    said = []
    for given in (stream, stream.image(IMAGE, name="it").wait()):
        try:
            joblib.Parallel(n_jobs=2, backend="loky")(
                joblib.delayed(str)(each) for each in [given, given]
            )
            said.append("was taken")
        except Exception as error:  # joblib has its own around ours
            chain: BaseException | None = error
            texts = []
            while chain is not None:
                texts.append(f"{type(chain).__name__}: {chain}")
                chain = chain.__cause__ or chain.__context__
            said.append(" / ".join(texts))
    stream.close()
    say(said)


# --- threads and loops ----------------------------------------------------------------------------


def threads(address: str) -> None:
    """Eight threads, one stream: singles, batches and lent arrays, each in its order."""
    stream = connect(address)

    def work(number: int) -> list[Receipt]:
        receipts = []
        for z in range(10):
            place = {"z": z, "t": number}
            if z % 3 == 0:
                receipts.append(stream.image(IMAGE, name="threads", place=place))
            elif z % 3 == 1:
                with stream.batch():
                    receipts.append(stream.image(IMAGE, name="threads", place=place))
                    receipts.append(stream.labels(IMAGE, name="labels", place=place))
            else:
                lent = stream.allocate(IMAGE.shape, IMAGE.dtype)
                lent[:] = IMAGE
                receipts.append(stream.image(lent, name="threads", place=place))
        return receipts

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(8)))
    stream.flush()
    states = {receipt.state for receipts in done for receipt in receipts}
    stream.close()
    say([sorted(states), sum(map(len, done))])


def from_a_loop(address: str) -> None:
    """asyncio: from the loop itself, from its executor, and a wait that is cancelled."""

    async def main() -> list[str]:
        stream = await asyncio.to_thread(connect, address)
        states = [stream.image(IMAGE, name="loop", place={"z": 0}).wait().state]
        receipts = await asyncio.gather(
            *(
                asyncio.to_thread(stream.image, IMAGE, name="loop", place={"z": z})
                for z in range(20)
            )
        )
        await asyncio.to_thread(stream.flush)
        states += [receipt.state for receipt in receipts]
        with contextlib.suppress(TimeoutError):
            never = stream.image(IMAGE, name="loop", place={"z": 0})
            await asyncio.wait_for(asyncio.to_thread(never.wait, timeout_s=1.0), 0.0)
        states.append(never.wait().state)
        await asyncio.to_thread(stream.close)
        return sorted(set(states))

    say(asyncio.run(main()))


# --- ends -----------------------------------------------------------------------------------------


def end_with_daemon_threads(address: str) -> None:
    """They send while the interpreter ends."""
    stream = connect(address)
    for _ in range(4):
        threading.Thread(target=_send_for_ever, args=(stream,), daemon=True).start()
    stream.image(IMAGE, name="main").wait()
    say("ends")


def _send_for_ever(stream: Stream) -> None:
    with contextlib.suppress(StreamError):
        while True:
            stream.image(IMAGE, name="daemon")


def end_with_a_thread_at_work(address: str) -> None:
    """The interpreter waits for it, and only then closes the stream."""
    stream = _streams[0] = connect(address)
    begin = threading.Event()

    def work() -> None:
        begin.wait()
        receipts = [stream.image(IMAGE, name="late", place={"z": z}) for z in range(10)]
        say([receipt.wait().state for receipt in receipts])

    threading.Thread(target=work).start()
    threading.Timer(0.2, begin.set).start()


def send_at_exit(address: str) -> None:
    """After the library's own ending: a clear error, no hang. Before it: sent."""
    stream = connect(address)
    atexit.register(lambda: say(stream.image(IMAGE, name="at exit").wait().state))
    _at_the_very_end.append(lambda: say(error_of(stream.image, IMAGE, name="too late")))


def end_by_os_exit(address: str) -> None:
    stream = connect(address)
    for z in range(20):
        stream.image(IMAGE, name="left", place={"z": z})
    say("ends")
    os._exit(3)


def end_inside_a_batch(address: str) -> None:
    """Nothing of the batch goes out; what was sent before is displayed."""
    # Kept: sys.exit lets go of this frame before the library's own ending.
    stream = _streams[os.getpid()] = connect(address)
    before = stream.image(IMAGE, name="before")
    receipts: list[Receipt] = []
    _at_the_very_end.append(lambda: say([before.state, *{each.state for each in receipts}]))
    with stream.batch():
        receipts += [stream.image(IMAGE, name="batch", place={"z": z}) for z in range(4)]
        sys.exit(4)


def interrupted(address: str) -> None:
    """Ctrl-C in the middle of calls: the stream goes on to work."""
    stream = connect(address)
    seen = 0
    receipts: list[Receipt] = []
    deadline = time.monotonic() + 20.0
    while seen < 20 and time.monotonic() < deadline:
        timer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                receipts.append(stream.image(IMAGE, name="interrupted"))
        except KeyboardInterrupt:
            seen += 1
        timer.join()
    last = stream.image(IMAGE, name="last").wait().state
    stream.flush()
    states = {receipt.state for receipt in receipts}
    status = stream.status()[0]
    stats = stream._pool.stats()
    stream.close()
    say(
        {
            "seen": seen,
            "last": last,
            "states": sorted(states),
            "waiting": status.waiting,
            "held": stats.slots - stats.free_slots,
        }
    )


if __name__ == "__main__":
    # As a module, not as "__main__": joblib would send copies of functions from there.
    getattr(importlib.import_module("worker_programs"), sys.argv[1])(*sys.argv[2:])
