"""What requests about edits and questions carry, typed: a peer's arguments are checked here."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from openhcs_stream.errors import UsageError
from openhcs_stream.messages import PlaceValue, Request, Text

__all__ = [
    "MAX_LISTENERS",
    "AskArgs",
    "DroppedArgs",
    "EditsArgs",
    "NoEditsArgs",
    "WithdrawArgs",
    "arguments",
]

#: Listeners of one session.
MAX_LISTENERS = 256

Names = Annotated[tuple[Text, ...], Meta(max_length=256)]
Number = Annotated[int, Meta(ge=0, le=2**53)]


class DroppedArgs(Struct, forbid_unknown_fields=True):
    """Of "dropped", which has no reply: how many items were let go and never sent."""

    items: Number


class EditsArgs(Struct, forbid_unknown_fields=True):
    """Of "edits": tell of edits from now on, and of those that wait."""

    listener: Number
    names: Names = ()  #: of layers; none: all
    place: dict[Text, PlaceValue] = {}


class NoEditsArgs(Struct, forbid_unknown_fields=True):
    """Of "no_edits": a listener has heard enough."""

    listener: Number


class AskArgs(Struct, forbid_unknown_fields=True):
    """Of "ask": show a question to the person at the viewer; the reply comes with the answer."""

    text: Text
    names: Names = ()
    place: dict[Text, PlaceValue] = {}


class WithdrawArgs(Struct, forbid_unknown_fields=True):
    """Of "withdraw": nobody waits for the answer to the request of that number any more."""

    number: Number


_T = TypeVar("_T", bound=Struct)


def arguments(request: Request, form: type[_T]) -> _T:
    """Check a request's arguments.

    Raises
    ------
    UsageError
        They are not what the request takes.
    """
    args: Any = request.args
    try:
        return msgspec.convert(args, form)
    except msgspec.ValidationError as error:
        raise UsageError(f"request {request.verb!r} can't be done: {error}.") from error
