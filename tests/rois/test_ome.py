"""ROIs of OME-XML, written by ome-types itself."""

from __future__ import annotations

import bz2
import importlib
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openhcs_stream.errors import InvalidItem, LossyConversion, UsageError
from openhcs_stream.rois import Arrow, Roi, from_ome, to_mask
from openhcs_stream.rois import _ome_mask as masks

if TYPE_CHECKING:
    from pathlib import Path

# Its classes take words and dicts for enumerations and objects, which their types don't say.
ome_types: Any = importlib.import_module("ome_types")
model: Any = importlib.import_module("ome_types.model")

SQUARE = "0,0 9,0 9,9 0,9"
TURNED = model.AffineTransform(a00=0, a10=1, a01=-1, a11=0, a02=20, a12=0)  # by 90 degrees
SKEWED = model.AffineTransform(a00=1, a10=0, a01=0.5, a11=1, a02=0, a12=0)


def document(*shapes: Any, **fields: Any) -> Any:
    roi = model.ROI(id="ROI:0", union=list(shapes), **fields)
    return ome_types.OME(rois=[roi])


def one(shape: Any, **fields: Any) -> Roi:
    """What becomes of a shape on its way through the text."""
    [roi] = from_ome(document(shape, **fields).to_xml())
    assert roi.properties["id"] == "ROI:0"
    return roi


def mask(bits: Any, x: float = 0, y: float = 0, **fields: Any) -> Any:
    pixels = np.asarray(bits, bool)
    data = np.packbits(pixels).tobytes()
    height, width = pixels.shape
    packed = model.BinData(value=data, big_endian=True, length=len(data))
    return model.Mask(x=x, y=y, width=width, height=height, bin_data=packed, **fields)


@pytest.mark.parametrize(
    ("shape", "kind", "coordinates"),
    [
        (model.Point(x=1.5, y=2), "point", [(1.5, 2)]),
        (model.Line(x1=1, y1=2, x2=3, y2=4), "line", [(1, 2), (3, 4)]),
        (model.Polyline(points="1,2 3,4 5.5,6"), "polyline", [(1, 2), (3, 4), (5.5, 6)]),
        (model.Polygon(points=" 1,2, 3,4\n5,6"), "polygon", [(1, 2), (3, 4), (5, 6)]),
        (model.Rectangle(x=5, y=2, width=3, height=4), "rectangle", [(5, 2), (8, 6)]),
        (model.Ellipse(x=5, y=6, radius_x=2, radius_y=3), "oval", [(3, 3), (7, 9)]),
        (
            model.Ellipse(x=5, y=6, radius_x=2, radius_y=3, transform=TURNED),
            "ellipse", [(14, 2), (14, 8), (14, 5)],
        ),
        (
            model.Rectangle(x=0, y=0, width=4, height=2, transform=TURNED),
            "rotated rectangle", [(19, 0), (19, 4), (18, 2)],
        ),
        (
            model.Rectangle(x=0, y=0, width=4, height=2, transform=SKEWED),
            "polygon", [(0, 0), (4, 0), (5, 2), (1, 2)],
        ),
        (model.Point(x=1, y=2, transform=TURNED), "point", [(18, 1)]),
        (
            model.Line(x1=1, y1=2, x2=3, y2=4, marker_end="Arrow"), "arrow", [(1, 2), (3, 4)],
        ),
        (
            model.Line(x1=1, y1=2, x2=3, y2=4, marker_start="Arrow"), "arrow", [(3, 4), (1, 2)],
        ),
        (model.Label(x=3, y=4, text="ab", font_size=10), "text", [(3, 4), (15, 16)]),
        (mask([[1, 1], [1, 1]], 5, 6), "polygon", [(5, 6), (7, 6), (7, 8), (5, 8)]),
    ],
)  # fmt: skip
def test_each_shape(shape: Any, kind: str, coordinates: Any) -> None:
    roi = one(shape)
    assert roi.kind == kind
    if kind == "ellipse":  # its axes may point either way
        centre = np.mean(roi.coordinates[:2], axis=0)
        np.testing.assert_allclose(centre, (14, 5))
        np.testing.assert_allclose(np.abs(roi.coordinates[1] - centre), (3, 0), atol=1e-9)
        np.testing.assert_allclose(np.abs(roi.coordinates[2] - centre), (0, 2), atol=1e-9)
    else:
        given_order = np.array(coordinates, float)
        found = roi.coordinates
        if isinstance(shape, model.Mask):
            found = np.roll(found, -int(np.argmin(found.sum(axis=1))), axis=0)
        np.testing.assert_allclose(found, given_order, atol=1e-9)


def test_the_same_pixels_as_imagej_s() -> None:
    """The square around the pixel in row 2, column 5, as Bio-Formats writes it of ImageJ's."""
    assert np.argwhere(to_mask(one(model.Polygon(points="5,2 6,2 6,3 5,3")), (9, 9))).tolist() == [
        [2, 5]
    ]
    assert np.argwhere(to_mask(one(model.Point(x=5, y=2)), (9, 9))).tolist() == [[2, 5]]


def test_looks_names_and_places() -> None:
    roi = one(
        model.Polygon(
            points=SQUARE, stroke_color=model.Color(0x01020380), fill_color=model.Color(-1),
            stroke_width=2.5, the_c=0, the_z=4, the_t=2, text="mitotic", locked=True,
        ),
        name="cell 1", description="by hand",
    )  # fmt: skip
    assert (roi.name, roi.stroke_color, roi.fill_color) == ("cell 1", "#01020380", "#ffffffff")
    assert (roi.stroke_width, roi.position) == (2.5, (1, 5, 3))
    assert dict(roi.properties) == {
        "id": "ROI:0", "description": "by hand", "text": "mitotic", "isLocked": "true",
    }  # fmt: skip
    assert one(model.Polygon(points=SQUARE, text="mitotic")).name == "mitotic"
    assert one(model.Polygon(points=SQUARE, the_z=4)).position == (0, 5, 0)


def test_both_heads_of_a_line() -> None:
    line = model.Line(x1=1, y1=2, x2=3, y2=4, marker_start="Arrow", marker_end="Arrow")
    assert one(line).details == Arrow(double_headed=True)


def test_a_label() -> None:
    shape = model.Label(
        x=3, y=4, text="two\nlines", font_family="serif", font_style="BoldItalic", transform=TURNED
    )
    text: Any = one(shape).details
    assert (text.text, text.font, text.size) == ("two\nlines", "Serif", 12)
    assert (text.bold, text.italic, text.angle) == (True, True, -90)


def test_shapes_of_one_roi_share_its_name_and_id() -> None:
    shapes = model.Point(x=1, y=2, the_z=0), model.Point(x=3, y=4, the_z=1)
    rois = from_ome(document(*shapes, name="track"))
    assert [(roi.name, roi.properties["id"]) for roi in rois] == [("track", "ROI:0")] * 2
    assert [roi.position for roi in rois] == [(0, 1, 0), (0, 2, 0)]


def test_images_and_map_annotations() -> None:
    pixels: Any = {
        "dimension_order": "XYZCT", "type": "uint8", "metadata_only": True,
        "size_x": 9, "size_y": 9, "size_z": 1, "size_c": 1, "size_t": 1,
    }  # fmt: skip
    pairs = model.MapAnnotation(id="Annotation:0", value={"area": "12.5"})
    words = model.CommentAnnotation(id="Annotation:1", value="nice")
    roi = model.ROI(
        id="ROI:0", union=[model.Point(x=1, y=2)],
        annotation_refs=[{"id": "Annotation:0"}, {"id": "Annotation:1"}],
    )  # fmt: skip
    images = [
        model.Image(id=f"Image:{n}", pixels=pixels, roi_refs=[{"id": "ROI:0"}] * n)
        for n in range(2)
    ]
    ome = ome_types.OME(images=images, rois=[roi], structured_annotations=[pairs, words])
    with pytest.warns(LossyConversion, match="annotation that is no map") as told:
        [found] = from_ome(ome.to_xml())
    assert told[0].filename == __file__
    assert dict(found.properties) == {"area": "12.5", "image": "Image:1", "id": "ROI:0"}


def test_text_bytes_paths_tiffs_and_objects(tmp_path: Path) -> None:
    ome = document(model.Point(x=1, y=2), name="µ")
    text = ome.to_xml()
    file, tiff = tmp_path / "a.ome.xml", tmp_path / "a.ome.tif"
    file.write_text(text, encoding="utf-8")
    tifffile.imwrite(tiff, np.zeros((2, 2), np.uint8), description=text.encode(), metadata=None)
    expected = from_ome(ome)
    assert expected[0].name == "µ"
    declared = f'<?xml version="1.0" encoding="UTF-16"?>\n{text}'
    utf16 = f'<?xml version="1.0" encoding="UTF-16"?>\n{text}'.encode("utf-16")
    for each in (text, "\ufeff \n" + text, declared, text.encode(), utf16, file, str(file), tiff):
        assert from_ome(each) == expected


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_any_mask_keeps_its_pixels(pixels: Any) -> None:
    [roi] = from_ome(document(mask(pixels, 2, 3)))
    expected = np.zeros((15, 15), bool)
    expected[3 : 3 + pixels.shape[0], 2 : 2 + pixels.shape[1]] = pixels
    np.testing.assert_array_equal(to_mask(roi, expected.shape), expected)


@pytest.mark.parametrize("method", ["zlib", "bzip2", "none"])
def test_packed_masks_and_masks_of_bytes(method: str) -> None:
    pixels = np.zeros((5, 7), np.uint8)
    pixels[1:4, 2:5] = 1
    for data in (np.packbits(pixels).tobytes(), pixels.tobytes()):
        packed = data
        if method != "none":
            packed = zlib.compress(data) if method == "zlib" else bz2.compress(data)
        shape = mask(pixels)
        shape.bin_data = model.BinData(
            value=packed, big_endian=True, length=len(packed), compression=method
        )
        np.testing.assert_array_equal(to_mask(one(shape), pixels.shape), pixels)


def test_a_mask_is_bounded_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(1 << 22))
    for width, told in ((8, "8 x 8"), (1 << 20, "larger than any plane"), (2.5, "can't be 2.5")):
        shape = mask(np.ones((8, 8)))
        shape.width = width
        shape.height = width
        shape.bin_data = model.BinData(
            value=bomb, big_endian=True, length=len(bomb), compression="zlib"
        )
        with pytest.raises(InvalidItem, match=told):
            from_ome(document(shape))
    assert len(masks._unpacked(shape.bin_data, 99)) == 100
    monkeypatch.setattr(masks, "MAX_EDGES", 9)
    with pytest.raises(InvalidItem, match="outline is 24 pixels"):
        from_ome(document(mask(np.indices((4, 4)).sum(axis=0) % 2)))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (model.Polygon(points="1,2 3"), "no pairs"),
        (model.Polygon(points="1,2 3,4"), "2 coordinate pairs"),
        (model.Polygon(points="1,2 3,4 nan,5"), "infinite"),
        (model.Rectangle(x=0, y=0, width=-1, height=1), "negative size"),
        (model.Ellipse(x=0, y=0, radius_x=-1, radius_y=1), "radii"),
        (mask([[0]]), "no pixel"),
    ],
    ids=["odd", "two", "nan", "rectangle", "ellipse", "mask"],
)
def test_what_cannot_be_read_is_left_out_and_told(shape: Any, told: str) -> None:
    with pytest.raises(InvalidItem, match=told):
        from_ome(document(shape))
    with pytest.warns(LossyConversion, match=f"1 shapes .*{shape.id} of ROI:0: .*{told}"):
        assert len(from_ome(document(shape, model.Point(x=1, y=2)))) == 1


def test_what_is_not_kept_of_a_shape_is_told() -> None:
    wide = model.Point(x=1, y=2, stroke_width=3, stroke_width_unit="µm")
    with pytest.warns(LossyConversion, match=r"head at a line.*width in µm"):
        from_ome(document(wide, model.Polyline(points="0,0 1,1 2,2", marker_end="Arrow")))


LAUGHS = '<?xml version="1.0"?>\n<!DOCTYPE OME [<!ENTITY a "aaaa">]><OME>&a;</OME>'


@pytest.mark.parametrize(
    "source",
    [5, None, b"", b"abc", "<", "<OME/>", "<html></html>", LAUGHS, LAUGHS.encode("utf-16"),
     LAUGHS.replace("<!D", f"<!--{'x' * 9999}--><!D")],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_ome_xml(source: Any) -> None:
    with pytest.raises(InvalidItem, match="no OME-XML"):
        from_ome(source)


def test_files_that_are_none(tmp_path: Path) -> None:
    plain, cut = tmp_path / "a.tif", tmp_path / "b.tif"
    tifffile.imwrite(plain, np.zeros((2, 2), np.uint8))
    cut.write_bytes(b"II*\0\x08\0\0\0")
    for file in (plain, cut):
        with pytest.raises(InvalidItem, match="no OME-XML"):
            from_ome(file)
    with pytest.raises(FileNotFoundError):
        from_ome(str(tmp_path / "none.ome.xml"))


def test_a_document_without_rois() -> None:
    assert from_ome(ome_types.OME().to_xml()) == []


def test_without_ome_types_the_cure_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ome_types", None)
    with pytest.raises(UsageError, match=r"openhcs-stream\[ome\]"):
        from_ome("<OME/>")
    importlib.import_module("openhcs_stream.rois")
