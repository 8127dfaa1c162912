"""``openhcs-stream napari`` and its like: start a viewer, here or detached."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._logging import log_options
from openhcs_stream.cli._target import label
from openhcs_stream.discovery import detach, find, is_public, launch, viewer_file
from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.messages import Mode
    from openhcs_stream.viewer import Receiver

__all__ = ["add_arguments", "run", "viewer_options"]

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOP, _END = b"s", b"e"
#: Signals that come together are one: a terminal that closes sends two, an impatient user more.
_PATIENCE_S = 2.0


def add_arguments(parser: argparse.ArgumentParser, *, shows: bool = True) -> None:
    """Of the commands that start a viewer; `shows`: it has layers, and maybe a window."""
    parser.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help="also listen on this TCP port of this machine alone; 0 is any free one",
    )
    parser.add_argument(
        "--public",
        nargs="?",
        const="",
        metavar="HOST",
        help="let others connect to that port, encrypted, with a copy of the .viewer file that is "
        "written: from other machines, which call this one HOST (its number, if left out), or "
        "with HOST localhost all users of this machine",
    )
    parser.add_argument(
        "--new-keys",
        action="store_true",
        help="with --public: make new keys and a new token; older copies of the file are void",
    )
    parser.add_argument(
        "--detach", action="store_true", help="start it in the background and return when ready"
    )
    parser.add_argument("--name", help="what this one is called, to tell it from others")
    if shows:
        _add_show_arguments(parser)
    else:
        # What is recorded is on the disk and takes up no memory.
        parser.set_defaults(
            headless=True, stack=(), split=(), require=(), option=[], memory=None,
            when_full="refuse",
        )  # fmt: skip
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="with --detach: how long it may take to be ready (%(default)s)",
    )
    parser.add_argument(
        "--metrics-port",
        type=_port,
        metavar="N",
        help="serve metrics for Prometheus on this port of this machine alone; 0 is any free one",
    )
    parser.add_argument(
        "--json", action="store_true", help="print name, pid and addresses as one JSON object"
    )


def _add_show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="what images and lists may take up: 4G, 512M or 25%% of the machine's memory "
        "(by default 50%%)",
    )
    parser.add_argument(
        "--when-full",
        choices=("refuse", "oldest"),
        default="refuse",
        help="what happens to an image for which there is no room: it is refused, or the oldest "
        "time points make room (%(default)s)",
    )
    parser.add_argument("--headless", action="store_true", help="without a window")
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
    if arguments.new_keys and arguments.public is None:
        raise UsageError("--new-keys makes the keys of --public.", cure="Add --public.")
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
    from openhcs_stream.viewer import create, parse_memory, serve

    memory_nbytes = parse_memory(arguments.memory) if arguments.memory else None

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
            public=arguments.public,
            new_keys=arguments.new_keys,
            memory_nbytes=memory_nbytes,
            when_memory_full=arguments.when_full,
            on_ready=tell,
            alongside=_metrics(arguments.metrics_port),
        )
    return 0


def _metrics(
    port: int | None,
) -> Callable[[Receiver], contextlib.AbstractContextManager[object]] | None:
    """What serves metrics beside the viewer; None where nobody asked for them."""
    if port is None:
        return None
    from openhcs_stream import metrics

    def beside(receiver: Receiver) -> metrics.Exporter:
        exporter = metrics.serve(metrics.viewer_metrics(receiver.status), port=port)
        _log.info("metrics are at http://127.0.0.1:%d/metrics", exporter.port)
        return exporter

    return beside


def _start_detached(arguments: argparse.Namespace) -> int:
    options = [f"--{name}={','.join(values)}" for name, values in _component_lists(arguments)]
    options += [f"--option={name}={value}" for name, value in arguments.option]
    if arguments.headless:
        options.append("--headless")
    if arguments.public is not None:
        options.append(f"--public={arguments.public}" if arguments.public else "--public")
    if arguments.new_keys:
        options.append("--new-keys")
    if arguments.memory:
        options.append(f"--memory={arguments.memory}")
    options.append(f"--when-full={arguments.when_full}")
    if arguments.metrics_port is not None:
        options.append(f"--metrics-port={arguments.metrics_port}")
    options += log_options(arguments)
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
        if is_public(endpoint):
            facts["viewer_file"] = str(viewer_file(endpoint))
        print(json.dumps(facts), flush=True)
    else:
        addresses = " and ".join(endpoint.addresses)
        print(f"{label(endpoint)} is ready at {addresses} (pid {endpoint.pid})", flush=True)
        if is_public(endpoint):
            file = viewer_file(endpoint)
            print(
                f'Others connect("{file.name}") with a copy of {file}, which is as secret as a '
                "password.",
                flush=True,
            )


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
