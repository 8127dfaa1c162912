"""ImageJ's files and back."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import (
    Markers,
    Path,
    Roi,
    RoiKind,
    Spline,
    from_imagej,
    from_roifile,
    to_imagej,
    to_mask,
)


def test_each_kind_with_all_fields(any_roi: Roi) -> None:
    back = from_imagej(to_imagej(any_roi))
    if any_roi.kind == "ellipse":  # its side goes as an aspect ratio in float32
        np.testing.assert_allclose(back.coordinates, any_roi.coordinates, rtol=1e-6)
        back = back.replace(coordinates=any_roi.coordinates)
    assert back == any_roi


def test_defaults_stay_defaults() -> None:
    for roi in (Roi.rectangle(1, 2, 3, 4), Roi.points([(1, 2)]), Roi.line((0, 1), (2, 3))):
        assert from_imagej(to_imagej(roi)) == roi


def test_whole_numbers_are_written_as_such() -> None:
    imagej = ImagejRoi.frombytes(to_imagej(Roi("polygon", np.array([(3, 2), (18, 2), (18, 9)]))))
    assert not imagej.subpixelresolution
    assert (imagej.left, imagej.top, imagej.right, imagej.bottom) == (3, 2, 18, 9)


@pytest.mark.parametrize(
    "coordinates",
    [
        [(-10000, 5), (70000, 5), (3, 90000)],
        [(-5000, -5000), (60535, 0), (3, 60535)],
        [(0.5, 0.25), (7, 5), (3, 9)],
    ],
    ids=["far", "limits", "fractions"],
)
def test_coordinates_of_any_size(coordinates: list[tuple[float, float]]) -> None:
    roi = Roi("polygon", np.array(coordinates))
    assert from_imagej(to_imagej(roi)) == roi
    for kind in ("rectangle", "oval"):
        box = Roi(kind, np.array([np.min(coordinates, axis=0), np.max(coordinates, axis=0)]))
        assert from_imagej(to_imagej(box)) == box


def test_more_vertices_than_the_counter_holds() -> None:
    angle = np.linspace(0, 6, 70_000)
    xy = (1000 + 900 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)
    roi = Roi("polygon", xy.astype(np.float64))
    assert from_imagej(to_imagej(roi)) == roi


def test_an_ellipse_is_drawn_with_72_vertices() -> None:
    imagej = ImagejRoi.frombytes(
        to_imagej(Roi("ellipse", np.array([(2.0, 10), (10, 10), (6, 12)])))
    )
    assert imagej.n_coordinates == 72
    assert imagej.subtype == ROI_SUBTYPE.ELLIPSE
    aspect = struct.pack(
        ">BBh",
        imagej.arrow_style_or_aspect_ratio,
        imagej.arrow_head_size,
        imagej.rounded_rect_arc_size,
    )
    assert struct.unpack(">f", aspect) == (0.5,)


def test_an_ellipse_of_no_size() -> None:
    roi = Roi("ellipse", np.array([(2.0, 3), (2, 3), (2, 3)]))
    assert from_imagej(to_imagej(roi)) == roi


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":\n"), max_size=5),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=5),
        max_size=3,
    ),
)
def test_any_text(name: str, properties: dict[str, str]) -> None:
    roi = Roi.points([(1, 2)], name=name, properties=properties)
    assert from_imagej(to_imagej(roi)) == roi


@pytest.mark.parametrize("properties", [{"a:b": "c"}, {"a": "b\nc"}, {"a\n": "b"}], ids=repr)
def test_properties_that_the_format_would_break(properties: dict[str, str]) -> None:
    with pytest.raises(InvalidItem, match="can't be kept"):
        to_imagej(Roi.points([(1, 2)], properties=properties))


def test_a_plain_stack_position_is_z() -> None:
    flat = from_roifile(ImagejRoi(roitype=ROI_TYPE.RECT, position=4))
    assert (flat.position, flat.flat_position) == ((0, 4, 0), True)
    rect = ImagejRoi(roitype=ROI_TYPE.RECT, position=4, c_position=2)
    assert from_roifile(rect).position == (2, 0, 0)


def test_old_files_have_whole_stroke_widths_and_markers_are_none() -> None:
    assert from_roifile(ImagejRoi(roitype=ROI_TYPE.RECT, stroke_width=3)).stroke_width == 3
    point = ImagejRoi(
        roitype=ROI_TYPE.POINT,
        stroke_width=3,
        n_coordinates=1,
        integer_coordinates=np.array([[1, 2]], np.int32),
    )
    assert from_roifile(point).stroke_width == 0


def test_an_image_is_refused() -> None:
    image = ImagejRoi(
        roitype=ROI_TYPE.RECT, subtype=ROI_SUBTYPE.IMAGE, image_size=3, image_data=b"abc"
    )
    with pytest.raises(InvalidItem, match="not supported: image"):
        from_roifile(image)
    with pytest.raises(InvalidItem, match="not supported: type 6"):
        from_roifile(ImagejRoi(roitype=ROI_TYPE.NOROI))


def test_a_rotated_rectangle_that_imagej_saved_as_a_polygon_is_one() -> None:
    data = bytearray(to_imagej(Roi.polygon([(0, 0), (0, 4), (3, 0)])))
    data[49] = ROI_SUBTYPE.ROTATED_RECT
    assert from_imagej(data).kind == "polygon"


@pytest.mark.parametrize("kind", ["polygon", "freehand", "traced", "polyline", "freeline"])
def test_splines_are_kept(kind: RoiKind) -> None:
    roi = Roi(kind, np.array([(3, 2), (18, 2), (18, 9)]), details=Spline())
    assert from_imagej(to_imagej(roi)) == roi


def test_curves_are_kept() -> None:
    segments = bytes([0, 1, 2, 3, 4, 0, 1, 1])
    roi = Roi("composite", np.arange(20.0).reshape(10, 2), details=Path(segments))
    assert from_imagej(to_imagej(roi)) == roi


def test_the_rest_of_a_cut_path_is_left_out_as_imagej_does() -> None:
    imagej = ImagejRoi.frombytes(to_imagej(Roi.composite([[(0, 0), (0, 4), (3, 0)]])))
    assert imagej.multi_coordinates is not None
    imagej.multi_coordinates = np.append(imagej.multi_coordinates, [1, 5]).astype(np.float32)
    imagej.shape_roi_size += 2
    assert from_roifile(imagej) == Roi.composite([[(0, 0), (0, 4), (3, 0)]])
    imagej.multi_coordinates[0] = 7
    with pytest.raises(InvalidItem, match="unknown segment 7"):
        from_roifile(imagej)


def test_a_plain_stack_position_is_written_as_such() -> None:
    roi = Roi.rectangle(1, 2, 3, 4, position=(0, 4, 0), flat_position=True)
    imagej = ImagejRoi.frombytes(to_imagej(roi))
    assert (imagej.position, imagej.z_position) == (4, 0)
    assert from_imagej(to_imagej(roi)) == roi


def test_what_float32_can_not_hold_is_refused() -> None:
    with pytest.raises(InvalidItem, match="reaches to 1e"):
        to_imagej(Roi.points([(1e200, 0)]))


@given(st.binary(max_size=300), st.integers(0, 15), st.integers(0, 6))
def test_any_bytes_are_a_roi_or_a_clear_error(data: bytes, kind: int, subtype: int) -> None:
    head = b"Iout\x00\xe4" + bytes([kind, 0])
    for given_bytes in (data, b"Iout" + data, head + data[:40] + bytes([0, subtype]) + data[40:]):
        try:
            from_imagej(given_bytes)
        except InvalidItem:
            pass


@given(st.data())
def test_changed_bytes_are_a_roi_or_a_clear_error(data: st.DataObject) -> None:
    file = bytearray(to_imagej(data.draw(st.sampled_from(SAMPLES))))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    for changed in (file, file[: data.draw(st.integers(0, len(file)))]):
        try:
            roi = from_imagej(changed)
        except InvalidItem:
            continue
        to_mask(roi, (20, 20))


SAMPLES = [
    Roi.polygon([(0, 0), (0, 4), (3, 0)], name="a", properties={"a": "b"}),
    Roi.composite([[(0, 0), (0, 9), (9, 0)], [(1, 1), (1, 2), (2, 1)]]),
    Roi.text(0, 0, 9, 9, "text"),
    Roi.arrow((0, 0), (9, 9)),
    Roi.rounded_rectangle(0, 0, 9, 9, 3),
    Roi.points([(1, 2), (3, 4)], details=Markers(counters=(1, 2))),
    Roi("ellipse", np.array([(2.0, 10.0), (10.0, 10.0), (6.0, 12.0)])),
    Roi("rotated rectangle", np.array([(2.0, 10.0), (10.0, 10.0), (6.0, 12.0)])),
]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PK" + data,
        lambda data: data[:70],
        lambda data: data[:16] + b"\0\0" + b"\x7f\xff\xff\xff" + data[22:],
    ],
    ids=["empty", "zip", "cut", "huge-count"],
)
def test_damaged_files_are_refused(damage: Any) -> None:
    data = to_imagej(Roi.polygon([(0, 0), (0, 4), (3, 0)]))
    with pytest.raises(InvalidItem, match="no ImageJ ROI"):
        from_imagej(damage(data))


def test_a_text_that_ends_before_its_style_is_refused() -> None:
    """As coverage-guided fuzzing found it: its second header lies within the first."""
    data = bytes.fromhex(
        "496f7574000001fffffc007fff8000000000000000000000000000600000000080000000000000000000007400"
        "e5010000010002001e0028080001f600000000"
    )
    with pytest.raises(InvalidItem, match="no ImageJ ROI"):
        from_imagej(data)


@pytest.mark.parametrize("given", [None, 5, "cell.roi", [1, 2], Roi.rectangle(0, 0, 1, 1)], ids=str)
def test_what_is_no_content_of_a_file(given: Any) -> None:
    with pytest.raises(InvalidItem, match="is no content") as caught:
        from_imagej(given)
    assert "read_imagej" in caught.value.cure
