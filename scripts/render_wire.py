"""Render WIRE.md, the wire for implementers in other languages, from the code that speaks it.

``.venv/bin/python scripts/render_wire.py`` writes the file; with ``--check`` it only compares, and
exits with 1 where they differ. Fields, types, bounds and comments are read from
`openhcs_stream/messages.py`; the bytes of the examples are what its `encode` makes.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from openhcs_stream import messages
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    ArenaOffer,
    ArenaRetired,
    Bye,
    Edited,
    EditRecord,
    EditsTaken,
    Failure,
    FileShown,
    Hello,
    Item,
    Items,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    More,
    Part,
    Ping,
    Pong,
    Refusal,
    Reply,
    Report,
    Request,
    Welcome,
)
from openhcs_stream.pixels._arena import MAX_ARENA_NBYTES
from openhcs_stream.protocol import HEARTBEAT_S, MAX_LAYERS, SILENCE_S
from openhcs_stream.protocol._receiver import MAX_PARTIAL
from openhcs_stream.rois import BLOCK_VERSION, KINDS, MAX_ROIS, Roi, _wire
from openhcs_stream.rois import encode as encode_rois
from openhcs_stream.transport import MAX_BLOBS, UNIX_MAX_FRAME, ZMQ_MAX_FRAME
from openhcs_stream.viewer._serve import GREETING_S

__all__ = ["EXAMPLES", "render"]

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "WIRE.md"

#: One of each message, as in a short session: a worker sends one image.
EXAMPLES: tuple[msgspec.Struct, ...] = (
    Hello(MAJOR, MINOR, "5e55", "stream", "worker 3", "ada", "b007:4026", 4711, "", ("unix",)),
    Welcome(MAJOR, MINOR, "napari", "napari", 42, "unix:openhcs-stream-1f", "c0de"),
    Refusal("the token is missing or wrong.", "Connect by name."),
    LaneOpened("5e55", "c0de"),
    ArenaOffer(0, 1 << 24),
    ArenaRetired(0),
    LayerDeclared(0, LayerSpec("image", "raw", "YX", ("well", "z"), "plate 1")),
    Items((Item(0, 0, ("A01", 3), (512, 512), "<u2", 524288, (Part(0, 0, 524288, 1),)),)),
    More(1, (Part(0, 524288, 4096, 2),)),
    FileShown(Item(2, 0, ("A01", 4), (512, 512), "<u2", 524288, ()), "raw", 352, True),
    Report((0,), (), (Failure(1, "no such axis"),), (2,)),
    Ping(1),
    Pong(1),
    Request(1, "read", {"name": "raw", "place": {"z": 3}}),
    Reply(1, False, None, "there is no request 'dance'."),
    Edited(
        EditRecord(
            7,
            1.8e9,
            "ada",
            "painted",
            "labels",
            "nuclei",
            "plate 1",
            {"z": 3},
            before=b"\0",
            after=b"\5",
            region=(4, 5, 1, 1),
            dtype="|u1",
        ),
        (1,),
    ),
    EditsTaken((7,)),
    Bye("done"),
)

#: Records inside of messages.
RECORDS = ("LayerSpec", "Item", "Part", "Failure", "EditRecord")

CELL = Roi.polygon([[2, 3], [2, 9], [7, 5]], name="cell 1")


# --- reading the source -------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    default: str | None  #: as JSON; None: there must be a value
    comment: str


@dataclass(frozen=True)
class Source:
    """A module's text: its classes with their fields, its named types, its comments."""

    lines: list[str]
    classes: dict[str, ast.ClassDef]
    aliases: dict[str, tuple[ast.expr, int]]

    @classmethod
    def of(cls, path: Path) -> Source:
        text = path.read_text(encoding="utf-8")
        body = ast.parse(text).body
        aliases = {
            node.target.id: (node.value, node.lineno)
            for node in body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and ast.unparse(node.annotation) == "TypeAlias"
            and node.value is not None
        }
        classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
        return cls(text.splitlines(), classes, aliases)

    def fields(self, name: str) -> list[Field]:
        return [
            Field(
                node.target.id,
                type_text(node.annotation),
                None if node.value is None else _default(node.value),
                self.comment(node.lineno, node.end_lineno or node.lineno),
            )
            for node in self.classes[name].body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]

    def docstring(self, name: str) -> str:
        return (ast.get_docstring(self.classes[name]) or "").strip()

    def comment(self, first: int, last: int) -> str:
        """The `#:` text behind a statement, or above it; lines count from 1."""
        _, mark, behind = self.lines[last - 1].partition("#: ")
        if mark:
            return behind.strip()
        above: list[str] = []
        line = first - 2
        while line >= 0 and self.lines[line].lstrip().startswith("#: "):
            above.insert(0, self.lines[line].lstrip()[3:])
            line -= 1
        return " ".join(above)


def type_text(node: ast.expr) -> str:
    """A Python annotation in the words of MessagePack."""
    match node:
        case ast.Subscript(value=ast.Name("Annotated"), slice=ast.Tuple(elts=[inner, meta])):
            return f"{type_text(inner)}{_bounds(meta, type_text(inner))}"
        case ast.Subscript(value=ast.Name("tuple"), slice=ast.Tuple(elts=elements)):
            if isinstance(elements[-1], ast.Constant) and elements[-1].value is ...:
                return f"array of {type_text(elements[0])}"
            return f"array of {len(elements)} {type_text(elements[0])}"
        case ast.Subscript(value=ast.Name("dict"), slice=ast.Tuple(elts=[key, value])):
            return f"map of {type_text(key)} to {type_text(value)}"
        case ast.Subscript(value=ast.Name("Literal"), slice=ast.Tuple(elts=values)):
            return " or ".join(f'"{ast.literal_eval(value)}"' for value in values)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{type_text(left)} or {type_text(right)}"
        case ast.Constant(value=None):
            return "nil"
        case ast.Name("str"):
            return "text"
        case ast.Name("Any"):
            return "anything"
        case ast.Name("memoryview"):
            return "binary"
        case ast.Name(name):
            return name
    raise AssertionError(f"no words for {ast.unparse(node)}")


def _bounds(meta: ast.expr, inner: str) -> str:
    assert isinstance(meta, ast.Call)
    found = {each.arg: _number(each.value) for each in meta.keywords}
    if "max_length" in found:
        counted = "characters" if inner == "text" else "elements"
        return f" (at most {found['max_length']} {counted})"
    return f" ({found['ge']} to {found['le']})"


def _number(node: ast.expr) -> str:
    """A bound, with powers of two as people know them and names as their values."""
    namespace = {**vars(messages), **vars(_wire)}
    value = eval(compile(ast.Expression(node), "bound", "eval"), namespace)
    for sign, number in (("", value), ("-", -value)):
        if number > 4096 and number & (number - 1) == 0:
            return f"{sign}2^{number.bit_length() - 1}"
    return str(value)


def _default(node: ast.expr) -> str:
    if isinstance(node, ast.Call):  # memoryview(b"")
        return "empty"
    if isinstance(node, ast.Name):
        return str(getattr(messages, node.id))
    value = ast.literal_eval(node)
    return msgspec.json.encode(value).decode()


# --- writing ------------------------------------------------------------------------------------


def table(fields: list[Field]) -> str:
    rows = ["| # | field | type | default | |", "| --- | --- | --- | --- | --- |"]
    for number, field in enumerate(fields, 1):
        default = "" if field.default is None else f"`{field.default}`"
        cells = (str(number), f"`{field.name}`", field.type, default, _plain(field.comment))
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(rows)


def hex_text(data: bytes) -> str:
    """Bytes as rows of 32, in hexadecimal."""
    return "\n".join(data[at : at + 32].hex(" ") for at in range(0, len(data), 32))


def json_text(data: bytes) -> str:
    return msgspec.json.encode(msgspec.msgpack.decode(data)).decode()


def _plain(text: str) -> str:
    """Python's words in those of the wire."""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    return re.sub(r"\bNone\b", "nil", text).replace("COMPONENT_ORDER", "the known order")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def message_section(source: Source, name: str, example: msgspec.Struct) -> str:
    tag = type(example).__struct_config__.tag
    frame = messages.encode(example)  # type: ignore[arg-type]
    return f"""### {name}: `"{tag}"`

{_plain(source.docstring(name))}

{table(source.fields(name))}

```
{json_text(frame)}

{hex_text(frame)}
```
"""


def record_section(source: Source, name: str) -> str:
    return f"""### {name}

{_plain(source.docstring(name))}

{table(source.fields(name))}
"""


def types_table(source: Source) -> str:
    rows = ["| name | is | |", "| --- | --- | --- |"]
    for name, (value, line) in source.aliases.items():
        if name != "Message":
            comment = _plain(source.comment(line, line))
            rows.append(f"| {name} | {type_text(value)} | {comment} |")
    return "\n".join(rows)


def dtypes_table() -> str:
    names = {"b": "boolean, 0 or 1", "u": "unsigned integer", "i": "signed integer", "f": "float"}
    order = sorted(messages.DTYPES, key=lambda name: ("buif".index(name[1]), int(name[2:])))
    rows = ["| name | bytes | |", "| --- | --- | --- |"]
    rows += [f"| `{_cell(name)}` | {name[2:]} | {names[name[1]]} |" for name in order]
    return "\n".join(rows)


def kinds_table() -> str:
    rows = ["| code | kind | encloses pixels | vertices |", "| --- | --- | --- | --- |"]
    for row in KINDS.values():
        count = f"{row.least} or more"
        if row.most is not None:
            count = str(row.least) if row.most == row.least else f"{row.least} to {row.most}"
        rows.append(f"| {row.code} | {row.kind} | {'yes' if row.area else 'no'} | {count} |")
    return "\n".join(rows)


def mib(nbytes: int) -> str:
    units = ((30, "GiB"), (20, "MiB"), (10, "KiB"))
    return next(f"{nbytes >> shift} {unit}" for shift, unit in units if nbytes >> shift)


def render() -> str:
    """The whole document.

    Returns
    -------
    str
        Markdown.
    """
    wire = Source.of(Path(str(messages.__file__)))
    block = Source.of(Path(str(_wire.__file__)))
    values: dict[str, Any] = {
        "version": f"{MAJOR}.{MINOR}",
        "types": types_table(wire),
        "dtypes": dtypes_table(),
        "records": "\n".join(record_section(wire, name) for name in RECORDS),
        "messages": "\n".join(
            message_section(wire, type(each).__name__, each) for each in EXAMPLES
        ),
        "roi_text": _plain(ast.get_docstring(ast.parse("\n".join(block.lines))) or ""),
        "roi_fields": table(block.fields("_Block")),
        "roi_kinds": kinds_table(),
        "roi_version": BLOCK_VERSION,
        "roi_example": hex_text(encode_rois([CELL])),
        "components": ", ".join(messages.COMPONENT_ORDER),
        "axes": messages.AXES,
        "heartbeat": f"{HEARTBEAT_S:g}",
        "silence": f"{SILENCE_S:g}",
        "greeting": f"{GREETING_S:g}",
        "unix_frame": mib(UNIX_MAX_FRAME),
        "zmq_frame": mib(ZMQ_MAX_FRAME),
        "chunk": mib(messages.CHUNK_NBYTES),
        "arena": mib(MAX_ARENA_NBYTES),
        "max_blobs": MAX_BLOBS,
        "max_items": messages.MAX_ITEMS,
        "max_layers": MAX_LAYERS,
        "max_partial": MAX_PARTIAL,
        "max_rois": f"2^{MAX_ROIS.bit_length() - 1}",
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda match: str(values[match[1]]), TEXT)


TEXT = """\
<!-- Rendered by scripts/render_wire.py from openhcs_stream/messages.py: change those, not this. -->
# The wire, version {{version}}

What a program in another language must say to show images in a running viewer. A *sender* is the
worker that has images; a *viewer* is the process with the window. The package's own two ends are
`openhcs_stream/protocol/_sender.py` and `_receiver.py`, pure state machines of some 250 lines each.

A sender can be small. The least that works is a DEALER socket, four messages (`Hello`,
`LayerDeclared`, `Items`, `Bye`) and a loop that reads `Report`s; shared memory makes it fast.

## A session

```
sender                                                   viewer
  |  Hello -------------------- control lane ------------> |
  | <------------------------------------------- Welcome   |   or Refusal, and that was all
  |                                                        |
  |  connect to Welcome.lane ====== side lane ===========> |   where both are on one machine
  |  LaneOpened -----------------------------------------> |
  |  ArenaOffer + file descriptor -----------------------> |   maps the memory, once
  |  LayerDeclared --------------------------------------> |   once a layer
  |  Items, Items, Items ... ----------------------------> |   copies the pixels out
  | <-------------------------------------------- Report   |   received: the memory is free again
  | <-------------------------------------------- Report   |   displayed, or failed and why
  |  Ping, Request ---------- control lane --------------> |   at any time after Welcome
  | <------------------------------- Pong, Reply, Edited   |   Edited where it was asked for
  |  EditsTaken -----------------------------------------> |
  |  Bye ------------------------------------------------> |   what is on the screen stays
```

### Finding a viewer

A running viewer has a file `KIND-NAME.json` in the runtime folder, `$OPENHCS_STREAM_RUNTIME_DIR`,
else `$XDG_RUNTIME_DIR/openhcs-stream`, else `/tmp/openhcs-stream-UID`. It holds one JSON object:
`viewer`, `name`, `pid`, `started`, `protocol` (major, minor), `addresses` (the nearest first),
`token` and `headless`. The viewer holds an exclusive `flock` on the file while it lives: if you get
a shared one, it is dead.

### The control lane: ZeroMQ

The viewer is a ROUTER; connect a DEALER to one of its addresses. Each native message is one
ZeroMQ message: its first frame is the MessagePack text below, with no empty delimiter before it;
further frames are *blobs*, the bytes of inline parts. A frame has at most {{zmq_frame}}, a message
at most {{max_blobs}} blobs.

1. Say `Hello`. `session` is a new random name. `host` tells whether memory can be shared: on Linux
   it is the text of `/proc/sys/kernel/random/boot_id`, a colon, and the inode number of
   `/proc/self/ns/net`. Put "unix" in `lanes` if you can open a side lane. Over `ipc:` no token is
   needed, as the system proves that you are the same user; over `tcp:` show the viewer's.
2. Wait for `Welcome`, or `Refusal` with its reason. A peer that has not greeted after
   {{greeting}} s is dropped.

A session with the role "control" sends `Request` and no items.

### The side lane: a unix socket

If `Welcome.lane` is not empty, it is `unix:NAME`. Connect a SOCK_SEQPACKET socket to NAME in the
abstract namespace (a zero byte, then NAME), and check that its owner is your own user
(SO_PEERCRED); the viewer does the same. One message is one packet of at most {{unix_frame}}; send
fewer items in one message rather than larger packets.

The first packet is `LaneOpened` with `Welcome.key`. It is not answered: go on at once. From then
on the sender's ArenaOffer, ArenaRetired, LayerDeclared, Items and More, and the viewer's Report,
travel here; everything else stays on the control lane. The end of file on this socket is the
peer's death, however it died: nothing that was outstanding will be reported any more.

If the lane can't be opened, say nothing and send everything on the control lane.

### Shared memory: arenas, parts, leases

An *arena* is memory that the sender owns: a memfd of at most {{arena}}, sealed with F_SEAL_SHRINK
and F_SEAL_GROW before it is offered. `ArenaOffer` carries its descriptor in the same packet
(SCM_RIGHTS). The viewer maps it once, read-only, until `ArenaRetired`, which comes after the last
item that names it.

A `Part` says where bytes lie: arena, offset, length. Its `lease` is a number that is never used
again in the session. **From sending the part until its lease is over the sender must not write
there.** A lease is over when the viewer reports

- the item as `received`: all leases of its parts,
- the item as `displayed` or `failed`, if it was not received before: likewise,
- the lease itself under `released`: for parts of an item that is still arriving,

or when the lane ends. Never take memory back from a viewer that is merely slow: it may be reading.
A report may come late or twice; ignore what is not outstanding.

Small items that follow each other may lie side by side in one piece of memory: the last of them
has its lease, and the others 0. So a viewer takes items in their order, and has read each before
it reports a later one.

An item whose bytes don't fit at once comes in several parts: the first with the item (or none),
the others in `More`, in the order of the bytes, until `Item.nbytes` are there. No part is empty.
Items in parts may overlap, at most {{max_partial}} of them.

### Without shared memory

On the control lane a part has `arena` -1, and `offset` is the number of the blob, from 0, that
holds its bytes: all blobs of an `Items` or `More` message are counted together. A blob is best kept
at {{chunk}}. `lease` works as above, or is 0 where nothing waits for it.

### Three facts about each item

| fact | means |
| --- | --- |
| received | Its bytes are copied out; the sender's memory is free. |
| displayed | It is on the screen, or in the data of a viewer without one. |
| failed | It will not be shown, for this reason; its memory is free as well. |

Each item ends as exactly one of displayed and failed. `Report` carries whatever waits to be told.
What is outstanding when the session ends counts as failed.

Item numbers (`seq`) count up within a session. A viewer that is not ready does not read on: with
the lane full, a sender waits or drops; keep some hundreds of items under way at most.

### Silence

A peer that has said nothing for {{heartbeat}} s may be sent a `Ping`; any message counts as an
answer. Without a side lane a peer that is silent for {{silence}} s is given up, so that a sender
with nothing to send says `Ping`. With a side lane it is not: its death would be the end of file,
and it is merely busy, or stopped in a debugger.

### Requests

| verb | args | value of the Reply |
| --- | --- | --- |
| status | | The viewer and its streams with their counts. Answered while the window is busy, too. |
| log | | The last lines of the viewer's log: a list of texts. |
| dropped | `items`: number | No Reply: how many a policy let go, which were never sent. |
| layers | | For each layer: title, kind, name, source, split, components; shape, dtype, planes. |
| places | `name` of a layer; `kind`, `source`, `place` | Where it has something: a list of maps. |
| read | the same, or `layer`: a title | One place: kind, name, source, place, shape, dtype, data. |
| edits | `listener`: number, `names`, `place` | nil; `Edited` follows, now and from then on. |
| no_edits | `listener`: number | nil; nothing is told to it any more. |
| waiting_edits | | Edits that nobody has dealt with: each an `Edited` message (binary). |
| ask | `text`, `names`, `place` | "done" or "skipped", when a person has chosen. |
| withdraw | `number` of the `ask` | nil; the question is taken away. |
| screenshot | | shape (Y, X, 4) and png (binary). |
| clear | | The number of layers that were taken away. |
| stop | | nil; the viewer ends. |

`data` is the plane's bytes in C order; of points and tracks float64 rows; of rois a block.

A `Reply` that is not `ok` says what happened and what to do about it.

### Edits

What a person changes is kept in the viewer until a sender has dealt with it. One that asked with
`edits` is told of what waits and of what comes; `listeners` are the numbers that it gave itself.
With `EditsTaken` the viewer may forget an edit; one that is not taken is told to the next that
asks. The result of an edit is in the layer at once: `read` gives it.

### Breaking the rules

Every message is checked: types are exact (2.0 is no integer), texts and arrays have bounds, and
each phase has its messages. Whoever breaks a rule is told on the control lane, with `Refusal`
before `Welcome` and `Bye` after it (which is then the side lane's last message, too), and its
session ends. So is a sender that a viewer can't serve any more. Others are not touched. At most
{{max_layers}} layers and {{max_items}} items in a message.

### Versions

Major versions must be equal: a `Hello` of another one is refused with both versions in the text.
The first three fields of `Hello` and `Welcome` (tag, major, minor) never change. Within a major
version fields are only added, at the end, with a default: skip elements beyond those that you know,
and take the default for those that are missing. New messages come with a new minor version;
don't send them to a peer that is older.

### OpenHCS on the same socket

The ROUTER also serves senders of OpenHCS: REQ sockets (an empty delimiter comes first) whose
message is JSON. A native message never begins with `{`: its first byte is 0x90 to 0x9f, 0xdc or
0xdd. That dialect is described in `openhcs_stream/dialects/`.

## Bytes

A message is a MessagePack array: its tag, a text, and then its fields in the order below. Records
inside of messages (LayerSpec, Item, Part, Failure) are arrays of their fields without a tag. Fields
with a default may be left out at the end.

### Types

{{types}}

### Pixels

An image or label image of shape (n1, n2, ...) is its elements in C order, the last axis fastest,
little-endian, without gaps. `Item.dtype` is one of

{{dtypes}}

`LayerSpec.axes` has one letter for each dimension, of {{axes}}.
Y and X come last, in this order, then S where the pixels are RGB or RGBA. An array without Y or X
is a row, a column or a point.

The other kinds are arrays as well: *points* (N, D) `<f8`, one column for each letter of `axes`, in
pixels, whole numbers at pixel centres; *tracks* (N, D + 1) `<f8`, the track's number first, then a
column for each letter; *rois* (nbytes,) `|u1`, a block as below. They replace what was sent before
under the same name at the same place.

### Places

`LayerSpec.components` names what an item's `place` gives values for. Known are
{{components}}, the slowest first; any other name is allowed. An array's own
axes T, C and Z are the components time, channel and z, with the values 0, 1, 2, ...; all items of
a layer have the same components.

## Records

{{records}}
## Messages

Each with an example: as JSON, then its bytes in hexadecimal.

{{messages}}
## A block of ROIs, version {{roi_version}}

{{roi_text}}

{{roi_fields}}

At most {{max_rois}} ROIs. Coordinates are x, y in pixels. For kinds that enclose pixels they count
from the *corner* of the first pixel, as in ImageJ; for the others whole numbers are pixel centres.
A rectangle and an oval are (left, top), (right, bottom); an ellipse is both ends of its major axis
and one end of its minor axis. Colours are `#rrggbbaa`. Positions count from 1; 0 means all.

{{roi_kinds}}

A polygon named "cell 1", as a block:

```
{{roi_example}}
```
"""


def main(arguments: list[str] | None = None) -> int:
    """Write the document, or compare it."""
    parser = argparse.ArgumentParser(description="Render WIRE.md from the messages.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 on a difference")
    options = parser.parse_args(arguments)
    text = render()
    if not options.check:
        DOCUMENT.write_text(text, encoding="utf-8")
        print(f"wrote {DOCUMENT.relative_to(ROOT)}")
        return 0
    if DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(
        "WIRE.md is not what the messages say. Run scripts/render_wire.py and look at the "
        "difference.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
