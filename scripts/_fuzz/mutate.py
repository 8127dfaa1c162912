"""How something that is right becomes something that is not: bytes, and trees of values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

__all__ = ["mutate", "mutate_json", "mutate_msgpack"]

#: Longer inputs take longer, and find nothing that shorter ones don't.
MOST_NBYTES: Final = 1 << 20
#: Where counting goes wrong.
NUMBERS: Final = (
    0, 1, -1, 2, 7, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32,
    2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1,
)  # fmt: skip
FLOATS: Final = (0.0, -0.0, 0.5, -1.0, 1e-308, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS: Final = (
    "", "a", "\0", "\n", "\x1b[2J", "\u202e", "A01", "../../etc/passwd", "/dev/shm/x", "x" * 300,
    "x" * 5000, "é\U0001f600", "YX", "ZYX", "YXS", "image", "rois", "|u1", "<u2", "stack", "split",
    "time", "channel", "%s%n", "{}", "-1", "nan",
)  # fmt: skip
#: Bytes that mean something in the formats here.
TOKENS: Final = (
    b"\x90", b"\x80", b"\xc0", b"\xc1", b"\xc4\xff", b"\xc6\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"{", b"}", b"[",
    b"]", b'"', b":", b",", b"null", b"NaN", b"Infinity", b"1e999", b"-0", b'{"', b"[[[[[[[[",
    b"Iout", b"PK\x03\x04", b"\x80\x04", b"\x94", b"\x8c", b".", b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff",
)  # fmt: skip


def mutate(data: bytes, random: Random, samples: Sequence[bytes] = ()) -> bytes:
    """Change some bytes."""
    made = bytearray(data)
    for _ in range(1 << random.randrange(5)):
        at = random.randrange(len(made) + 1)
        match random.randrange(10):
            case 0 if made:
                made[at % len(made)] ^= 1 << random.randrange(8)
            case 1 if made:
                made[at % len(made)] = random.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, random.randrange(256))
                )
            case 2:
                del made[at : at + random.choice((1, 2, 4, 8, 64, len(made)))]
            case 3:
                made[at:at] = random.choice(TOKENS)
            case 4:
                made[at : at + 4] = random.choice(NUMBERS).to_bytes(16, "little", signed=True)[:4]
            case 5:
                made[at : at + 8] = random.choice(NUMBERS).to_bytes(16, "big", signed=True)[8:]
            case 6 if made:
                begin = random.randrange(len(made))
                made[at:at] = made[begin : begin + random.choice((1, 8, 64, 512))]
            case 7 if samples:
                other = random.choice(samples)
                cut = random.randrange(len(other) + 1)
                made = made[:at] + other[cut:]
            case 8:
                made[at:at] = random.randbytes(random.choice((1, 3, 17, 200)))
            case 9:
                del made[at:]  # truncated
            case _:
                pass
        del made[MOST_NBYTES:]
    return bytes(made)


def mutate_msgpack(data: bytes, random: Random, samples: Sequence[bytes] = ()) -> bytes:
    """Change values of a MessagePack tree, so that the rest stays right."""
    return _mutate_tree(
        data, random, samples, msgspec.msgpack.decode, lambda tree: msgspec.msgpack.encode(tree)
    )


def mutate_json(data: bytes, random: Random, samples: Sequence[bytes] = ()) -> bytes:
    """Change values of a JSON tree, so that the rest stays right."""
    return _mutate_tree(data, random, samples, json.loads, lambda tree: json.dumps(tree).encode())


def _mutate_tree(
    data: bytes,
    random: Random,
    samples: Sequence[bytes],
    decode: Callable[[bytes], Any],
    encode: Callable[[Any], bytes],
) -> bytes:
    if random.randrange(3) == 0:
        return mutate(data, random, samples)
    try:
        tree = decode(data)
        for _ in range(1 << random.randrange(4)):
            tree = _changed(tree, random)
        made = encode(tree)
        return made if len(made) <= MOST_NBYTES else mutate(data, random, samples)
    except (ValueError, TypeError, OverflowError, RecursionError, UnicodeError):
        return mutate(data, random, samples)


def _changed(value: Any, random: Random) -> Any:
    """A copy of a tree with one change somewhere."""
    if isinstance(value, dict) and value and random.randrange(6):
        key = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {each: other for each, other in value.items() if each != key}
            case 1:
                return {**value, random.choice(TEXTS): _leaf(random)}
            case _:
                return {**value, key: _changed(value[key], random)}
    if isinstance(value, (list, tuple)) and value and random.randrange(6):
        made = list(value)
        at = random.randrange(len(made))
        match random.randrange(8):
            case 0:
                del made[at]
            case 1:
                made.insert(at, made[random.randrange(len(made))])
            case 2 if len(made) < 5000:
                made *= random.choice((2, 3, 50))
            case _:
                made[at] = _changed(made[at], random)
        return made
    if isinstance(value, bytes) and random.randrange(3):
        return mutate(value, random)
    return _leaf(random)


def _leaf(random: Random) -> Any:
    match random.randrange(9):
        case 0 | 1:
            return random.choice(NUMBERS)
        case 2:
            return random.choice(FLOATS)
        case 3 | 4:
            return random.choice(TEXTS)
        case 5:
            return random.choice((None, True, False))
        case 6:
            return [_leaf(random) for _ in range(random.randrange(4))]
        case 7:
            return {random.choice(TEXTS): _leaf(random) for _ in range(random.randrange(3))}
        case _:
            nested: Any = []
            for _ in range(random.choice((3, 30, 2000))):
                nested = [nested]
            return nested
