"""ImageJ's windows on the screen: opened side by side, grown in place, and drawn into a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from openhcs_stream_fiji._extent import Position
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._pixels import Keeper

__all__ = ["Windows"]

#: Between windows, and above each for its title, pixels.
_GAP: Final = 8
_TITLE: Final = 22
#: Kept free at the right for the ROI Manager.
_MANAGER: Final = 250
#: What a window has around its image, and for each slider.
_SIDES, _ABOVE, _SLIDER = 14, 30, 22
_ZOOMS: Final = (1.0, 0.75, 0.5, 1 / 3, 0.25, 1 / 6, 0.125)

_BACKGROUND: Final = (52, 56, 60)
_TITLE_BAR: Final = (84, 92, 100)
_TITLE_TEXT: Final = (240, 240, 240)


class Windows:
    """Opens images in windows of their own. All methods belong to AWT's event thread.

    Parameters
    ----------
    java : Java
    """

    def __init__(self, java: Java) -> None:
        self._java = java
        stack_window = java.StackWindow.class_
        self._fields: dict[str, Any] = {}
        for name in ("nChannels", "nSlices", "nFrames", "c", "z", "t",
                     "cSelector", "zSelector", "tSelector"):  # fmt: skip
            found = stack_window.getDeclaredField(name)
            found.setAccessible(True)
            self._fields[name] = found
        self._add_scrollbars: Any = next(
            method
            for method in stack_window.getDeclaredMethods()
            if str(method.getName()) == "addScrollbars"
        )
        self._add_scrollbars.setAccessible(True)

    def open(self, imp: Any, *, sliders: int) -> Any:
        """Open a window beside those that are open, with room for the sliders it may come to."""
        java = self._java
        zoom, spot = self._find_room(imp, sliders)
        if spot is not None:
            # Moved afterwards, some X servers tell its old place for a while.
            java.ImageWindow.setNextLocation(*spot)
        window = java.StackWindow(imp)
        canvas = window.getCanvas()
        if spot is not None and float(canvas.getMagnification()) != zoom:
            canvas.setMagnification(zoom)
            canvas.setSize(int(imp.getWidth() * zoom), int(imp.getHeight() * zoom))
            window.pack()
        return window

    def refit(self, imp: Any, shape: Position, *, resized: bool) -> None:
        """Give a window the sliders for its image's new dimensions; zoom and place stay."""
        window = imp.getWindow()
        if resized:
            window.updateImage(imp)
        get = self._fields
        bars = [get[name].get(window) for name in ("cSelector", "zSelector", "tSelector")]
        had = sum(bar is not None for bar in bars)
        channels, slices, frames = shape
        # With one dimension that is not channels, ImageJ has a single slider over all slices.
        single = channels == 1 and (slices == 1 or frames == 1)
        lengths = (1, slices * frames, 1) if single else shape
        fits = not resized and all(
            (bar is not None) == (length > 1) for bar, length in zip(bars, lengths, strict=True)
        )
        was_single = not window.isHyperStack() and had == 1 and bars[0] is None
        if fits and (single == was_single or had == 0):
            for name, bar, length in zip(
                ("nChannels", "nSlices", "nFrames"), bars, lengths, strict=True
            ):
                get[name].setInt(window, length)
                if bar is not None:
                    bar.setMaximum(length + 1)
                    bar.setBlockIncrement(max(1, length // 10))
            return
        imp.setOpenAsHyperStack(True)
        self._add_scrollbars.invoke(window, imp)
        if lengths == (1, 1, 1):
            for name in ("nChannels", "nSlices", "nFrames"):
                get[name].setInt(window, 1)
        for name in "czt":  # the new sliders stand at the beginning
            get[name].setInt(window, 1)
        window.pack()

    def _find_room(self, imp: Any, sliders: int) -> tuple[float, tuple[int, int] | None]:
        """A zoom, and a place at which a window covers no other; None: where ImageJ likes."""
        java = self._java
        screen = java.GraphicsEnvironment.getLocalGraphicsEnvironment().getMaximumWindowBounds()
        left, top = screen.x + _GAP, screen.y + _TITLE
        right = screen.x + screen.width - (_MANAGER if screen.width > 4 * _MANAGER else 0) - _GAP
        bottom = screen.y + screen.height - _GAP
        boxes = [frame.getBounds() for frame in java.Frame.getFrames() if frame.isShowing()]
        taken = [(b.x, b.y - _TITLE, b.x + b.width, b.y + b.height) for b in boxes]
        main = java.IJ.getInstance()
        if main is not None and main.isShowing() and main.getY() < top + _TITLE:
            top = main.getY() + main.getHeight() + _GAP + _TITLE  # images lie below the tools
        for zoom in _ZOOMS:
            width, height = imp.getWidth() * zoom, imp.getHeight() * zoom
            if zoom < 1 and max(width, height) < 100:
                break
            spot = _free_spot(
                int(width) + _SIDES,
                int(height) + _ABOVE + _SLIDER * sliders,
                taken,
                (left, top, right, bottom),
            )
            if spot is not None:
                return zoom, spot
        return 1.0, None

    # --- the picture --------------------------------------------------------------------------

    def picture(self, keeper: Keeper) -> npt.NDArray[np.uint8]:
        """Draw all windows where they stand: (Y, X, 3) uint8.

        The windows draw themselves, so that nothing of other programs is in the picture, and
        nothing is missing that lies under another window.
        """
        from openhcs_stream_fiji._pixels import Form

        java = self._java
        frames = [frame for frame in java.Frame.getFrames() if frame.isShowing()]
        boxes = [frame.getBounds() for frame in frames]
        left = min((box.x for box in boxes), default=0) - _GAP
        top = min((box.y for box in boxes), default=0) - _TITLE - _GAP
        width = max((box.x + box.width for box in boxes), default=300) - left + _GAP
        height = max((box.y + box.height for box in boxes), default=200) - top + _GAP
        canvas = java.BufferedImage(width, height, java.BufferedImage.TYPE_INT_RGB)
        graphics = canvas.createGraphics()
        try:
            graphics.setRenderingHint(
                java.RenderingHints.KEY_TEXT_ANTIALIASING,
                java.RenderingHints.VALUE_TEXT_ANTIALIAS_ON,
            )
            graphics.setColor(java.Color(*_BACKGROUND))
            graphics.fillRect(0, 0, width, height)
            for frame, box in zip(frames, boxes, strict=True):
                self._draw(graphics, frame, box, box.x - left, box.y - top)
        finally:
            graphics.dispose()
        pixels = canvas.getRaster().getDataBuffer().getData()
        return keeper.read_rgb(pixels, Form("int", height, width))

    def _draw(self, graphics: Any, frame: Any, box: Any, x: int, y: int) -> None:
        java = self._java
        own = java.BufferedImage(box.width, box.height, java.BufferedImage.TYPE_INT_RGB)
        inside = own.createGraphics()
        try:
            inside.setColor(frame.getBackground())
            inside.fillRect(0, 0, box.width, box.height)
            # Not frame.printAll: it draws a window manager's frame of its own over the content.
            if hasattr(frame, "drawInfo"):
                inside.setColor(frame.getForeground())
                inside.setFont(frame.getFont())
                frame.drawInfo(inside)
            for component in frame.getComponents():
                where = component.getBounds()
                part = inside.create(where.x, where.y, where.width, where.height)
                component.printAll(part)
                part.dispose()
            self._draw_menus(inside, frame)
        finally:
            inside.dispose()
        graphics.drawImage(own, x, y, None)
        graphics.setColor(java.Color(*_TITLE_BAR))
        graphics.fillRect(x, y - _TITLE, box.width, _TITLE)
        graphics.setColor(java.Color(*_TITLE_TEXT))
        graphics.setFont(java.Font("SansSerif", java.Font.BOLD, 12))
        clip = graphics.getClip()
        graphics.clipRect(x, y - _TITLE, box.width, _TITLE)
        graphics.drawString(frame.getTitle(), x + 6, y - 7)
        graphics.setClip(clip)

    def _draw_menus(self, graphics: Any, frame: Any) -> None:
        """The menu bar is the system's; only its words are known."""
        menus = frame.getMenuBar()
        if menus is None or frame.getInsets().top < 12:
            return
        java = self._java
        graphics.setColor(java.Color.BLACK)
        graphics.setFont(java.Font("SansSerif", java.Font.PLAIN, 12))
        x = frame.getInsets().left + 8
        for number in range(menus.getMenuCount()):
            label = menus.getMenu(number).getLabel()
            graphics.drawString(label, x, frame.getInsets().top - 6)
            x += graphics.getFontMetrics().stringWidth(label) + 18


def _free_spot(
    width: int,
    height: int,
    taken: list[tuple[int, int, int, int]],
    area: tuple[int, int, int, int],
) -> tuple[int, int] | None:
    """The top-left-most place where a window and its title cover no other; None: there is none.

    `taken` and `area` are (left, top, right, bottom); a window's title is above its top.
    """
    left, top, right, bottom = area
    xs = sorted({left, *(box[2] + _GAP for box in taken)})
    ys = sorted({top, *(box[3] + _GAP + _TITLE for box in taken)})
    for y in ys:
        for x in xs:
            if x < left or y < top or x + width > right or y + height > bottom:
                continue
            if not any(
                x < box[2] and box[0] < x + width and y - _TITLE < box[3] and box[1] < y + height
                for box in taken
            ):
                return x, y
    return None
