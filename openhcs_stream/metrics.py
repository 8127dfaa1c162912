"""Metrics for Prometheus, of a worker's streams and of a viewer: the extra ``metrics``.

They are served at ``http://127.0.0.1:PORT/metrics``, or registered with a program's own registry::

    from openhcs_stream import metrics

    with metrics.serve(metrics.worker_metrics(), port=9465):
        work()

    prometheus_client.REGISTRY.register(metrics.worker_metrics())

=========================================================  ========  ============================
name                                                       kind      what
=========================================================  ========  ============================
``openhcs_stream_worker_items_total``                      counter   by stream, viewer and state:
                                                                     sent, received, displayed,
                                                                     failed, dropped
``openhcs_stream_worker_items_waiting``                    gauge     sent, not displayed yet
``openhcs_stream_worker_items_stuck``                      gauge     that wait for half a minute
``openhcs_stream_worker_oldest_item_age_seconds``          gauge     of what waits longest
``openhcs_stream_worker_stream_open``                      gauge     1, or 0 once it is closed
``openhcs_stream_viewer_items_total``                      counter   by viewer, name, stream, pid
                                                                     and state: received,
                                                                     displayed, failed, dropped
``openhcs_stream_viewer_bytes_total``                      counter   of the items received
``openhcs_stream_viewer_items_waiting``                    gauge     received, not displayed yet
``openhcs_stream_viewer_oldest_item_age_seconds``          gauge     of what waits longest
``openhcs_stream_viewer_streams``                          gauge     that are connected
``openhcs_stream_viewer_layers``                           gauge     that are shown
``openhcs_stream_viewer_memory_bytes``                     gauge     of the viewer's process
``openhcs_stream_viewer_uptime_seconds``                   gauge     since it was started
``openhcs_stream_viewer_info``                             gauge     1, with its version and pid
=========================================================  ========  ============================
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import UsageError, printable
from openhcs_stream.tracker import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from openhcs_stream.tracker import TrackerRegistry

__all__ = ["Exporter", "Metrics", "serve", "viewer_metrics", "worker_metrics"]

_PREFIX = "openhcs_stream_"
_STREAM = ("stream", "viewer")
_PEER = ("viewer", "name", "stream", "pid")
#: Characters of a label's value.
_MAX_LABEL = 200

#: One number with its labels, in the order of their names.
Sample = tuple[tuple[str, ...], float]


class Metrics:
    """What a registry of prometheus_client collects: metrics made anew at each look.

    Parameters
    ----------
    look : callable
        Gives (kind, name, help, label names, samples) of each metric; kind is "counter" or
        "gauge".
    """

    def __init__(
        self, look: Callable[[], Iterable[tuple[str, str, str, Sequence[str], Iterable[Sample]]]]
    ) -> None:
        self._look = look

    def collect(self) -> Iterator[Any]:
        """The metrics as they are now; prometheus_client calls this.

        Raises
        ------
        UsageError
            prometheus_client is not installed.
        """
        core = _client().core
        kinds = {"counter": core.CounterMetricFamily, "gauge": core.GaugeMetricFamily}
        for kind, name, about, labels, samples in self._look():
            family = kinds[kind](_PREFIX + name, about, labels=labels)
            # Two streams may have the same name: what they have in common is their sum.
            sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
            for values, number in samples:
                sums[tuple(printable(value, _MAX_LABEL) for value in values)] += number
            for values, number in sums.items():
                family.add_metric(values, number)
            yield family

    def describe(self) -> Iterator[Any]:
        """Nothing: names are known from `collect`; the package asks for this when registering."""
        return iter(())


def worker_metrics(trackers: TrackerRegistry | None = None) -> Metrics:
    """Metrics of all streams of this process.

    Parameters
    ----------
    trackers : TrackerRegistry or None
        Whose; None: this process's.
    """
    source = registry() if trackers is None else trackers

    def look() -> Iterator[tuple[str, str, str, Sequence[str], Iterable[Sample]]]:
        queues = [(queue, (queue.stream, queue.viewer)) for queue in source.status()]
        states = ("sent", "received", "displayed", "failed", "dropped")
        yield (
            "counter", "worker_items_total", "Items of a stream to a viewer.",
            (*_STREAM, "state"),
            [((*who, state), getattr(queue, state)) for queue, who in queues for state in states],
        )  # fmt: skip
        for name, about, number in (
            ("items_waiting", "Items sent and not displayed yet.", lambda queue: queue.waiting),
            ("items_stuck", "Items that wait for half a minute.", lambda queue: len(queue.stuck)),
            ("oldest_item_age_seconds", "Age of the item that waits longest.",
             lambda queue: queue.oldest_age_s),
            ("stream_open", "Streams that are open.", lambda queue: not queue.closed),
        ):  # fmt: skip
            samples = [(who, float(number(queue))) for queue, who in queues]
            yield "gauge", f"worker_{name}", about, _STREAM, samples

    return Metrics(look)


def viewer_metrics(status: Callable[[], Mapping[str, Any]]) -> Metrics:
    """Metrics of one running viewer.

    Parameters
    ----------
    status : callable
        `Receiver.status`.
    """

    def look() -> Iterator[tuple[str, str, str, Sequence[str], Iterable[Sample]]]:
        told = status()
        me = (str(told["viewer"]), str(told["name"]))
        living = list(told["streams"])
        # Those that ended stay for a while, so that their last items are seen.
        rows = [
            (row, (*me, str(row["name"]), str(row["pid"]))) for row in (*living, *told["ended"])
        ]
        states = ("received", "displayed", "failed", "dropped")
        yield (
            "counter", "viewer_items_total", "Items of a stream.", (*_PEER, "state"),
            [((*who, state), row[state]) for row, who in rows for state in states],
        )  # fmt: skip
        yield (
            "counter", "viewer_bytes_total", "Bytes of the items that were received.", _PEER,
            [(who, row["nbytes"]) for row, who in rows],
        )  # fmt: skip
        for key, name, about in (
            ("waiting", "items_waiting", "Items received and not displayed yet."),
            ("oldest_age_s", "oldest_item_age_seconds", "Age of the item that waits longest."),
        ):
            samples = [(who, row[key]) for row, who in rows]
            yield "gauge", f"viewer_{name}", about, _PEER, samples
        for name, about, number in (
            ("streams", "Streams that are connected.", len(living)),
            ("layers", "Layers that are shown.", told["layers"]),
            ("memory_bytes", "Memory of the viewer's process.", told["memory_nbytes"]),
            ("uptime_seconds", "Time since the viewer was started.", told["uptime_s"]),
        ):
            yield "gauge", f"viewer_{name}", about, _PEER[:2], [(me, number)]
        labels = (*_PEER[:2], "version", "pid")
        facts = (*me, str(told["version"]), str(told["pid"]))
        yield "gauge", "viewer_info", "The viewer that this is of.", labels, [(facts, 1)]

    return Metrics(look)


class Exporter:
    """Serves metrics until it is closed; made by `serve`. A context manager.

    Attributes
    ----------
    port : int
        The port on the loopback interface.
    """

    def __init__(self, server: Any, thread: Any) -> None:
        self.port: int = server.server_port
        self._server = server
        self._thread = thread

    def close(self) -> None:
        """Stop serving; more than once is the same as once."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(metrics: Metrics, *, port: int) -> Exporter:
    """Serve metrics at ``http://127.0.0.1:PORT/metrics``, on threads of their own.

    Parameters
    ----------
    metrics : Metrics
        `worker_metrics` or `viewer_metrics`.
    port : int
        0: any free one.

    Raises
    ------
    UsageError
        The port is taken, or prometheus_client is not installed.
    """
    client = _client()
    own = client.CollectorRegistry()
    own.register(metrics)
    try:
        server, thread = client.start_http_server(port, addr="127.0.0.1", registry=own)
    except OSError as error:
        raise UsageError(
            f"metrics can't be served at port {port}: {error.strerror or error}.",
            cure="Choose another port, or 0 for any free one.",
        ) from error
    return Exporter(server, thread)


def _client() -> Any:
    try:
        import prometheus_client
        import prometheus_client.core
    except ImportError as error:
        raise UsageError(
            "metrics need the package prometheus_client, which is not installed.",
            cure="Install it with: pip install 'openhcs-stream[metrics]'.",
        ) from error
    return prometheus_client
