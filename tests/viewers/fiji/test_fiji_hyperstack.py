"""One layer as one hyperstack: dimensions, looks, words, and growing in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream_fiji._extent import Extent

if TYPE_CHECKING:
    import numpy.typing as npt

    from tests.viewers.fiji.conftest import Stage


def image(*components: str, **changes: Any) -> LayerSpec:
    fields: dict[str, Any] = {
        "kind": "image",
        "name": "raw",
        "axes": "YX",
        "components": components,
        "source": "plate",
    }
    return LayerSpec(**{**fields, **changes})


def ramp(start: int = 0, dtype: str = "u2", shape: tuple[int, int] = (24, 200)) -> Any:
    return (np.arange(shape[0] * shape[1]).reshape(shape) % 100 + start).astype(dtype)


def dimensions(imp: Any) -> tuple[int, int, int]:
    return imp.getNChannels(), imp.getNSlices(), imp.getNFrames()


def at(imp: Any, c: int, z: int, t: int) -> npt.NDArray[Any]:
    """What ImageJ has at a place of its hyperstack."""
    array = np.asarray(imp.getStack().getPixels(imp.getStackIndex(c, z, t)))
    plain = {"int8": np.uint8, "int16": np.uint16}.get(array.dtype.name)
    return (array if plain is None else array.view(plain)).reshape(imp.getHeight(), imp.getWidth())


def color_of(lut: Any) -> tuple[int, ...]:
    """The colour of its brightest entry."""
    return tuple(table_of(lut)[255].tolist())


def table_of(lut: Any) -> npt.NDArray[np.uint8]:
    """(256, 3): red, green, blue."""
    return np.asarray(lut.getBytes()).view(np.uint8).reshape(3, 256).T


# --- dimensions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "modes", "expected"),
    [
        (("channel", "time", "z"), {}, {"channel": "C", "time": "T", "z": "Z"}),
        (("well", "site"), {}, {"well": "T", "site": "T"}),
        (("channel",), {"channel": "stack"}, {"channel": "T"}),
        (("well", "z"), {"well": "slice", "z": "frame"}, {"well": "Z", "z": "T"}),
        (("site", "channel"), {"site": "channel"}, {"site": "C", "channel": "C"}),
    ],
)
def test_modes_choose_the_dimension(
    components: tuple[str, ...], modes: dict[str, Any], expected: dict[str, str]
) -> None:
    extent = Extent(components, modes)
    assert {c: d for d in "CZT" for c in extent.members(d)} == expected


def test_places_and_positions_are_inverse() -> None:
    extent = Extent(("well", "site", "channel", "z"), {})
    axes = {"well": ("A1", "A2"), "site": (1, 2, 3), "channel": ("DAPI", "GFP"), "z": (1, 5)}
    places = [(w, s, c, z) for w in axes["well"] for s in axes["site"]
              for c in axes["channel"] for z in axes["z"]]  # fmt: skip
    assert extent.grow(places, axes)
    assert not extent.grow(places, axes)
    assert extent.shape == (2, 2, 6)
    assert sorted(extent.slot(place) for place in places) == list(range(24))
    for place in places:
        c, z, t = extent.position(place)
        assert extent.slot(place) == ((t - 1) * 2 + z - 1) * 2 + c - 1
        assert tuple(extent.place((c, z, t))[name] for name in extent.components) == place
    assert extent.positions({"well": "A2", "site": 1}) == [(0, 0, 4)]
    assert extent.positions({"site": 2, "z": 5}) == [(0, 2, 2), (0, 2, 5)]
    assert extent.positions({"well": "A9"}) == []
    assert extent.positions({"plate": 3}) == [(0, 0, 0)]


def test_every_component_has_its_dimension(stage: Stage) -> None:
    spec = image("well", "site", "channel", "time", "z")
    items = [
        (spec, (w, s, c, t, z), ramp(100 * i))
        for i, (w, s, c, t, z) in enumerate(
            (w, s, c, t, z)
            for w in ("A1", "A2") for s in (1, 2) for c in ("DAPI", "GFP")
            for t in (0, 7) for z in (1, 2, 3)
        )
    ]  # fmt: skip
    np.random.default_rng(1).shuffle(items)
    imp = stage.imp(*items)
    assert dimensions(imp) == (2, 3, 8)
    for _, (well, site, channel, time, z), pixels in items:
        t = ["A1", "A2"].index(well) * 4 + [1, 2].index(site) * 2 + [0, 7].index(time)
        c = ["DAPI", "GFP"].index(channel)
        assert np.array_equal(at(imp, c + 1, z, t + 1), pixels)


def test_arrays_unfold_in_full(stage: Stage) -> None:
    array = np.arange(2 * 3 * 2 * 24 * 200, dtype=np.uint16).reshape(2, 3, 2, 24, 200)
    imp = stage.imp((image(axes="TZCYX"), (), array))
    assert dimensions(imp) == (2, 3, 2)
    assert bool(imp.isHyperStack())
    for t, z, c in np.ndindex(2, 3, 2):
        assert np.array_equal(at(imp, c + 1, z + 1, t + 1), array[t, z, c])


def test_windows_by_what_is_split(stage: Stage) -> None:
    spec = image("well", "z", modes={"well": "split"})
    layers = stage.show(*((spec, (w, z), ramp(z)) for w in ("A1", "A2") for z in (1, 2)))
    titles = [str(stage.viewer.image(layer).getTitle()) for layer in layers]
    assert titles == ["plate / raw [A1]", "plate / raw [A2]"]
    assert [dimensions(stage.viewer.image(layer)) for layer in layers] == [(1, 2, 1)] * 2


def test_the_viewers_own_modes_count(headless: Stage) -> None:
    from openhcs_stream.viewer import Placement

    placement = Placement(image("well"), modes={"well": "slice"}, splits=headless.viewer.splits)
    assert placement.spec.modes == {"well": "slice"}


@pytest.mark.parametrize(
    ("dtype", "bits"), [("u1", 8), ("u2", 16), ("f4", 32), ("?", 8), ("i2", 32), ("f8", 32)]
)
def test_planes_that_have_not_come_are_blank_in_the_stacks_type(
    stage: Stage, dtype: str, bits: int
) -> None:
    spec = image("well", "z")
    imp = stage.imp((spec, ("A1", 1), ramp(1, dtype)), (spec, ("A2", 2), ramp(1, dtype)))
    assert imp.getBitDepth() == bits
    assert imp.getStackSize() == 4
    assert not at(imp, 1, 2, 1).any()
    assert at(imp, 1, 2, 2).all()


def test_colour_is_imagejs_rgb(stage: Stage) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 20, 150, 3), np.uint8)
    imp = stage.imp((image(axes="CYXS"), (), array))
    assert imp.getBitDepth() == 24
    assert dimensions(imp) == (1, 1, 2)  # ImageJ has no channels of RGB
    for t in (0, 1):
        raw = at(imp, 1, 1, t + 1).view(np.uint8).reshape(20, 150, 4)
        assert np.array_equal(raw[..., 2::-1], array[t])


# --- growing --------------------------------------------------------------------------------------


def test_what_arrives_late_is_put_in_its_place(stage: Stage) -> None:
    spec = image("channel", "z")
    sent = {(c, z): ramp(10 * z + len(c)) for c in ("a", "bb", "ccc") for z in (2, 4, 9)}
    order = [("bb", 4), ("bb", 9), ("a", 2), ("ccc", 2), ("a", 9), ("bb", 2), ("a", 4),
             ("ccc", 9), ("ccc", 4)]  # fmt: skip
    number = None
    for place in order:
        imp = stage.imp((spec, place, sent[place]))
        number = number or imp.getID()
        assert imp.getID() == number
    assert dimensions(imp) == (3, 3, 1)
    for (channel, z), pixels in sent.items():
        assert np.array_equal(at(imp, len(channel), (2, 4, 9).index(z) + 1, 1), pixels)
    labels = [str(imp.getStack().getSliceLabel(n)).split("\n")[0] for n in range(1, 10)]
    assert labels == [f"{c}, z {z}" for z in (2, 4, 9) for c in ("a", "bb", "ccc")]


def test_growth_keeps_window_zoom_place_and_looks(window: Stage) -> None:
    spec = image("channel", "time", "z", colormap="")
    first = [(spec, (c, t, 5), ramp(t)) for c in ("DAPI", "GFP") for t in (1, 2)]
    imp = window.imp(*first)
    native, canvas = imp.getWindow(), imp.getCanvas()

    def person() -> None:
        canvas.zoomIn(10, 10)
        native.setLocation(300, 200)
        imp.setPosition(2, 1, 2)
        imp.setDisplayRange(3, 33)

    window.viewer.java.on_event_thread(person)
    zoom = canvas.getMagnification()
    for place in (("DAPI", 0, 5), ("Cy5", 1, 5), ("GFP", 2, 1), ("GFP", 9, 9), ("DAPI", 2, 3)):
        assert window.imp((spec, place, ramp(50))) == imp
        assert imp.getWindow() == native
        assert imp.getCanvas() == canvas
        assert canvas.getMagnification() == zoom
        here = str(imp.getStack().getSliceLabel(imp.getCurrentSlice())).split("\n")[0]
        assert here == "GFP, time 2, z 5"
        assert (imp.getDisplayRangeMin(), imp.getDisplayRangeMax()) == (3, 33)
        assert not imp.changes
    assert dimensions(imp) == (3, 4, 4)
    assert native.isVisible()
    sliders = [native.getComponent(i).getMaximum() - 1 for i in range(1, 4)]
    assert sliders == [3, 4, 4]
    assert [color_of(lut) for lut in imp.getLuts()] == [
        (255, 0, 255),
        (0x20, 0xAD, 0xF8),
        (0, 255, 0),
    ]


def place_in_view(imp: Any) -> str:
    return str(imp.getStack().getSliceLabel(imp.getCurrentSlice())).split("\n")[0]


def test_nobody_looked_so_windows_stand_at_the_first_place(stage: Stage) -> None:
    """Planes come in any order, and each window's in another."""
    raw, nuclei = image("well", "z"), image("well", "z", name="nuclei", kind="labels")
    stage.show((raw, ("B", 2), ramp()), (raw, ("A", 2), ramp()))
    stage.show((nuclei, ("B", 2), ramp()))
    stage.show((nuclei, ("B", 1), ramp()))
    stage.show((raw, ("A", 1), ramp()))
    windows = [stage.imp((spec, ("C", 3), ramp())) for spec in (raw, nuclei)]
    assert [place_in_view(imp) for imp in windows] == ["A, z 1", "B, z 1"]
    assert stage.imp((nuclei, ("A", 1), ramp(7))) == windows[1]  # a place that raw had made
    assert place_in_view(windows[1]) == "A, z 1"
    assert np.array_equal(at(windows[1], 1, 1, 1), ramp(7))


@pytest.mark.parametrize("how", ["slider", "asked", "selection", "mouse"])
def test_where_somebody_looked_a_window_stays(window: Stage, how: str) -> None:
    spec = image("well")
    imp = window.imp(*((spec, (well,), ramp()) for well in "CD"))

    def look() -> None:
        match how:
            case "slider":
                imp.setPosition(1, 1, 2)
            case "selection":
                imp.setRoi(2, 2, 5, 5)
            case "mouse":
                canvas = imp.getCanvas()
                event = window.viewer.java.jpype.JClass("java.awt.event.MouseEvent")
                canvas.mouseMoved(event(canvas, event.MOUSE_MOVED, 0, 0, 9, 9, 0, False))

    if how == "asked":
        window.viewer.go_to(well="C")
    else:
        window.act(look)
    before = place_in_view(imp)
    for well in "BA":
        window.imp((spec, (well,), ramp()))
    assert place_in_view(imp) == before == ("D" if how == "slider" else "C")


@pytest.mark.parametrize("dimension", ["z", "time", "channel", "well"])
def test_one_slider_grows(window: Stage, dimension: str) -> None:
    spec = image(dimension)
    for number in range(1, 8):
        imp = window.imp((spec, (number,), ramp(number)))
        native = imp.getWindow()
        assert native.getNScrollbars() == (number > 1)
        if number > 1:
            assert native.getComponent(1).getMaximum() == number + 1
        assert imp.getStackSize() == number
    for number in range(1, 8):
        window.viewer.go_to(**{dimension: number})
        slice_ = imp.getCurrentSlice()
        assert np.array_equal(at(imp, *imp.convertIndexToPosition(slice_)), ramp(number))


def test_a_person_moves_the_slider(window: Stage) -> None:
    spec = image("well", "z")
    imp = window.imp(*((spec, (w, z), ramp(z)) for w in ("A", "B") for z in (1, 2, 3)))
    window.show((spec, ("C", 0), ramp(9)))
    window.viewer.java.on_event_thread(lambda: imp.setPosition(1, 4, 2))
    assert np.array_equal(at(imp, imp.getChannel(), imp.getSlice(), imp.getFrame()), ramp(3))
    processor = np.asarray(imp.getProcessor().getPixels()).view(np.uint16)
    assert np.array_equal(processor.reshape(24, 200), ramp(3))


def test_a_repeated_plane_replaces_its_slice_and_no_other(stage: Stage) -> None:
    spec = image("channel", "z")
    imp = stage.imp(*((spec, (c, z), ramp(z)) for c in ("a", "b") for z in (1, 2)))
    for z in (1, 2):
        for again in (40, 50):
            stage.show((spec, ("b", z), ramp(again)))
        stage.viewer.go_to(channel="a", z=3 - z)  # ImageJ writes the slice back that it leaves
        stage.viewer.go_to(channel="b", z=z)
        assert np.array_equal(at(imp, 2, z, 1), ramp(50))
        assert np.array_equal(at(imp, 1, z, 1), ramp(z))


def test_the_blended_picture_follows_its_planes(window: Stage) -> None:
    """ImageJ blends from references of its own to the arrays, which must not grow stale."""
    red, green = (image("channel", colormap=c, contrast_limits=(0, 100)) for c in ("red", "green"))
    black, white = np.zeros((20, 150), np.uint8), np.full((20, 150), 100, np.uint8)
    imp = window.imp((red, ("a",), black), (green, ("b",), black))
    for one, two, expected in (
        (white, black, 0xFF0000), (white, white, 0xFFFF00), (black, white, 0x00FF00),
    ):  # fmt: skip
        window.show((red, ("a",), one), (green, ("b",), two))
        assert int(imp.getImage().getRGB(5, 5)) & 0xFFFFFF == expected


def test_another_type_or_size_is_taken_in(stage: Stage) -> None:
    spec = image("z")
    imp = stage.imp((spec, (1,), ramp(0, "u1", (10, 150))))
    stage.show((spec, (2,), ramp(0, "u2", (20, 140))))
    assert (imp.getBitDepth(), imp.getWidth(), imp.getHeight()) == (16, 150, 20)
    assert np.array_equal(at(imp, 1, 1, 1)[:10], ramp(0, "u2", (10, 150)))
    assert not at(imp, 1, 1, 1)[10:].any()
    stage.show((spec, (3,), ramp(0, "f4", (5, 5)) - 0.5))
    assert imp.getBitDepth() == 32
    assert np.array_equal(at(imp, 1, 2, 1)[:, :140], ramp(0, "f4", (20, 140)))
    assert at(imp, 1, 3, 1)[0, 0] == -0.5


def test_a_window_that_a_person_closed_comes_back_with_new_data(window: Stage) -> None:
    spec = image("channel", "z")
    first = window.imp(*((spec, (c, z), ramp(z)) for c in ("a", "b") for z in (1, 2)))
    window.viewer.java.on_event_thread(first.close)
    (layer,) = window.scene.layers.values()
    assert window.viewer.image(layer) is None
    imp = window.imp((spec, ("a", 3), ramp(3)))
    assert imp.getWindow() is not None
    assert dimensions(imp) == (2, 3, 1)
    assert np.array_equal(at(imp, 2, 2, 1), ramp(2))


def test_removed_layers_close_their_windows(window: Stage) -> None:
    imp = window.imp((image(), (), ramp()))
    native = imp.getWindow()
    (layer,) = window.scene.layers.values()
    for _ in range(2):
        window.viewer.remove_layer(layer)
    assert not native.isVisible()
    assert window.viewer.image(layer) is None


# --- looks ----------------------------------------------------------------------------------------


def test_channels_have_their_own_tables(stage: Stage) -> None:
    items = [
        (image("channel", colormap=colormap), (name,), ramp())
        for name, colormap in (
            ("1", "magenta"), ("2", "Fire"), ("3", "#ff8000"), ("4", "viridis"), ("5", ""),
        )
    ]  # fmt: skip
    imp = stage.imp(*items)
    assert imp.getCompositeMode() == 1
    found = [color_of(lut) for lut in imp.getLuts()]
    assert found == [(255, 0, 255), (255, 255, 255), (255, 128, 0), (253, 231, 37), (0, 255, 255)]


def test_usual_names_have_their_usual_colours(stage: Stage) -> None:
    spec = image("channel")
    imp = stage.imp(*((spec, (name,), ramp()) for name in ("w1DAPI", "GFP", "mCherry", "Cy5")))
    by_label = {
        str(imp.getStack().getSliceLabel(n + 1)).split("\n")[0]: color_of(lut)
        for n, lut in enumerate(imp.getLuts())
    }
    assert by_label == {
        "Cy5": (255, 0, 255),
        "GFP": (0, 255, 0),
        "mCherry": (255, 0, 0),
        "w1DAPI": (0x20, 0xAD, 0xF8),
    }


def test_an_unknown_table_is_grey_and_said(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    imp = stage.imp((image(colormap="no such"), (), ramp()))
    assert color_of(imp.getLuts()[0]) == (255, 255, 255)
    assert "no such" in caplog.text


def test_contrast_is_imagejs_own(stage: Stage, java: Any) -> None:
    pixels = np.random.default_rng(0).normal(1000, 100, (200, 200)).astype(np.uint16)
    pixels[0, 0] = 60000
    imp = stage.imp((image(), (), pixels))
    flat = java.shorts(pixels.ravel().view(np.int16))
    own = java.jpype.JClass("ij.process.ShortProcessor")(200, 200)
    own.setPixels(flat)
    java.ContrastEnhancer().stretchHistogram(own, 0.35)
    assert imp.getDisplayRangeMin() == round(own.getMin())
    assert imp.getDisplayRangeMax() == round(own.getMax())
    assert imp.getDisplayRangeMax() < 2000


def test_given_limits_are_heeded_for_each_channel(stage: Stage) -> None:
    imp = stage.imp(
        (image("channel", contrast_limits=(5, 50)), ("a",), ramp()),
        (image("channel", contrast_limits=(0, 1000)), ("b",), ramp()),
    )
    assert [(lut.min, lut.max) for lut in imp.getLuts()] == [(5, 50), (0, 1000)]
    stage.show((image("channel", contrast_limits=(7, 70)), ("a",), ramp()))
    assert [(lut.min, lut.max) for lut in imp.getLuts()] == [(7, 70), (0, 1000)]


def test_a_flat_first_plane_does_not_set_the_contrast(stage: Stage) -> None:
    spec = image("z")
    imp = stage.imp((spec, (1,), np.zeros_like(ramp())))
    stage.show((spec, (2,), np.zeros_like(ramp())), (spec, (3,), ramp(500)))
    assert 490 < imp.getDisplayRangeMin() < imp.getDisplayRangeMax() < 610


def test_pixels_have_their_size(stage: Stage) -> None:
    spec = image("z", axes="YX", pixel_size=(2.0, 0.5, 0.25), unit="um")
    calibration = stage.imp((spec, (1,), ramp())).getCalibration()
    assert calibration.pixelWidth == 0.25
    assert calibration.pixelHeight == 0.5
    assert calibration.pixelDepth == 2.0
    assert str(calibration.getUnit()) == "\N{MICRO SIGN}m"
    assert bool(calibration.scaled())


def test_labels_have_colours_and_all_their_numbers(stage: Stage) -> None:
    spec = LayerSpec("labels", "nuclei", "YX", ("z",))
    imp = stage.imp((spec, (1,), ramp(0, "i4")))
    assert not imp.isComposite()
    assert np.array_equal(at(imp, 1, 1, 1), ramp(0, "i4"))
    assert imp.getDisplayRangeMax() == 255
    table = table_of(imp.getProcessor().getLut())
    assert not table[0].any()
    assert len(np.unique(table, axis=0)) > 250
    stage.show((spec, (2,), ramp(900, "i4")))
    assert imp.getDisplayRangeMax() == 999


# --- words ----------------------------------------------------------------------------------------


def test_info_tells_of_each_plane(stage: Stage) -> None:
    spec = image("well", "z")
    for z in (1, 2):
        info = {"id": f"uuid-{z}", "path": f"/data/A1_{z}.tif", "objective": 20}
        imp = stage.imp((spec, ("A1", z), ramp(z)), info=info)
    info_text = str(imp.getProperty("Info"))
    for expected in ("source: plate", "sent as: uint16", "id: uuid-1", "path: /data/A1_2.tif",
                     "well: A1", "z: 2", "objective: 20", "slices: z", "frames: well"):  # fmt: skip
        assert expected in info_text
    label = str(imp.getStack().getSliceLabel(2))
    assert label.split("\n") == ["A1, z 2", "well: A1", "z: 2", "id: uuid-2",
                                 "path: /data/A1_2.tif", "objective: 20"]  # fmt: skip


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_slices_are_labelled_from_the_first_on(stage: Stage, kind: str) -> None:
    spec = image("well", "z", kind=kind)
    for place in (("A1", 2), ("A1", 1), ("A2", 1)):
        imp = stage.imp((spec, place, ramp()))
    labels = [imp.getStack().getSliceLabel(n) for n in range(1, 5)]
    words = [None if label is None else str(label).split("\n")[0] for label in labels]
    assert words == ["A1, z 1", "A1, z 2", "A2, z 1", None]


def test_info_of_a_single_image(stage: Stage) -> None:
    imp = stage.imp((image("well"), ("B2",), ramp()), info={"id": "one", "path": "/x.tif"})
    lines = str(imp.getProperty("Info")).splitlines()
    assert {"id: one", "path: /x.tif", "well: B2", "name: raw"} <= set(lines)


def test_everything_can_be_saved(stage: Stage, tmp_path: Any) -> None:
    import tifffile

    spec = image("channel", "z", pixel_size=(0.5, 0.5), unit="um")
    stage.show(*((spec, (c, z), ramp(z)) for c in ("a", "b") for z in (1, 2, 3)))
    (path,) = stage.viewer.save(tmp_path)
    assert path.name == "plate_raw.tif"
    with tifffile.TiffFile(path) as file:
        saved = file.asarray()
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["channels"] == 2
    assert saved.shape == (3, 2, 24, 200)
    assert np.array_equal(saved[2, 1], ramp(3))
