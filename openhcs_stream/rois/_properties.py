"""A dict that nobody can change: the properties of a ROI, which other ROIs may share."""

from __future__ import annotations

from typing import Any, Final, NoReturn

from openhcs_stream.errors import InvalidItem

__all__ = ["NO_PROPERTIES", "Properties", "checked_properties", "is_text"]


class Properties(dict[str, str]):
    """Texts by name. Equal to a dict of the same, written by whatever writes a dict; read-only.

    ``types.MappingProxyType`` would be neither pickled nor encoded.
    """

    __slots__ = ()

    def _refuse(self, *args: object, **fields: object) -> NoReturn:
        raise TypeError(
            "the properties of a ROI can't be changed: "
            "make another ROI with roi.replace(properties={**roi.properties, name: text})"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled as a whole, and not filled entry by entry."""
        return Properties, (dict(self),)

    def __copy__(self) -> Properties:
        """Nobody can change it."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Properties:
        """Nobody can change it, nor its texts."""
        return self


#: What a ROI without any has.
NO_PROPERTIES: Final = Properties()


def checked_properties(given: Any) -> Properties:
    """Take a mapping of texts.

    Raises
    ------
    InvalidItem
        It is none.
    """
    if type(given) is Properties:
        return given
    try:
        properties = Properties(given)
    except (TypeError, ValueError):
        properties = None
    if properties is None or not all(is_text(text) for pair in properties.items() for text in pair):
        raise InvalidItem(
            f"the properties {given!r} are no texts.", cure="Use a dict of str to str."
        )
    return properties


def is_text(given: object) -> bool:
    """Whether it is a text that can be sent and saved: half a surrogate pair can't."""
    if not isinstance(given, str):
        return False
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True
