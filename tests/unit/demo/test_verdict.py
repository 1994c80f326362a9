"""The verdict on crafted records: every fault that data can suffer must be seen, and nothing else."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.demo.verdict import NOWHERE, Arrivals, DemoVerdict, Stream, judge, owner, total
from midstream.sensor import SENT_DTYPE

A: Stream = ("10.83.0.11", 40000)
B: Stream = ("10.83.0.12", 40000)
SIZE = 24
LATENCY = 1500  # nanoseconds


def message(stream: Stream, number: int) -> bytes:
    """As a sensor makes it; two sensors' messages of the same number differ."""
    return number.to_bytes(8, "little") + (10**18 + number).to_bytes(8, "little") + stream[0].encode()[-8:]


def record(stream: Stream, count: int) -> np.ndarray:
    rows = np.zeros(count, SENT_DTYPE)
    rows["sequence"] = np.arange(count)
    for number in range(count):
        digest = hashlib.blake2b(message(stream, number), digest_size=16).digest()
        rows["digest"][number] = np.void(digest)
    return rows


def arrivals(stream: Stream, content: list[tuple[int, bytes]]) -> Arrivals:
    times = np.array([int.from_bytes(payload[8:16], "little") + LATENCY for _, payload in content], np.uint64)
    positions = np.array([position for position, _ in content], np.int64)
    return Arrivals(stream, positions, [payload for _, payload in content], times)


def whole(stream: Stream, count: int = 10) -> list[tuple[int, bytes]]:
    return [(number, message(stream, number)) for number in range(count)]


def verdict(
    delivered: list[tuple[int, bytes]] | None = None,
    logged: list[tuple[int, bytes]] | None = None,
    *,
    others: Iterable[Arrivals] = (),
) -> DemoVerdict:
    """Ten messages of each of two sensors; of A this arrived at the application and in the database."""
    sent = {A: record(A, 10), B: record(B, 10)}
    complete = arrivals(B, whole(B))
    at_application = arrivals(A, whole(A) if delivered is None else delivered)
    in_database = arrivals(A, whole(A) if logged is None else logged)._replace(times=None)
    return judge(sent, chain([complete, at_application], others), [in_database, complete])


GOOD = DemoVerdict(
    sent=20,
    delivered=20,
    missing=0,
    duplicates=0,
    in_order=True,
    corrupt=0,
    logged=20,
    logged_missing=0,
    logged_duplicates=0,
    logged_corrupt=0,
    logged_in_order=True,
    latency_us={"p50": 1.5, "p99": 1.5, "max": 1.5},
)


def flipped(payload: bytes, at: int) -> bytes:
    return payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]


def test_everything_arrived() -> None:
    assert verdict() == GOOD
    assert GOOD.good


def test_missing() -> None:
    found = verdict(delivered=[row for row in whole(A) if row[0] not in (0, 4, 9)])
    assert found == replace(GOOD, delivered=17, missing=3)
    assert not found.good


def test_missing_in_the_database() -> None:
    found = verdict(logged=whole(A)[:-1])
    assert found == replace(GOOD, logged=19, logged_missing=1)
    assert not found.good


def test_nothing_arrived() -> None:
    sent = {A: record(A, 10)}
    found = judge(sent, [], [])
    assert (found.missing, found.logged_missing, found.latency_us, found.good) == (10, 10, None, False)


def test_nothing_sent() -> None:
    found = judge({A: record(A, 0)}, [], [])
    assert (found.sent, found.missing, found.good) == (0, 0, False)


@pytest.mark.parametrize("place", ["delivered", "logged"])
def test_duplicate(place: str) -> None:
    twice = whole(A)[:4] + whole(A)[3:]
    assert len(twice) == 11
    found = verdict(delivered=twice) if place == "delivered" else verdict(logged=twice)
    assert found.duplicates + found.logged_duplicates == 1
    assert (found.missing, found.corrupt, found.good) == (0, 0, False)


def test_late_duplicate_is_out_of_order_too() -> None:
    found = verdict(delivered=[*whole(A), whole(A)[2]])
    assert found == replace(GOOD, delivered=21, duplicates=1, in_order=False)


@pytest.mark.parametrize("place", ["delivered", "logged"])
def test_swapped_order(place: str) -> None:
    rows = whole(A)
    rows[3], rows[4] = rows[4], rows[3]
    found = verdict(delivered=rows) if place == "delivered" else verdict(logged=rows)
    assert (found.in_order, found.logged_in_order) == (place != "delivered", place != "logged")
    assert (found.missing, found.duplicates, found.corrupt, found.good) == (0, 0, 0, False)


def test_swapped_content_under_rising_positions() -> None:
    rows = whole(A)
    rows[3], rows[4] = (3, rows[4][1]), (4, rows[3][1])
    assert verdict(delivered=rows) == replace(GOOD, in_order=False)


@pytest.mark.parametrize("wrong", [NOWHERE, 5, 10**9])
def test_wrong_position(wrong: int) -> None:
    rows = whole(A)
    rows[3] = (wrong, rows[3][1])
    assert verdict(delivered=rows) == replace(GOOD, in_order=False)


def test_order_across_pieces() -> None:
    late = arrivals(A, whole(A)[:1])
    found = verdict(delivered=whole(A)[1:], others=[late])
    assert found == replace(GOOD, in_order=False)


@pytest.mark.parametrize("at", range(SIZE))
def test_flipped_bit(at: int) -> None:
    """Wherever it is: in the number it must not pass for another message, in the time not for a latency."""
    rows = whole(A)
    rows[5] = (5, flipped(rows[5][1], at))
    delivered = verdict(delivered=rows)
    assert delivered == replace(GOOD, corrupt=1)
    assert not delivered.good
    logged = verdict(logged=rows)
    assert logged == replace(GOOD, corrupt=1, logged_corrupt=1)
    assert not logged.good


@pytest.mark.parametrize("length", [0, 1, SIZE - 1, SIZE + 1])
def test_wrong_length(length: int) -> None:
    rows = whole(A)
    rows[0] = (0, (rows[0][1] + b"!")[:length])
    assert verdict(logged=rows) == replace(GOOD, corrupt=1, logged_corrupt=1)


def test_message_of_another_sensor() -> None:
    """B's third message came as A's: A's own is not there, and what is in its place is not A's."""
    rows = whole(A)
    rows[3] = (3, message(B, 3))
    assert verdict(delivered=rows) == replace(GOOD, corrupt=1)


def test_message_moved_to_another_sensor() -> None:
    """A's fourth message is missing there and one too many at B."""
    rows = whole(A)
    moved = rows.pop(3)
    found = verdict(delivered=rows, others=[arrivals(B, [moved])])
    assert found == replace(GOOD, missing=1, corrupt=1)


def test_stream_that_nobody_opened() -> None:
    stranger = arrivals(("10.83.0.99", 1), whole(A)[:2])
    assert verdict(others=[stranger]) == replace(GOOD, delivered=22, corrupt=2)


def test_owner_of_relayed_messages() -> None:
    sent = {A: record(A, 10), B: record(B, 3)}
    damaged = flipped(message(B, 0), SIZE - 1)
    assert owner(sent, [damaged, b"", message(B, 2)]) == B
    assert owner(sent, [message(A, 9)]) == A
    assert owner(sent, [damaged, message(B, 3)]) is None
    assert owner(sent, []) is None


def test_latency_is_of_intact_messages_and_may_be_negative() -> None:
    piece = arrivals(A, whole(A))
    assert piece.times is not None
    early = piece._replace(times=piece.times - np.uint64(2 * LATENCY))
    found = judge({A: record(A, 10)}, [early], [])
    assert found.latency_us == {"p50": -1.5, "p99": -1.5, "max": -1.5}


@given(
    kept=st.lists(st.integers(0, 9), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
)
def test_any_selection(kept: list[int], cuts: list[int]) -> None:
    """Whatever arrives in whatever order and pieces, the counts are those of a plain comparison."""
    rows = [(number, message(A, number)) for number in kept]
    edges = [0, *sorted(cut for cut in cuts if cut <= len(rows)), len(rows)]
    pieces = [arrivals(A, rows[start:end]) for start, end in pairwise(edges)]
    found = judge({A: record(A, 10)}, pieces, [])
    assert found.delivered == len(kept)
    assert found.missing == 10 - len(set(kept))
    assert found.duplicates == len(kept) - len(set(kept))
    assert found.in_order == (kept == sorted(kept))
    assert found.corrupt == 0


def test_the_verdict_on_all_streams() -> None:
    """A fault of one is a fault of all; latencies of several are not mixed."""
    assert total([GOOD]) == GOOD
    bad = replace(GOOD, delivered=19, missing=1, logged_duplicates=2, in_order=False)
    found = total([GOOD, bad])
    assert found == replace(
        GOOD,
        sent=40,
        delivered=39,
        logged=40,
        missing=1,
        logged_duplicates=2,
        in_order=False,
        latency_us=None,
    )
    assert not found.good and total([GOOD, GOOD]).good
