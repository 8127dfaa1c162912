"""Files into items: axes, pixel sizes, channel names, and what is no such file."""

from __future__ import annotations

import json
import sys
import types
import zipfile
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from openhcs_stream.cli import _readers
from openhcs_stream.cli._readers import FileItem, read
from openhcs_stream.errors import InvalidItem, UsageError
from openhcs_stream.rois import Roi, _files, to_imagej

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


def image(*shape: int, dtype: str = "u2") -> npt.NDArray[Any]:
    return (np.arange(np.prod(shape)) % 250).astype(dtype).reshape(shape)


def only(path: Path, **options: Any) -> FileItem:
    (item,) = read(path, **options)
    return item


class TestTiff:
    @pytest.fixture(autouse=True)
    def _tifffile(self) -> None:
        pytest.importorskip("tifffile")

    def write(self, path: Path, data: npt.NDArray[Any], **options: Any) -> Path:
        import tifffile

        tifffile.imwrite(path, data, **options)
        return path

    def test_plain(self, tmp_path: Path) -> None:
        item = only(self.write(tmp_path / "cells.tif", image(5, 7)))
        assert (item.kind, item.name, item.axes, item.pixel_size) == ("image", "cells", "YX", ())
        assert np.array_equal(item.data, image(5, 7))

    def test_labels(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "mask.tif", image(5, 7))
        assert only(path, labels=True).kind == "labels"

    def test_rgb(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.tif", image(5, 7, 3, dtype="u1"), photometric="rgb")
        assert only(path).axes == "YXS"

    def test_stack_without_names_keeps_its_letter(self, tmp_path: Path) -> None:
        item = only(self.write(tmp_path / "a.tif", image(4, 5, 7), photometric="minisblack"))
        assert item.axes[-2:] == "YX"
        assert item.data.shape == (4, 5, 7)

    def test_ome(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path / "a.ome.tif",
            image(2, 3, 5, 7),
            ome=True,
            metadata={
                "axes": "CZYX",
                "PhysicalSizeX": 0.25,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": 250.0,
                "PhysicalSizeYUnit": "nm",
                "PhysicalSizeZ": 0.002,
                "PhysicalSizeZUnit": "mm",
                "Channel": {"Name": ["DAPI", "GFP"]},
            },
        )
        first, second = read(path)
        assert first.name == second.name == "a"
        assert first.place == {"channel": "DAPI"}
        assert second.place == {"channel": "GFP"}
        assert first.axes == "ZYX"
        assert first.pixel_size == pytest.approx((2.0, 0.25, 0.25))
        assert first.unit == "um"
        assert np.array_equal(second.data, image(2, 3, 5, 7)[1])

    def test_ome_without_channel_names_stays_whole(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path / "a.ome.tif", image(2, 5, 7), ome=True, metadata={"axes": "CYX"}
        )
        assert only(path).axes == "CYX"

    def test_several_images_in_one_file(self, tmp_path: Path) -> None:
        import tifffile

        path = tmp_path / "a.ome.tif"
        with tifffile.TiffWriter(path, ome=True) as writer:
            writer.write(image(5, 7), metadata={"axes": "YX", "Name": "near"})
            writer.write(image(6, 8), metadata={"axes": "YX", "Name": "far"})
        assert [(item.name, item.data.shape) for item in read(path)] == [
            ("a [near]", (5, 7)),
            ("a [far]", (6, 8)),
        ]

    def test_imagej(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path / "a.tif",
            image(3, 2, 5, 7),
            imagej=True,
            resolution=(4.0, 2.0),
            metadata={"axes": "ZCYX", "spacing": 1.5, "unit": "micron"},
        )
        item = only(path)
        assert item.axes == "ZCYX"
        assert item.pixel_size == pytest.approx((1.5, 0.5, 0.25))
        assert item.unit == "um"

    def test_imagej_channel_labels(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path / "a.tif",
            image(2, 5, 7),
            imagej=True,
            metadata={"axes": "CYX", "Labels": ["DAPI", "GFP"]},
        )
        assert [item.place for item in read(path)] == [{"channel": "DAPI"}, {"channel": "GFP"}]

    @pytest.mark.parametrize(
        ("resolution", "unit", "size"),
        [
            ((40000, 20000), "CENTIMETER", (0.5, 0.25)),
            ((50800, 50800), "INCH", (0.5, 0.5)),
            ((72, 72), "INCH", ()),  # nobody measured that
            ((300, 300), "INCH", ()),
            ((2, 2), "NONE", ()),
        ],
    )
    def test_resolution_tags(
        self, tmp_path: Path, resolution: Any, unit: str, size: tuple[float, ...]
    ) -> None:
        path = self.write(
            tmp_path / "a.tif", image(5, 7), resolution=resolution, resolutionunit=unit
        )
        item = only(path)
        assert item.pixel_size == pytest.approx(size)
        assert item.unit == ("um" if size else "")

    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_large_files_are_mapped_where_they_can_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
    ) -> None:
        monkeypatch.setattr(_readers, "_MAP_NBYTES", 1)
        path = self.write(tmp_path / "a.tif", image(1, 50, 70), compression=compression)
        item = only(path)
        assert isinstance(item.data, np.memmap) == (compression is None)
        assert len(item.axes) == item.data.ndim
        assert np.array_equal(item.data.squeeze(), image(50, 70))

    @pytest.mark.parametrize("content", [b"", b"II*\0", b"no image at all"])
    def test_broken(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.tif"
        path.write_bytes(content)
        with pytest.raises(InvalidItem, match=r"a\.tif can't be read"):
            list(read(path))

    def test_truncated(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.tif", image(50, 70), compression="zlib")
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(InvalidItem, match=r"a\.tif can't be read"):
            list(read(path))


class TestPictures:
    @pytest.fixture(autouse=True)
    def _imageio(self) -> None:
        pytest.importorskip("imageio")

    @pytest.mark.parametrize(
        ("shape", "dtype", "axes"),
        [
            ((5, 7), "u1", "YX"),
            ((5, 7), "u2", "YX"),
            ((5, 7, 3), "u1", "YXS"),
            ((5, 7, 4), "u1", "YXS"),
            ((3, 3), "u1", "YX"),
        ],
        ids=str,
    )
    def test_png(self, tmp_path: Path, shape: tuple[int, ...], dtype: str, axes: str) -> None:
        import imageio.v3 as iio

        path = tmp_path / "cells.png"
        iio.imwrite(path, image(*shape, dtype=dtype))
        item = only(path)
        assert (item.name, item.axes) == ("cells", axes)
        assert np.array_equal(item.data, image(*shape, dtype=dtype))

    def test_grey_with_alpha_is_grey(self, tmp_path: Path) -> None:
        pillow = pytest.importorskip("PIL.Image")
        pillow.new("LA", (7, 5), (9, 200)).save(tmp_path / "a.png")
        item = only(tmp_path / "a.png")
        assert item.axes == "YX"
        assert item.data.shape == (5, 7)

    def test_jpeg(self, tmp_path: Path) -> None:
        import imageio.v3 as iio

        iio.imwrite(tmp_path / "a.JPG", image(16, 24, 3, dtype="u1"), extension=".jpg")
        assert only(tmp_path / "a.JPG").axes == "YXS"

    def test_broken(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        with pytest.raises(InvalidItem, match=r"a\.png can't be read"):
            list(read(tmp_path / "a.png"))

    def test_without_imageio(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "imageio", None)
        monkeypatch.setitem(sys.modules, "imageio.v3", None)
        with pytest.raises(UsageError, match=r"pip install 'openhcs-stream\[images\]'"):
            list(read(tmp_path / "a.png"))


class FakeArray:
    """As much of zarr's array as the reader uses."""

    def __init__(self, data: npt.NDArray[Any]) -> None:
        self.data = data
        self.shape, self.ndim, self.nbytes = data.shape, data.ndim, data.nbytes
        self.reads: list[Any] = []

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        self.reads.append(index)
        part: npt.NDArray[Any] = self.data[index]
        return part


class TestZarr:
    """Its metadata by a folder, its pixels by a double: zarr is in no extra of ours."""

    @pytest.fixture
    def array(self, monkeypatch: pytest.MonkeyPatch) -> FakeArray:
        array = FakeArray(image(2, 2, 3, 5, 7))
        self.opened: list[str] = []

        def open_array(path: str, mode: str) -> FakeArray:
            assert mode == "r"
            self.opened.append(path)
            return array

        fake = types.ModuleType("zarr")
        fake.open_array = open_array  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "zarr", fake)
        return array

    MULTISCALE: ClassVar[dict[str, Any]] = {
        "axes": [
            {"name": "t", "type": "time"},
            {"name": "c", "type": "channel"},
            *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
        ],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 2, 0.5, 0.25]}],
            },
            {"path": "1"},
        ],
    }

    def write(self, path: Path, *, version: str = "0.4", **more: Any) -> Path:
        path.mkdir()
        facts = {"multiscales": [self.MULTISCALE], **more}
        if version == "0.4":
            (path / ".zattrs").write_text(json.dumps(facts))
        else:
            content = {"zarr_format": 3, "attributes": {"ome": {"version": version, **facts}}}
            (path / "zarr.json").write_text(json.dumps(content))
        return path

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    @pytest.mark.parametrize("name", ["a.ome.zarr", "0"])
    def test_axes_and_scale(
        self, tmp_path: Path, array: FakeArray, version: str, name: str
    ) -> None:
        path = self.write(tmp_path / name, version=version)
        item = only(path)
        assert item.axes == "TCZYX"
        assert item.pixel_size == (2.0, 0.5, 0.25)
        assert item.unit == "um"
        assert item.name == name.removesuffix(".ome.zarr")
        assert np.array_equal(item.data, array.data)
        assert self.opened == [str(path / "0")]

    def test_channel_names(self, tmp_path: Path, array: FakeArray) -> None:
        path = self.write(
            tmp_path / "a.zarr", omero={"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
        )
        assert [(item.place, item.axes) for item in read(path)] == [
            ({"channel": "DAPI"}, "TZYX"),
            ({"channel": "GFP"}, "TZYX"),
        ]

    def test_large_one_goes_piece_by_piece(
        self, tmp_path: Path, array: FakeArray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_readers, "_WHOLE_NBYTES", 1)
        items = list(read(self.write(tmp_path / "a.zarr")))
        assert [item.place for item in items] == [{"time": 0}, {"time": 1}]
        assert [item.axes for item in items] == ["CZYX", "CZYX"]
        assert array.reads == [0, 1]

    def test_without_zarr(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "zarr", None)
        with pytest.raises(UsageError, match=r"zarr is not installed.*pip install zarr"):
            list(read(self.write(tmp_path / "a.zarr")))

    def test_folder_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.zarr").mkdir()
        with pytest.raises(UsageError, match="is no OME-Zarr image"):
            list(read(tmp_path / "a.zarr"))
        with pytest.raises(UsageError, match="is a folder"):
            list(read(tmp_path))


class TestRois:
    SQUARE = Roi.polygon([(1, 1), (1, 4), (4, 4), (4, 1)], name="nucleus")

    def test_one(self, tmp_path: Path) -> None:
        (tmp_path / "a.roi").write_bytes(to_imagej(self.SQUARE))
        item = only(tmp_path / "a.roi")
        assert (item.kind, item.name) == ("rois", "a")
        (roi,) = item.data
        assert np.array_equal(roi.coordinates, self.SQUARE.coordinates)

    def test_list(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "RoiSet.zip", "w") as archive:
            archive.writestr("b.roi", to_imagej(self.SQUARE))
            archive.writestr("a.roi", to_imagej(Roi.points([(1, 2)])))
            archive.writestr("notes.txt", "not a ROI")
        assert [roi.kind for roi in only(tmp_path / "RoiSet.zip").data] == ["polygon", "point"]

    def test_list_with_nothing_in_it(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("notes.txt", "")
        with pytest.raises(UsageError, match="has no ROI in it"):
            list(read(tmp_path / "a.zip"))

    def test_list_that_would_fill_the_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_files, "MAX_ROI_NBYTES", 1000)
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.roi", bytes(2000))
        with pytest.raises(InvalidItem, match=r"a\.zip. unpacks to more"):
            list(read(tmp_path / "a.zip"))

    @pytest.mark.parametrize("suffix", [".roi", ".zip"])
    def test_broken(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"no such file")
        with pytest.raises(InvalidItem):
            list(read(path))


class TestGeoJson:
    RING = ((1, 2), (5, 2), (5, 6), (1, 2))

    def read(self, tmp_path: Path, document: Any) -> list[Roi]:
        path = tmp_path / "a.geojson"
        path.write_text(json.dumps(document))
        rois: list[Roi] = only(path).data
        return rois

    def feature(self, kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
        return {
            "type": "Feature",
            "geometry": {"type": kind, "coordinates": coordinates},
            "properties": properties,
        }

    def test_polygons_count_from_the_corner(self, tmp_path: Path) -> None:
        (roi,) = self.read(
            tmp_path,
            {
                "type": "FeatureCollection",
                "features": [self.feature("Polygon", [self.RING], name="nucleus")],
            },
        )
        assert (roi.kind, roi.name) == ("polygon", "nucleus")
        assert roi.coordinates.tolist() == [[1, 2], [5, 2], [5, 6]]

    def test_lines_and_points_count_from_the_centre(self, tmp_path: Path) -> None:
        line, point = self.read(
            tmp_path,
            [self.feature("LineString", [(1.5, 2.5), (3, 4)]), self.feature("Point", (1.5, 2.5))],
        )
        assert line.kind == "line"
        assert line.coordinates.tolist() == [[1, 2], [2.5, 3.5]]
        assert point.kind == "point"
        assert point.coordinates.tolist() == [[1, 2]]

    def test_every_kind_and_order(self, tmp_path: Path) -> None:
        rois = self.read(
            tmp_path,
            {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "MultiPolygon", "coordinates": [[self.RING], [self.RING]]},
                    {"type": "MultiPoint", "coordinates": [(1, 2), (3, 4)]},
                    {"type": "MultiLineString", "coordinates": [[(1, 2), (3, 4)]]},
                ],
            },
        )
        assert [roi.kind for roi in rois] == ["composite", "point", "line"]

    def test_names_of_qupath(self, tmp_path: Path) -> None:
        rois = self.read(
            tmp_path,
            [
                self.feature("Point", (1, 2), classification={"name": "Tumor"}),
                self.feature("Point", (1, 2), label=7),
                {**self.feature("Point", (1, 2)), "id": "x-1"},
                {"type": "Feature", "geometry": None, "properties": None},
            ],
        )
        assert [roi.name for roi in rois] == ["", "7", ""]
        assert [dict(roi.properties) for roi in rois] == [
            {"classification": "Tumor"},
            {},
            {"id": "x-1"},
        ]

    def test_holes_are_kept(self, tmp_path: Path) -> None:
        (roi,) = self.read(tmp_path, self.feature("Polygon", [self.RING, self.RING]))
        assert (roi.kind, len(roi.coordinates)) == ("composite", 6)

    def test_what_is_left_out_is_told_with_the_file(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (roi,) = self.read(tmp_path, [self.feature("Circle", [1]), self.feature("Point", (1, 2))])
        assert roi.kind == "point"
        assert "a.geojson: GeoJSON: features that can't be read are left out: 0" in caplog.text

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"type": "Nonsense"},
            7,
            {"type": "Point", "coordinates": ["a", "b"]},
            {"type": "Point", "coordinates": [1]},
            {"type": "Point", "coordinates": [float("inf"), 1]},
            {"type": "Polygon", "coordinates": [[(1, 2), (3, 4)]]},
            {"type": "Circle", "coordinates": [(1, 2)]},
        ],
        ids=json.dumps,
    )
    def test_what_is_none(self, tmp_path: Path, document: Any) -> None:
        with pytest.raises(InvalidItem):
            self.read(tmp_path, document)

    def test_deep_nesting(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text("[" * 100_000)
        with pytest.raises(InvalidItem, match="no GeoJSON"):
            list(read(path))


def test_ome_xml(tmp_path: Path) -> None:
    model: Any = import_module("ome_types.model")
    roi = model.ROI(id="ROI:0", name="cell", union=[model.Point(x=1, y=2)])
    (tmp_path / "plate.ome.xml").write_text(model.OME(rois=[roi]).to_xml(), encoding="utf-8")
    item = only(tmp_path / "plate.ome.xml")
    assert (item.kind, [each.name for each in item.data]) == ("rois", ["cell"])
    (tmp_path / "none.ome.xml").write_text(model.OME().to_xml(), encoding="utf-8")
    with pytest.raises(UsageError, match="has no ROI in it"):
        list(read(tmp_path / "none.ome.xml"))


def test_unknown_kinds(tmp_path: Path) -> None:
    for name in ("a.czi", "noend", "b.zarr"):
        (tmp_path / name).write_text("")
        with pytest.raises(UsageError, match=r"no kind that can be read. Known are \.tif"):
            list(read(tmp_path / name))
