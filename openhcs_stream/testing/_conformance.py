"""What every viewer does: a suite that the author of a viewer runs by subclassing it.

The whole way is real: a stream on a thread of its own sends through shared memory or ZeroMQ to a
receiver, which feeds the viewer. Whether the right thing stands on the screen is not asked of our
API but of *probes*, which the author writes against the viewer's own objects.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from openhcs_stream.errors import InvalidItem, ItemFailed, Refused, StreamError
from openhcs_stream.messages import (
    DTYPES,
    MAJOR,
    MINOR,
    ArenaOffer,
    Bye,
    Hello,
    Item,
    Items,
    Kind,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    Message,
    Part,
    PlaceValue,
    Refusal,
    Welcome,
    decode,
    encode,
)
from openhcs_stream.stream import Receipt, Stream, connect
from openhcs_stream.transport import (
    Lane,
    LaneClosed,
    ZmqLane,
    connect_unix,
    has_unix_lanes,
    machine_id,
)
from openhcs_stream.viewer import TICK_S, Receiver, SceneLayer, Viewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Array = npt.NDArray[Any]
    Place = Mapping[str, PlaceValue]

__all__ = ["ViewerTests"]

T = TypeVar("T")

_DTYPES = sorted(DTYPES)
_NOWHERE: Final[Place] = {}
_HEIGHT, _WIDTH = 24, 40
_RUNTIME_VARIABLE = "OPENHCS_STREAM_RUNTIME_DIR"


@dataclass
class _Stand:
    """One viewer with its receiver, for all tests of a class."""

    owner: ViewerTests
    viewer: Viewer
    receiver: Receiver
    threads: list[threading.Thread]
    folder: str

    @classmethod
    def set_up(cls, owner: ViewerTests) -> _Stand:
        folder = tempfile.mkdtemp(prefix="ohs-")
        viewer = owner.make_viewer()
        receiver = Receiver(viewer, publish=False)
        before = set(threading.enumerate())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(_RUNTIME_VARIABLE, folder)
            receiver.start()
        threads = [each for each in threading.enumerate() if each not in before]
        return cls(owner, viewer, receiver, threads, folder)

    @property
    def is_alive(self) -> bool:
        """Whether the receiver still receives."""
        return all(thread.is_alive() for thread in self.threads)

    def take_down(self) -> None:
        self.receiver.close()
        self.viewer.stop()
        self.owner.close_viewer(self.viewer)
        shutil.rmtree(self.folder)


class ViewerTests:
    """Subclass it, write the probes, and pytest runs the suite on your viewer.

    Every probe is called on the viewer's own thread, which is the test's. A layer is named by its
    title, ``"source / name [values that it was split by]"``, as `SceneLayer.title` has it. Probes
    read what the viewer itself holds or draws, not what it was given.

    Attributes
    ----------
    viewer : Viewer
        The viewer under test: one for the whole class, cleared before each test.
    receiver : Receiver
        It serves the viewer.
    address : str
        For `connect`.

    Examples
    --------
    ::

        class TestMine(ViewerTests):
            def make_viewer(self):
                return MyViewer()

            def pixels_on_screen(self, title):
                return self.viewer.window(title).current_plane()

            ...  # the other probes
    """

    #: Whether `Viewer.screenshot` gives a picture; where not, it must refuse.
    has_screen: ClassVar[bool] = False
    #: Whether layers lie above each other in one view, so that `layer_titles` has an order.
    has_layer_order: ClassVar[bool] = True
    #: Whether a colour image keeps its fourth sample, alpha.
    has_alpha: ClassVar[bool] = True
    #: Seconds that any one wait of a test may take.
    deadline_s: ClassVar[float] = 30.0

    viewer: Any
    receiver: Receiver
    address: str

    _stand: ClassVar[_Stand | None] = None

    # --- written by the viewer's author -------------------------------------------------------

    def make_viewer(self) -> Viewer:
        """Make the viewer under test, not running: this suite ticks it (see `pump`)."""
        raise NotImplementedError

    def close_viewer(self, viewer: Any) -> None:
        """Let go of a viewer that was stopped."""

    def pump(self) -> None:
        """Let the viewer do one round of its loop: a tick, and whatever draws its result."""
        self.receiver.tick()

    def layer_titles(self) -> list[str]:
        """Titles of all layers, the lowest first."""
        raise NotImplementedError

    def native_layer(self, title: str) -> object:
        """Give the viewer's own object for a layer, to see whether it stays the same."""
        raise NotImplementedError

    def go_to(self, place: Place) -> None:
        """Move the sliders to the place; components that are not named stay."""
        raise NotImplementedError

    def pixels_on_screen(self, title: str) -> npt.NDArray[Any]:
        """Give the plane of a layer that is in view: (Y, X) or (Y, X, S), values as they are."""
        raise NotImplementedError

    def scale_of(self, title: str) -> tuple[float, ...]:
        """Give the size of a pixel of a layer: (..., Y, X)."""
        raise NotImplementedError

    def unit_of(self, title: str) -> str | None:
        """Give the unit of `scale_of` as the viewer spells it; None: this viewer has no units."""
        return None

    def outlines_of(self, title: str) -> list[npt.NDArray[Any]]:
        """Give the ROIs that are in view, in order: (N, 2) vertices, y and x from pixel centres."""
        raise NotImplementedError

    def points_of(self, title: str) -> npt.NDArray[Any]:
        """Give the points that are in view: (N, 2), y and x in pixels."""
        raise NotImplementedError

    def tracks_of(self, title: str) -> npt.NDArray[Any]:
        """Give the tracks of a layer: (N, 4), track number, time, y, x, in the order sent."""
        raise NotImplementedError

    def shown_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Tell what the viewer makes of a type; the values must stay as they are."""
        return dtype

    def holds(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Tell of each value whether the viewer holds it exactly; others it must refuse."""
        return np.ones(values.shape, np.bool_)

    # --- for the tests, also those of a subclass ----------------------------------------------

    @pytest.fixture(autouse=True)
    def _clean_stand(self) -> Iterator[None]:
        """One viewer for all tests of the class, empty before each; a new one where it broke."""
        stand = self._set_up()
        self.viewer, self.receiver = stand.viewer, stand.receiver
        assert self.receiver.endpoint is not None
        self.address = self.receiver.endpoint.addresses[0]
        self.pump()
        self.receiver.clear()
        self.pump()
        yield
        assert self._stand is None or self._stand.is_alive, "the receiver's thread has ended"

    @classmethod
    def _set_up(cls) -> _Stand:
        if cls._stand is not None and not cls._stand.is_alive:
            cls._take_down()
        if cls._stand is None:
            cls._stand = _Stand.set_up(cls())
        return cls._stand

    @classmethod
    def teardown_class(cls) -> None:
        """Let go of the viewer."""
        cls._take_down()

    @classmethod
    def _take_down(cls) -> None:
        stand, cls._stand = cls._stand, None
        if stand is not None:
            stand.take_down()

    def drive(self, work: Callable[[], T], what: str = "the sender") -> T:
        """Run `work` on a thread and pump the viewer until it has ended; its result.

        Raises
        ------
        BaseException
            What `work` raised.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # raised on the test's thread below
                errors.append(error)

        thread = threading.Thread(target=run, name="sender under test", daemon=True)
        thread.start()
        deadline = time.monotonic() + self.deadline_s
        while thread.is_alive():
            if time.monotonic() > deadline:
                frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001
                stack = "".join(traceback.format_stack(frame)) if frame else "no stack"
                pytest.fail(f"{what} did not end within {self.deadline_s:g} s; it is at\n{stack}")
            self.pump()
            thread.join(0.002)
        self.pump()
        if errors:
            raise errors[0]
        return results[0]

    def send(self, work: Callable[[Stream], T], **options: Any) -> T:
        """Run ``work(stream)`` on a thread until all that it sent is displayed; its result.

        `options` are those of `connect`.
        """

        def run() -> T:
            options.setdefault("name", "conformance")
            with connect(self.address, timeout_s=self.deadline_s, **options) as stream:
                return work(stream)

        return self.drive(run)

    def send_image(self, image: Any, *, source: str = "", **look: Any) -> Receipt:
        """Send one image on a stream of its own, until it is displayed."""
        return self.send(lambda stream: stream.image(image, **look), source=source)

    def layer(
        self, name: str, place: Place = _NOWHERE, *, kind: Kind = "image", source: str = ""
    ) -> SceneLayer:
        """Find the layer that shows `name` at `place`, to have its title and components."""
        layers = self.receiver.scene.layers
        for key, layer in layers.items():
            wanted = (key.source, key.name, key.kind) == (source, name, kind)
            if wanted and all(place.get(component) == value for component, value in key.split):
                return layer
        raise AssertionError(
            f"no layer shows {kind} {name!r} at {place}; there are "
            f"{[layer.title for layer in layers.values()]}"
        )

    def look_at(self, layer: SceneLayer, place: Place) -> str:
        """Move the sliders to `place`, as far as `layer` has such; gives the layer's title."""
        self.go_to({name: place[name] for name in layer.components if name in place})
        self.pump()
        return layer.title

    def assert_shown(
        self,
        sent: Any,
        name: str,
        place: Place = _NOWHERE,
        *,
        kind: Kind = "image",
        source: str = "",
    ) -> None:
        """Look whether exactly `sent`, one plane, is in view at `place`: values, shape, dtype."""
        title = self.look_at(self.layer(name, place, kind=kind, source=source), place)
        shown = np.asarray(self.pixels_on_screen(title))
        expected = np.asarray(sent)
        expected = expected.astype(expected.dtype.newbyteorder("="))
        if expected.ndim < 2:
            expected = expected.reshape(1, -1)
        assert shown.shape == expected.shape, f"{title} at {place}"
        wanted = self.shown_dtype(expected.dtype)
        if expected.dtype == np.bool_ or (kind == "labels" and wanted == expected.dtype):
            assert shown.dtype.kind in "biu"  # viewers may have no bool, and labels of one type
        else:  # a wider one of the same kind holds the same values
            assert shown.dtype.kind == wanted.kind, f"{title} at {place}"
            assert shown.dtype.itemsize >= wanted.itemsize, f"{title} at {place}"
        np.testing.assert_array_equal(shown, expected, err_msg=f"{title} at {place}")

    def _held(self, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Random values over the whole range of a dtype, as far as the viewer holds them."""
        values = _values(dtype, shape)
        while not (held := self.holds(values)).all():
            values[~held] = np.trunc(values[~held] / 2).astype(values.dtype)
        return values

    # --- one image ----------------------------------------------------------------------------

    @pytest.fixture(params=[True, False], ids=["shared memory", "ZeroMQ"])
    def side_lane(self, request: pytest.FixtureRequest) -> bool:
        """Both ways that pixels take."""
        return bool(request.param)

    def test_an_image_stands_there_pixel_for_pixel(self, side_lane: bool) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))
        receipt = self.send(lambda s: s.image(image, name="raw"), side_lane=side_lane)
        assert receipt.state == "displayed"
        assert self.layer_titles() == ["raw"]
        self.assert_shown(image, "raw")

    def test_the_status_tells_which_way_pixels_take(self, side_lane: bool) -> None:
        expected = side_lane and has_unix_lanes()

        def work(stream: Stream) -> Any:
            deadline = time.monotonic() + self.deadline_s
            while True:  # the side lane joins a session that has begun
                told = stream.request("status")["streams"]
                [row] = [each for each in told if each["name"] == "conformance"]
                if row["shared_memory"] is expected or time.monotonic() > deadline:
                    return row["shared_memory"]

        assert self.send(work, side_lane=side_lane) is expected

    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_any_memory_layout(self, dtype: str) -> None:
        sent = dict(_layouts(self._held(dtype, (2 * _HEIGHT, 3 * _WIDTH))))

        def work(stream: Stream) -> None:
            for name, array in sent.items():
                stream.image(array, name=name)

        self.send(work)
        for name, array in sent.items():
            self.assert_shown(array, name)

    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_zero_to_eight_dimensions(self, dtype: str) -> None:
        shapes = [(), (7,), *((2,) * n + (5, 7) for n in range(7))]
        sent = {f"{len(shape)}-d": self._held(dtype, shape) for shape in shapes}

        def work(stream: Stream) -> None:
            for name, array in sent.items():
                stream.image(array, name=name)

        self.send(work)
        for name, array in sent.items():
            letters = "EBATCZ"[6 - max(array.ndim - 2, 0) :]
            for index in _corners(array.shape[: len(letters)]):
                place = {_component(x): i for x, i in zip(letters, index, strict=True)}
                self.assert_shown(array[index], name, place)

    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_extreme_values(self, dtype: str) -> None:
        image = self._held(dtype, (_HEIGHT, _WIDTH))
        kind = np.dtype(dtype).kind
        if kind in "iu":
            limits = np.iinfo(dtype)
            image[0, :2] = limits.min, limits.max
        elif kind == "f":
            image[0, :3] = np.nan, np.inf, -np.inf
            image[0, 3] = 0.1  # of which each type has its own
        if not self.holds(image).all():
            with pytest.raises(ItemFailed, match="extreme"):
                self.send_image(image, name="extreme")
            assert self.layer_titles() == []
            return
        self.send_image(image, name="extreme")
        self.assert_shown(image, "extreme")

    @pytest.mark.parametrize("samples", [3, 4], ids=["RGB", "RGBA"])
    @pytest.mark.parametrize("axes", [None, "YXS"])
    def test_colour(self, samples: int, axes: str | None) -> None:
        image = _values("|u1", (_HEIGHT, _WIDTH, samples))
        self.send_image(image, name="colour", axes=axes)
        self.assert_shown(image if self.has_alpha else image[..., :3], "colour")

    @pytest.mark.parametrize("dtype", ["|b1", "|u1", "<u2", "<i4", "<u4", "<i8"])
    def test_labels_of_any_whole_type(self, dtype: str) -> None:
        labels = _values(dtype, (_HEIGHT, _WIDTH))
        if dtype != "|b1":
            labels = (labels & 0x7F).astype(dtype)
        self.send(lambda s: s.labels(labels, name="nuclei"))
        self.assert_shown(labels, "nuclei", kind="labels")

    def test_an_allocated_array(self) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))

        def work(stream: Stream) -> None:
            array = stream.allocate(image.shape, image.dtype)
            array[:] = image
            stream.image(array, name="allocated")

        self.send(work)
        self.assert_shown(image, "allocated")

    def test_an_array_that_is_larger_than_the_memory_for_it(self, side_lane: bool) -> None:
        volume = _values("<u2", (5, 512, 512))
        self.send(
            lambda s: s.image(volume, name="large"), quota_nbytes=4 << 20, side_lane=side_lane
        )
        for z in range(5):
            self.assert_shown(volume[z], "large", {"z": z})

    def test_the_sender_may_write_over_its_array_at_once(self) -> None:
        sent = [_values("<u2", (_HEIGHT, _WIDTH), seed=z) for z in range(20)]

        def work(stream: Stream) -> None:
            array = np.empty_like(sent[0])
            for z, each in enumerate(sent):
                array[:] = each
                stream.image(array, name="reused", place={"z": z})

        self.send(work)
        for z, each in enumerate(sent):
            self.assert_shown(each, "reused", {"z": z})

    def test_bad_input_is_refused_and_the_next_call_works(self) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))

        def work(stream: Stream) -> None:
            for bad in (np.zeros((2, 2), complex), np.empty((0, 3)), np.array([None])):
                with pytest.raises(InvalidItem):
                    stream.image(bad, name="raw")
            stream.image(image, name="raw")

        self.send(work)
        assert self.layer_titles() == ["raw"]
        self.assert_shown(image, "raw")

    # --- places -------------------------------------------------------------------------------

    def test_a_plate_arrives_in_any_order(self) -> None:
        places: list[Place] = [
            dict(zip(("well", "site", "time", "z"), values, strict=True))
            for values in itertools.product(("A2", "A10"), (1, 2), (0, 7), (1, 2, 3))
        ]
        sent = [(p, _values("<u2", (_HEIGHT, _WIDTH), seed=i)) for i, p in enumerate(places)]
        random.Random(3).shuffle(sent)

        def work(stream: Stream) -> None:
            for place, image in sent:
                stream.image(image, name="raw", place=place)

        self.send(work)
        assert self.layer_titles() == ["raw"]
        for place, image in sent:
            self.assert_shown(image, "raw", place)

    def test_channels_keep_apart(self) -> None:
        sent = {
            (channel, z): _values("<u2", (_HEIGHT, _WIDTH), seed=z + 5 * len(channel))
            for channel in ("DAPI", "GFP", "Cy5.5")
            for z in (1, 2)
        }

        def work(stream: Stream) -> None:
            for (channel, z), image in sent.items():
                stream.image(image, name="raw", place={"channel": channel, "z": z})

        self.send(work)
        if "channel" in self.viewer.splits:
            assert sorted(self.layer_titles()) == ["raw [Cy5.5]", "raw [DAPI]", "raw [GFP]"]
        for (channel, z), image in sent.items():
            self.assert_shown(image, "raw", {"channel": channel, "z": z})

    def test_a_component_can_be_split(self) -> None:
        sent = {site: _values("|u1", (_HEIGHT, _WIDTH), seed=site) for site in (1, 2, 3)}

        def work(stream: Stream) -> None:
            for site, image in sent.items():
                stream.image(image, name="raw", place={"site": site})

        self.send(work, modes={"site": "split"})
        assert sorted(self.layer_titles()) == ["raw [site 1]", "raw [site 2]", "raw [site 3]"]
        for site, image in sent.items():
            self.assert_shown(image, "raw", {"site": site})

    def test_a_component_can_be_stacked_that_is_split_by_default(self) -> None:
        sent = {name: _values("|u1", (_HEIGHT, _WIDTH), seed=len(name)) for name in ("a", "bb")}

        def work(stream: Stream) -> None:
            for name, image in sent.items():
                stream.image(image, name="raw", place={"channel": name})

        self.send(work, modes={"channel": "stack"})
        assert self.layer_titles() == ["raw"]
        for name, image in sent.items():
            self.assert_shown(image, "raw", {"channel": name})

    def test_sources_and_names_keep_apart(self) -> None:
        for number, source in enumerate(("plate 1", "plate 2")):
            image = _values("|u1", (_HEIGHT, _WIDTH), seed=number)
            self.send_image(image, name="raw", source=source)
        assert sorted(self.layer_titles()) == ["plate 1 / raw", "plate 2 / raw"]
        for number, source in enumerate(("plate 1", "plate 2")):
            image = _values("|u1", (_HEIGHT, _WIDTH), seed=number)
            self.assert_shown(image, "raw", source=source)

    def test_a_value_is_inserted_before_those_that_are_there(self) -> None:
        sent = {z: _values("<u2", (_HEIGHT, _WIDTH), seed=z) for z in (5, 9, 1, 7)}
        self.send_image(sent[5], name="raw", place={"z": 5})
        native = self.native_layer("raw")
        for z in (9, 1, 7):
            self.send_image(sent[z], name="raw", place={"z": z})
            assert self.native_layer("raw") is native
        for z, image in sent.items():
            self.assert_shown(image, "raw", {"z": z})

    def test_a_component_that_is_new_to_the_others(self) -> None:
        """A layer without a slider is the same at all of its values."""
        still, moving = _values("|u1", (_HEIGHT, _WIDTH)), _values("|u1", (2, _HEIGHT, _WIDTH))
        self.send_image(still, name="still")
        self.send_image(moving, name="moving", axes="TYX")
        for t in (0, 1):
            self.assert_shown(moving[t], "moving", {"time": t})
            self.assert_shown(still, "still")

    def test_the_same_place_again_is_an_update(self) -> None:
        sent = [_values("<u2", (_HEIGHT, _WIDTH), seed=i) for i in range(10)]
        self.send_image(sent[0], name="live", place={"well": "A01"})
        native = self.native_layer("live")
        for image in sent[1:]:
            self.send_image(image, name="live", place={"well": "A01"})
            assert self.native_layer("live") is native
            assert self.layer_titles() == ["live"]
            self.assert_shown(image, "live", {"well": "A01"})

    def test_an_update_may_have_another_form(self) -> None:
        for dtype, shape in (("|u1", (8, 9)), ("<f4", (8, 9)), ("<u2", (30, 5))):
            image = _values(dtype, shape)
            self.send_image(image, name="live")
            self.assert_shown(image, "live")

    def test_planes_of_unequal_size(self) -> None:
        small, large = _values("<u2", (8, 30)), _values("<u2", (20, 10), seed=1)

        def work(stream: Stream) -> None:
            stream.image(small, name="raw", place={"site": 1})
            stream.image(large, name="raw", place={"site": 2})

        self.send(work)
        layer = self.layer("raw")
        for site, image in ((1, small), (2, large)):
            shown = np.asarray(self.pixels_on_screen(self.look_at(layer, {"site": site})))
            height, width = image.shape
            np.testing.assert_array_equal(shown[:height, :width], image)
            assert not shown[height:].any()
            assert not shown[:, width:].any()

    def test_a_place_where_nothing_came_is_dark(self) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))

        def work(stream: Stream) -> None:
            stream.image(image, name="raw", place={"well": "A01", "z": 1})
            stream.image(image, name="raw", place={"well": "A02", "z": 2})

        self.send(work)
        self.assert_shown(image, "raw", {"well": "A02", "z": 2})
        self.assert_shown(np.zeros_like(image), "raw", {"well": "A01", "z": 2})
        self.assert_shown(image, "raw", {"well": "A01", "z": 1})

    @pytest.mark.parametrize("axes", ["ZYX", "CZYX", "TCZYX", "ZCYX", "XYZ", "TYXS"])
    def test_axes_of_the_array_itself(self, axes: str) -> None:
        shape = tuple({"Y": 8, "X": 9, "S": 3}.get(letter, 2) for letter in axes)
        array = _values("|u1", shape)
        self.send_image(array, name="raw", axes=axes, place={"well": "B03"})
        letters = [letter for letter in axes if letter not in "YXS"]
        order = [axes.index(letter) for letter in letters]
        order += [axes.index(letter) for letter in "YXS" if letter in axes]
        planes = array.transpose(order)
        for index in itertools.product(*(range(2) for _ in letters)):
            place = {_component(x): i for x, i in zip(letters, index, strict=True)}
            self.assert_shown(planes[index], "raw", {"well": "B03", **place})

    def test_planes_join_an_array_of_the_same_name(self) -> None:
        volume, late = _values("<u2", (3, 8, 9)), _values("<u2", (8, 9), seed=9)

        def work(stream: Stream) -> None:
            stream.image(volume, name="raw", axes="ZYX")
            stream.image(late, name="raw", place={"z": 5})
            stream.image(late, name="raw", place={"z": 1})

        self.send(work)
        assert self.layer_titles() == ["raw"]
        for z, plane in ((0, volume[0]), (1, late), (2, volume[2]), (5, late)):
            self.assert_shown(plane, "raw", {"z": z})

    # --- looks --------------------------------------------------------------------------------

    def test_labels_lie_above_images_and_outlines_above_labels(self) -> None:
        if not self.has_layer_order:
            pytest.skip("the layers of this viewer do not lie above each other")
        image = _values("<u2", (_HEIGHT, _WIDTH))

        def work(stream: Stream) -> None:
            stream.rois([_TRIANGLE], name="outlines")
            stream.labels(image, name="nuclei")
            stream.image(image, name="raw")
            stream.image(image, name="filtered")

        for _ in range(2):  # the second time all of them are there already
            self.send(work)
            titles = self.layer_titles()
            assert titles[2:] == ["nuclei", "outlines"]
            assert sorted(titles[:2]) == ["filtered", "raw"]

    def test_pixels_have_their_size(self) -> None:
        image = _values("<u2", (2, 8, 9))

        def work(stream: Stream) -> None:
            stream.image(image[0], name="plane", pixel_size=(0.5, 0.25))
            stream.labels(image[0], name="nuclei")
            stream.image(image, name="volume", axes="ZYX", pixel_size=(2.0, 0.5, 0.5))

        self.send(work, pixel_size=0.325, unit="um")
        assert self.scale_of("plane")[-2:] == pytest.approx((0.5, 0.25))
        assert self.scale_of("nuclei")[-2:] == pytest.approx((0.325, 0.325))
        assert self.scale_of("volume")[-2:] == pytest.approx((0.5, 0.5))
        for title in ("plane", "nuclei", "volume"):
            unit = self.unit_of(title)
            assert unit is None or unit.lower() in _MICROMETRE

    def test_nothing_changes_where_only_pixels_do(self) -> None:
        self.send_image(_values("|u1", (8, 9)), name="raw", pixel_size=0.5)
        scale = self.scale_of("raw")
        self.send_image(_values("|u1", (8, 9), seed=1), name="raw", pixel_size=0.5)
        assert self.scale_of("raw") == scale

    # --- outlines, points, tracks -------------------------------------------------------------

    def test_outlines_have_their_vertices(self, side_lane: bool) -> None:
        sent = [_TRIANGLE, _TRIANGLE[::-1] + 5, _SQUARE]
        self.send(lambda s: s.rois(sent, name="outlines"), side_lane=side_lane)
        _assert_outlines(self.outlines_of("outlines"), sent)

    def test_outlines_are_replaced_and_cleared(self) -> None:
        self.send(lambda s: s.rois([_TRIANGLE, _SQUARE], name="outlines"))
        self.send(lambda s: s.rois([_SQUARE + 1], name="outlines"))
        _assert_outlines(self.outlines_of("outlines"), [_SQUARE + 1])
        self.send(lambda s: s.rois([], name="outlines"))
        assert self.outlines_of("outlines") == []

    def test_outlines_are_seen_at_their_place_only(self) -> None:
        image = _values("|u1", (_HEIGHT, _WIDTH))
        sent: dict[str, list[Array]] = {"A01": [_TRIANGLE], "A02": [_SQUARE, _TRIANGLE + 3]}

        def work(stream: Stream) -> None:
            for well, outlines in sent.items():
                stream.image(image, name="raw", place={"well": well})
                stream.rois(outlines, name="outlines", place={"well": well})
            stream.image(image, name="raw", place={"well": "A03"})

        self.send(work)
        layer = self.layer("outlines", kind="rois")
        for well in ("A02", "A01", "A02"):
            _assert_outlines(self.outlines_of(self.look_at(layer, {"well": well})), sent[well])
        assert self.outlines_of(self.look_at(layer, {"well": "A03"})) == []

    def test_points_at_their_place(self) -> None:
        sent = {z: np.random.default_rng(z).uniform(0, 20, (4 + z, 2)) for z in (0, 1)}

        def work(stream: Stream) -> None:
            for z, points in sent.items():
                stream.points(points, name="spots", place={"z": z})

        self.send(work)
        layer = self.layer("spots", kind="points")
        for z, points in sent.items():
            shown = np.asarray(self.points_of(self.look_at(layer, {"z": z})))
            np.testing.assert_allclose(shown, points)

    def test_tracks(self) -> None:
        rows = [(n, t, 3.0 * n + t, 2.0 * t) for n in (1, 2) for t in range(4)]
        sent = np.array(rows, np.float64)
        image = _values("|u1", (4, _HEIGHT, _WIDTH))

        def work(stream: Stream) -> None:
            stream.image(image, name="movie", axes="TYX")
            stream.tracks(sent, name="paths")

        self.send(work)
        np.testing.assert_allclose(np.asarray(self.tracks_of("paths")), sent)

    def test_tracks_can_be_read(self) -> None:
        rows = [(n, t, 0.5 * t, n % 7 + t, 2.0 * t) for n in (7, 2**40) for t in range(4)]
        sent = np.array(rows, np.float64)
        image = _values("|u1", (4, _HEIGHT, _WIDTH))

        def work(stream: Stream) -> list[Array]:
            for well in ("A01", "A02"):
                place = {"well": well}
                stream.image(image, name="movie", axes="TYX", place=place)
                stream.tracks(sent[:, [0, 1, 3, 4]], name="flat", place=place, pixel_size=0.5)
                stream.tracks(sent + 1, name="deep", place=place, pixel_size=(2.0, 0.5, 0.5))
            stream.flush()
            with pytest.raises(Refused, match="is at 2 places"):
                stream.get_tracks(on="flat")
            with pytest.raises(Refused, match="has no tracks 'movie'"):
                stream.get_tracks(on="movie")
            return [stream.get_tracks(on=name, place={"well": "A02"}) for name in ("flat", "deep")]

        flat, deep = self.send(work)
        np.testing.assert_array_equal(flat, sent[:, [0, 1, 3, 4]], strict=True)
        np.testing.assert_array_equal(deep, sent + 1, strict=True)

    # --- what goes wrong ----------------------------------------------------------------------

    def test_an_item_that_can_not_be_shown_leaves_the_others_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))
        show_layer = self.viewer.show_layer

        def show(layer: SceneLayer, arrived: Sequence[Any]) -> None:
            if layer.key.name == "bad":
                raise RuntimeError("a fault in the viewer")
            show_layer(layer, arrived)

        def work(stream: Stream) -> list[Receipt]:
            with stream.batch():
                receipts = [stream.image(image, name=name) for name in ("one", "bad", "two")]
            with pytest.raises(ItemFailed, match="a fault in the viewer") as caught:
                stream.flush()
            assert len(caught.value.failures) == 1
            return receipts

        with monkeypatch.context() as patch:
            patch.setattr(self.viewer, "show_layer", show)
            one, bad, two = self.send(work)
        assert (one.state, bad.state, two.state) == ("displayed", "failed", "displayed")
        assert "a fault in the viewer" in bad.reason
        self.assert_shown(image, "one")
        self.assert_shown(image, "two")
        # A viewer that has recovered shows it the next time.
        self.send_image(image, name="bad")
        self.assert_shown(image, "bad")

    def test_a_layer_does_not_mix_grey_and_colour(self) -> None:
        grey, colour = _values("|u1", (8, 9)), _values("|u1", (8, 9, 3))
        self.send_image(grey, name="raw")
        with pytest.raises(ItemFailed, match="raw"):
            self.send_image(colour, name="raw")
        self.assert_shown(grey, "raw")

    @pytest.mark.parametrize("name", ["text", "JSON", "cut off", "other major", "no greeting"])
    def test_nonsense_is_survived(self, name: str) -> None:
        hello = _hello()
        frame = {
            "text": b"\x93hello, are you there?",
            "JSON": b'{"type": 3, "images": "none"}',
            "cut off": encode(hello)[:-7],
            "other major": encode(_hello(major=MAJOR + 1)),
            "no greeting": encode(Items(())),
        }[name]
        with ZmqLane.connect(self.address) as lane:
            lane.send(frame)
            if name != "JSON":  # it is no message of ours, so that nobody would read an answer
                told = self.drive(lambda: _receive(lane, self.deadline_s))
                if name == "no greeting":  # it may be that of lanes that are no more
                    assert isinstance(told, Bye)
                    assert told.why == "lost"
                else:
                    assert isinstance(told, Refusal)
                if isinstance(told, Refusal) and name == "other major":
                    assert f"{MAJOR + 1}.{MINOR}" in told.what
                    assert f"{MAJOR}.{MINOR}" in told.what
        self.test_an_image_stands_there_pixel_for_pixel(side_lane=True)

    @pytest.mark.skipif(not has_unix_lanes(), reason="this system has no side lanes")
    @pytest.mark.parametrize(
        "name",
        ["text", "wrong key", "no layer", "no descriptor", "no arena", "not sealed", "outside"],
    )
    def test_nonsense_on_the_side_lane_is_survived(self, name: str) -> None:
        hello = _hello()
        with ZmqLane.connect(self.address) as control, contextlib.ExitStack() as stack:
            control.send(encode(hello))
            welcome = self.drive(lambda: _receive(control, self.deadline_s))
            assert isinstance(welcome, Welcome)
            lane = stack.enter_context(connect_unix(welcome.lane))
            key = "guess" if name == "wrong key" else welcome.key
            file = stack.enter_context(tempfile.TemporaryFile())
            file.truncate(4096)
            if name == "text":
                lane.send(b"hello, are you there?")
            else:
                lane.send(encode(LaneOpened(hello.session, key)))
            layer = LayerDeclared(0, LayerSpec("image", "raw", "X"))
            item = Item(0, 0, (), (4096,), "|u1", 4096, (Part(0, 0, 4096, 1),))
            match name:
                case "no layer":
                    lane.send(encode(Items((item,))))
                case "no descriptor":
                    lane.send(encode(ArenaOffer(0, 4096)))
                case "no arena":
                    lane.send(encode(layer))
                    lane.send(encode(Items((item,))))
                case "not sealed":
                    lane.send(encode(ArenaOffer(0, 4096)), fds=(file.fileno(),))
                case "outside":
                    lane.send(encode(layer), fds=(file.fileno(),))
            self.drive(lambda: _to_the_end(lane, self.deadline_s))
        self.test_an_image_stands_there_pixel_for_pixel(side_lane=True)

    # --- requests -----------------------------------------------------------------------------

    def test_status_tells_of_the_viewer_and_its_streams(self) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))

        def work(stream: Stream) -> Any:
            for z in range(3):
                stream.image(image, name="raw", place={"z": z})
            stream.flush()
            return stream.request("status")

        status = self.send(work, name="worker 3")
        assert json.loads(json.dumps(status)) == status
        assert status["viewer"] == self.viewer.name
        assert status["pid"] == os.getpid()
        assert status["layers"] == 1
        if sys.platform.startswith("linux"):
            most = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
            assert most is not None
            # The kernel's sums of a process lag behind, by some pages for each thread.
            assert 0 < status["memory_nbytes"] < 1.1 * 1024 * int(most[1])
        [stream] = [each for each in status["streams"] if each["name"] == "worker 3"]
        assert (stream["received"], stream["displayed"], stream["failed"]) == (3, 3, 0)
        assert stream["nbytes"] == 3 * image.nbytes

    def test_clear_takes_everything_away(self) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))

        def work(stream: Stream) -> Any:
            for z in range(3):
                stream.image(image, name="raw", place={"z": z})
            stream.labels(image, name="nuclei")
            stream.rois([_TRIANGLE], name="outlines")
            stream.points(_TRIANGLE, name="spots")
            stream.flush()
            return stream.request("clear")

        assert self.send(work) == 4
        assert self.layer_titles() == []
        self.send_image(image[:8], name="raw")
        assert self.layer_titles() == ["raw"]
        self.assert_shown(image[:8], "raw")

    def test_layers_and_pixels_can_be_asked_for(self) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))

        def work(stream: Stream) -> tuple[Any, Any]:
            stream.image(image, name="raw", place={"z": 4})
            stream.flush()
            return stream.request("layers"), stream.request("read", layer="raw", place={"z": 4})

        [layer], read = self.send(work)
        assert (layer["title"], layer["kind"], layer["components"]) == ("raw", "image", ["z"])
        pixels = np.frombuffer(read["data"], read["dtype"]).reshape(read["shape"])
        np.testing.assert_array_equal(pixels, image)

    def test_what_nobody_can_do_is_refused(self) -> None:
        def work(stream: Stream) -> None:
            with pytest.raises(Refused, match="dance"):
                stream.request("dance")
            with pytest.raises(Refused, match="nothing here"):
                stream.request("read", layer="nothing here")

        self.send(work)

    def test_a_layer_can_be_removed_twice(self) -> None:
        self.send_image(_values("|u1", (8, 9)), name="raw")
        layer = self.layer("raw")
        for _ in range(2):
            self.viewer.remove_layer(layer)
            self.pump()
            assert self.layer_titles() == []

    # --- pace ---------------------------------------------------------------------------------

    def test_sixty_images_a_second(self) -> None:
        """Two streams' worth of a fast camera: every one is displayed, and soon."""
        images = [_values("<u2", (256, 256), seed=i) for i in range(4)]

        def work(stream: Stream) -> float:
            pace = threading.Event()  # a clock, not a wait for something
            began = time.monotonic()
            receipts = []
            for i in range(60):
                pace.wait(max(0.0, began + i / 60 - time.monotonic()))
                place: Place = {"well": "A01", "z": i % 8}
                receipts.append(stream.image(images[i % 4], name="live", place=place))
            stream.flush()
            assert {receipt.state for receipt in receipts} == {"displayed"}
            return time.monotonic() - began

        seconds = self.send(work)
        assert seconds < self.deadline_s / 3
        self.assert_shown(images[59 % 4], "live", {"well": "A01", "z": 59 % 8})

    def test_several_streams_at_once(self) -> None:
        image = _values("<u2", (_HEIGHT, _WIDTH))
        wells = [f"A{number:02}" for number in range(1, 5)]

        def worker(well: str) -> None:
            with connect(self.address, name=well, timeout_s=self.deadline_s) as stream:
                for z in range(10):
                    stream.image(image + z, name="raw", place={"well": well, "z": z})

        def work() -> None:
            threads = [threading.Thread(target=worker, args=(well,)) for well in wells]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        self.drive(work)
        for well in wells:
            for z in (0, 9):
                self.assert_shown(image + z, "raw", {"well": well, "z": z})

    # --- the screen and the end ---------------------------------------------------------------

    def test_a_picture_of_the_screen_shows_what_was_sent(self) -> None:
        colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
        image = np.zeros((90, 90, 3), np.uint8)
        for number, colour in enumerate(colours.values()):
            image[:, 30 * number : 30 * (number + 1)] = colour

        def work(stream: Stream) -> Any:
            stream.image(image, name="flag", axes="YXS")
            stream.flush()
            return stream.request("screenshot")

        if not self.has_screen:
            with pytest.raises(Refused) as caught:
                self.send(work)
            assert caught.value.cure
            return
        answer = self.send(work)
        assert answer["png"].startswith(b"\x89PNG")
        picture = np.asarray(self.viewer.screenshot())
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 4
        centres = []
        for colour in colours.values():
            near = (np.abs(picture[..., :3].astype(int) - colour) < 40).all(axis=2)
            # Its third at its own size, or larger; other windows may be around it.
            assert near.sum() >= 90 * 30, f"too little of {colour} in the picture"
            centres.append(np.argwhere(near).mean(axis=0))
        columns = [centre[1] for centre in centres]
        assert columns == sorted(columns)
        assert np.ptp([centre[0] for centre in centres]) < 5

    def test_it_runs_until_it_is_stopped(self) -> None:
        """Last, for some viewers can't be shown again; the next test would get a new one."""
        image = _values("<u2", (_HEIGHT, _WIDTH))
        states: list[str] = []

        def work() -> None:
            with connect(self.address, name="conformance", timeout_s=self.deadline_s) as stream:
                states.append(stream.image(image, name="raw").wait().state)
                with contextlib.suppress(StreamError):  # it may be gone before it answers
                    stream.request("stop", timeout_s=self.deadline_s)

        thread = threading.Thread(target=work, name="sender under test", daemon=True)
        guard = threading.Timer(self.deadline_s, self.viewer.stop)
        thread.start()
        guard.start()
        try:
            self.viewer.run(self.receiver.tick, TICK_S)
            assert guard.is_alive(), "only the deadline stopped it"
        finally:
            guard.cancel()
            guard.join()
            self._take_down()
        thread.join(self.deadline_s)
        assert states == ["displayed"]


_TRIANGLE = np.array([[2.0, 3.0], [2.5, 20.0], [15.0, 9.25]])
_SQUARE = np.array([[5.0, 5.0], [5.0, 12.0], [12.0, 12.0], [12.0, 5.0]])
_MICROMETRE = ("um", "µm", "μm", "micrometer", "micrometre", "micron")


def _values(dtype: str, shape: tuple[int, ...], *, seed: int = 0) -> Array:
    """Random values over the whole range of a dtype; of floats only finite ones."""
    random_ = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.asarray(random_.integers(0, 2, shape)).astype(bool)
    if kind.kind == "f":
        return np.asarray(random_.uniform(-1000, 1000, shape)).astype(kind)
    limits = np.iinfo(kind)
    drawn = random_.integers(limits.min, limits.max, shape, kind, endpoint=True)
    return np.asarray(drawn, dtype=kind)


def _layouts(whole: Array) -> Iterator[tuple[str, Array]]:
    """The same kind of image in every way that it can lie in memory: parts of a larger one."""
    image = whole[:_HEIGHT, :_WIDTH].copy()
    read_only = image.copy()
    read_only.setflags(write=False)
    yield "contiguous", image
    yield "a part", whole[3 : 3 + _HEIGHT, 5 : 5 + _WIDTH]
    yield "strided", whole[::2, ::3]
    yield "reversed", image[::-1, ::-1]
    yield "big-endian", image.astype(image.dtype.newbyteorder(">"))
    yield "Fortran", np.asfortranarray(image)
    yield "transposed", whole.T[:_HEIGHT, :_WIDTH]
    yield "read-only", read_only
    yield "repeated", np.broadcast_to(image[:1], image.shape)
    # numpy can't say that an address is odd; a field of a packed record is.
    packed = np.zeros(image.shape, [("pad", "u1"), ("value", image.dtype)])
    packed["value"] = image
    yield "unaligned", packed["value"]


def _corners(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The first, the last and one other index."""
    indices = list(itertools.product(*map(range, shape)))
    yield from dict.fromkeys([indices[0], indices[len(indices) // 3], indices[-1]])


def _component(letter: str) -> str:
    return {"T": "time", "C": "channel", "Z": "z"}.get(letter, letter.lower())


def _assert_outlines(shown: Sequence[Array], sent: Sequence[Array]) -> None:
    """The same vertices in the same order; a viewer may repeat the first one at the end."""
    assert len(shown) == len(sent)
    for outline, expected in zip(shown, sent, strict=True):
        vertices = np.asarray(outline, float)
        if len(vertices) == len(expected) + 1:
            np.testing.assert_allclose(vertices[0], vertices[-1])
            vertices = vertices[:-1]
        np.testing.assert_allclose(vertices, expected, atol=1e-6)


def _hello(*, major: int = MAJOR) -> Hello:
    lanes = ("unix",)
    session = os.urandom(8).hex()
    return Hello(major, MINOR, session, "stream", "x", "u", machine_id(), 1, lanes=lanes)


def _to_the_end(lane: Lane, timeout_s: float) -> None:
    """Receive until the lane is closed; the reason may come first, and nothing else."""
    with contextlib.suppress(LaneClosed):
        said = _receive(lane, timeout_s)
        assert isinstance(said, Bye), said
        said = _receive(lane, timeout_s)
        raise AssertionError(f"the lane goes on: {said}")


def _receive(lane: Lane, timeout_s: float) -> Message:
    """Wait for the next message on a lane."""
    deadline = time.monotonic() + timeout_s
    while True:
        frame = lane.receive()
        if frame is not None:
            return decode(frame.data)
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came within {timeout_s:g} s")
        time.sleep(0.002)
