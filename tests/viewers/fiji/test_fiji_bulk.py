"""What is done with many ROIs in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream_fiji._bulk import Bulk

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def bulk(java: Any) -> Bulk:
    return Bulk(java)


def squares(java: Any, bulk: Bulk, count: int) -> Any:
    return bulk.array([java.Roi(n, 2 * n, 3, 4) for n in range(count)])


@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_few_and_many_are_treated_alike(java: Any, bulk: Bulk, count: int) -> None:
    natives = squares(java, bulk, count)
    bulk.name(natives, [f"roi {n}" for n in range(count)])
    bulk.each(natives, "setPosition", 1, 2, 3)
    bulk.each(natives, "setProperty", "score", "0.5 \N{MICRO SIGN}")
    overlay = java.Overlay()
    bulk.feed(natives, overlay, "add")
    assert overlay.size() == count
    assert [str(each.getName()) for each in natives] == [f"roi {n}" for n in range(count)]
    assert {(each.getCPosition(), each.getTPosition()) for each in natives} <= {(1, 3)}
    assert {str(each.getProperty("score")) for each in natives} <= {"0.5 \N{MICRO SIGN}"}
    assert bulk.numbers(natives, "getXBase").tolist() == list(range(count))
    assert bulk.numbers(natives, "getZPosition").tolist() == [2] * count
    assert bulk.numbers(natives, "getStrokeWidth").tolist() == [0.0] * count
    assert len(bulk.digests(natives)) == count
    assert bulk.places(natives, bulk.clones(natives)).tolist() == [-1] * count


def test_a_digest_changes_with_what_a_person_changes(java: Any, bulk: Bulk) -> None:
    natives = squares(java, bulk, 12)
    before = bulk.digests(natives)
    assert (bulk.digests(natives) == before).all()
    assert (bulk.digests(natives, 3, 5) == before[3:5]).all()
    changes: list[Callable[[Any], object]] = [
        lambda roi: roi.setName("x"),
        lambda roi: roi.setGroup(3),
        lambda roi: roi.setStrokeWidth(2.5),
        lambda roi: roi.setStrokeColor(java.Color.red),
        lambda roi: roi.setFillColor(java.Color.blue),
        lambda roi: roi.setPosition(4),
        lambda roi: roi.setPosition(1, 2, 3),
        lambda roi: roi.setLocation(7.5, 1.0),
        lambda roi: roi.setCornerDiameter(2),
        lambda roi: roi.setProperty("a", "b"),
        lambda roi: roi.translate(0.0, 1.0),
    ]
    for change, native in zip(changes, natives, strict=False):
        change(native)
    assert (bulk.digests(natives) != before).tolist() == [True] * 11 + [False]


def test_colours_are_told_by_their_value(java: Any, bulk: Bulk) -> None:
    natives = squares(java, bulk, 2)
    natives[1].setStrokeColor(java.Color(1, 2, 3, 4))
    assert bulk.numbers(natives, "getStrokeColor").tolist() == [0, 0x04010203]


def test_arrays_are_taken_apart_and_joined(java: Any, bulk: Bulk) -> None:
    natives = squares(java, bulk, 10)
    chosen = [0, 1, 2, 5, 7, 8]
    taken = bulk.take(natives, chosen)
    assert bulk.places(natives, taken).tolist() == chosen
    assert len(bulk.take(natives, [])) == 0
    joined = bulk.join([taken, bulk.array(0), natives])
    assert bulk.places(joined, natives).tolist() == list(range(6, 16))
    assert len(joined) == 16


def test_objects_of_the_same_number_are_told_apart(java: Any, bulk: Bulk) -> None:
    """Java numbers objects by chance: of 300 000 some twenty share theirs with another."""
    many = squares(java, bulk, 1000)
    many = bulk.join([bulk.clones(many) for _ in range(300)])
    numbers = bulk.identities(many)
    order = np.argsort(numbers)
    twins = np.flatnonzero(numbers[order][1:] == numbers[order][:-1])
    assert len(twins)
    one, other = (many[int(order[index])] for index in (twins[0], twins[0] + 1))
    assert bulk.places(bulk.array([one]), bulk.array([other, one])).tolist() == [-1, 0]


def test_vertices_in_bulk(java: Any, bulk: Bulk) -> None:
    xy = np.array([(0, 0), (9, 0), (9.5, 9), (1, 1), (2, 1), (2, 7), (1, 6)], float)
    made = bulk.outlines(xy, np.array([3, 4]), np.array([2, 3], np.int32), whole=False)
    assert [int(each.getType()) for each in made] == [2, 3]
    counts, back = bulk.vertices(made)
    assert counts.tolist() == [3, 4]
    np.testing.assert_array_equal(back, xy)
    whole = bulk.outlines(np.rint(xy), np.array([3, 4]), np.array([2, 4], np.int32), whole=True)
    assert not whole[0].subPixelResolution()
    np.testing.assert_array_equal(bulk.vertices(whole)[1], np.rint(xy))
