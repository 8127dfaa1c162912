"""``openhcs-stream napari`` and its like: start a viewer, here or detached."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._target import label
from openhcs_stream.discovery import detach, find, launch
from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.messages import Mode

__all__ = ["add_arguments", "run", "viewer_options"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOP, _END = b"s", b"e"
#: Signals that come together are one: a terminal that closes sends two, an impatient user more.
_PATIENCE_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help="also listen on this TCP port of this machine alone; 0 is any free one",
    )
    parser.add_argument("--headless", action="store_true", help="without a window")
    parser.add_argument(
        "--detach", action="store_true", help="start it in the background and return when ready"
    )
    parser.add_argument("--name", help="what this one is called, to tell it from others")
    for mode, does in (
        ("stack", "are sliders"),
        ("split", "have a layer for each value"),
        ("require", "every image must have in its place"),
    ):
        parser.add_argument(
            f"--{mode}",
            type=_components,
            default=(),
            metavar="COMPONENT,...",
            help=f"components (well, site, channel, time, z, ...) that {does}",
        )
    parser.add_argument(
        "--option",
        action="append",
        type=_option,
        default=[],
        metavar="NAME=VALUE",
        help="an option of this kind of viewer, also as --NAME VALUE; more than once for more",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="with --detach: how long it may take to be ready (%(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print name, pid and addresses as one JSON object"
    )


def viewer_options(words: Sequence[str]) -> list[tuple[str, str]]:
    """What is no option of ours is one of the viewer: ``--fiji PATH`` is ``--option fiji=PATH``.

    Whether there is such a one only the viewer knows, which is not imported yet.
    """
    options = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise UsageError(f"unrecognized arguments: {word}.", cure="See --help.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(
                    f"unrecognized arguments: {word}.",
                    cure=f"See --help. An option of the viewer has a value: {word} VALUE.",
                )
            value = rest.pop(0)
        options.append((name, value))
    return options


def run(arguments: argparse.Namespace) -> int:
    # First of all: forking is for processes that have one thread, and numpy starts more.
    ready = detach()
    modes: dict[str, Mode] = dict.fromkeys(arguments.stack, "stack")
    both = sorted(set(modes) & set(arguments.split))
    if both:
        raise UsageError(
            f"{', '.join(both)} can't be stacked and split at once.",
            cure="Name each component in --stack or in --split.",
        )
    modes |= dict.fromkeys(arguments.split, "split")
    if arguments.detach:
        return _start_detached(arguments)
    from openhcs_stream.viewer import create, serve

    def tell(endpoint: Endpoint) -> None:
        _print(endpoint, as_json=arguments.json)
        ready()

    kind: str = arguments.command
    viewer = create(
        kind,
        headless=arguments.headless,
        title=arguments.name or kind,
        options=dict(arguments.option),
    )
    with _stopped_by_signals(viewer.stop):
        serve(
            viewer,
            name=arguments.name,
            port=arguments.port,
            modes=modes,
            required=arguments.require,
            headless=arguments.headless,
            on_ready=tell,
        )
    return 0


def _start_detached(arguments: argparse.Namespace) -> int:
    options = [f"--{name}={','.join(values)}" for name, values in _component_lists(arguments)]
    options += [f"--option={name}={value}" for name, value in arguments.option]
    if arguments.headless:
        options.append("--headless")
    if getattr(arguments, "debug", False):
        options.append("--debug")
    kind, name, port = arguments.command, arguments.name, arguments.port or None
    if arguments.port == 0:
        options.append("--port=0")
    runs_already = find(kind, name=name, port=port) is not None
    endpoint = launch(kind, timeout_s=arguments.timeout, name=name, port=port, options=options)
    if runs_already:
        print(f"{label(endpoint)} runs already; it was left as it is.", file=sys.stderr)
    _print(endpoint, as_json=arguments.json)
    return 0


def _component_lists(arguments: argparse.Namespace) -> list[tuple[str, tuple[str, ...]]]:
    lists = {
        "stack": arguments.stack,
        "split": arguments.split,
        "require": arguments.require,
    }
    return [(name, values) for name, values in lists.items() if values]


def _print(endpoint: Endpoint, *, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {
            "viewer": endpoint.viewer,
            "name": endpoint.name,
            "pid": endpoint.pid,
            "addresses": list(endpoint.addresses),
        }
        if endpoint.port is not None:
            facts["port"] = endpoint.port
        print(json.dumps(facts), flush=True)
    else:
        addresses = " and ".join(endpoint.addresses)
        print(f"{label(endpoint)} is ready at {addresses} (pid {endpoint.pid})", flush=True)


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first signal to end; one that comes much later ends the process at once.

    `stop` is called on a thread of its own: a handler interrupts the viewer's own thread anywhere,
    and could wait for a lock that this very thread holds. Handlers run between two steps of
    Python code, which every viewer takes at each tick. (`signal.set_wakeup_fd`, which needs no
    such step, is napari's own while its window is open.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's alone
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    first = 0.0

    def handle(number: int, _: object) -> None:
        nonlocal first
        now = time.monotonic()
        if not first:
            first = now
            theirs.send(_STOP)
        elif now - first > _PATIENCE_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def wait() -> None:
        if ours.recv(1) == _STOP:
            stop()

    thread = threading.Thread(target=wait, name="signals", daemon=True)
    thread.start()
    old = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if not first:
            theirs.send(_END)
        thread.join(5.0)
        ours.close()
        theirs.close()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use 0 (any free one) to 65535")
    return int(text)


def _components(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name in it")
    return names


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    return name, value
