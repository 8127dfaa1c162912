"""ImageJ's files and back."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, from_imagej, from_roifile, to_imagej


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
    assert from_roifile(ImagejRoi(roitype=ROI_TYPE.RECT, position=4)).position == (0, 4, 0)
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


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"roitype": ROI_TYPE.RECT, "shape_roi_size": 9}, "composite"),
        ({"roitype": ROI_TYPE.RECT, "subtype": ROI_SUBTYPE.TEXT}, "text"),
        ({"roitype": ROI_TYPE.LINE, "subtype": ROI_SUBTYPE.ARROW}, "arrow"),
        ({"roitype": ROI_TYPE.FREEHAND, "subtype": ROI_SUBTYPE.ROTATED_RECT}, "rotated rectangle"),
        ({"roitype": ROI_TYPE.POLYGON, "options": ROI_OPTIONS.SPLINE_FIT}, "spline"),
        ({"roitype": ROI_TYPE.RECT, "rounded_rect_arc_size": 5}, "rounded rectangle"),
        ({"roitype": ROI_TYPE.NOROI}, "type 6"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_that_would_lose_something_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidItem, match=f"not supported yet: {told}"):
        from_roifile(ImagejRoi(**fields))


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
