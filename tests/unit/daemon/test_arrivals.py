"""What of the ring's time stamps is told to which logger."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.daemon.arrivals import AT_ONCE, LARGEST, PIECES, ArrivalBook
from midstream.ebpf.records import RECORD
from midstream.told import OPEN, STEP, ArrivalTimes, HeldConnection

WALL = 1_764_000_000 * 10**9

Record = tuple[int, int, int, int]  # connection, offset, length, time


def stream(number: int) -> HeldConnection:
    return HeldConnection("10.83.0.11", 40000 + number, 7, WALL, 0, OPEN, False)


class Desk:
    """clocks: the kernel's is at 100."""

    def __init__(self, **more: int) -> None:
        self.records: list[Record] = []
        self.sensors: dict[int, int] = {}  # of connections
        self.book = ArrivalBook(self._read, clocks=lambda: (WALL + 100, 100), **more)

    def _read(self) -> dict[str, np.ndarray]:
        heads = np.zeros(len(self.records), RECORD)
        for place, name in enumerate(("connection", "offset", "length", "time")):
            heads[name] = [record[place] for record in self.records]
        heads["sensor"] = [self.sensors.get(record[0], 0) for record in self.records]
        self.records = []
        return {"data": heads}

    def collect(self, *records: Record) -> None:
        self.records += records
        self.book.collect()

    def see(self, **destinations: int) -> None:
        """The connections that there are, by number: c1=0 goes to the first logger."""
        known = {int(name[1:]): destination for name, destination in destinations.items()}
        self.book.see({number: (stream(number), there) for number, there in known.items()})

    def told(self, *destinations: int) -> list[tuple[int, int, int, list[tuple[int, int]]]]:
        """Port, start, and time of what is told, and its steps; and it is told."""
        found = self.book.untold(destinations.__contains__)
        self.book.confirm(found)
        return [
            (each.port - 40000, each.start, each.time_ns - WALL, list(STEP.iter_unpack(each.steps)))
            for each in found
        ]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_each_logger_hears_of_its_own_connections(desk: Desk) -> None:
    desk.see(c1=0, c2=1)
    desk.collect((1, 0, 10, 1000), (2, 0, 5, 1100), (1, 10, 20, 1200), (1, 30, 0, 1300))
    assert desk.told(0) == [(1, 0, 1000, [(10, 0), (20, 200)])]
    assert desk.told(0) == []
    assert desk.told(1, 2) == [(2, 0, 1100, [(5, 0)])]


def test_a_connection_that_is_not_known_yet_is_told_when_it_is(desk: Desk) -> None:
    desk.collect((1, 0, 10, 1000), (2, 0, 10, 1000))
    assert desk.told(0) == []
    desk.see(c1=0)
    assert desk.told(0) == [(1, 0, 1000, [(10, 0)])]
    desk.see(c1=0, c2=0)
    assert desk.told(0) == [], "it had not been seen when it was asked for"


def test_what_does_not_follow_begins_anew(desk: Desk) -> None:
    """A segment that came early, one that came twice, a pause, and a time that goes back."""
    desk.see(c1=0)
    late = 1000 + (1 << 32)
    desk.collect(
        (1, 0, 10, 1000), (1, 20, 10, 1001), (1, 10, 10, 1002), (1, 20, 10, 1003), (1, 30, 1, late + 4)
    )
    desk.collect((1, 31, 1, late), (1, 32, 1, late - 1))
    assert desk.told(0) == [
        (1, 0, 1000, [(10, 0)]),
        (1, 20, 1001, [(10, 0)]),
        (1, 10, 1002, [(10, 0), (10, 1)]),
        (1, 30, late + 4, [(1, 0)]),
        (1, 31, late, [(1, 0)]),
        (1, 32, late - 1, [(1, 0)]),
    ]


def test_a_message_holds_no_more_than_it_may(desk: Desk) -> None:
    desk.see(**{f"c{number}": 0 for number in range(PIECES + 3)})
    desk.collect(*((number, 0, 1, number) for number in range(PIECES + 3)))
    assert [len(desk.told(0)), len(desk.told(0))] == [PIECES, 3]
    desk.collect(*((1, number, 1, number) for number in range(AT_ONCE + 1)))
    told = desk.told(0)
    assert [len(steps) for *_, steps in told] == [LARGEST] * (AT_ONCE // LARGEST)
    assert len(desk.told(0)) == 1


def test_when_each_sensor_was_heard(desk: Desk) -> None:
    """Whether its connection is known or not; an event is no data."""
    desk.sensors = {1: 0, 2: 3}
    desk.collect((1, 0, 10, 1000), (2, 0, 10, 1500), (1, 10, 10, 2000), (1, 20, 0, 3000))
    assert desk.book.heard["data"][:4].tolist() == [2000, 0, 0, 1500]
    assert desk.book.looked_ns == 100


def test_the_oldest_is_forgotten_where_nobody_listens() -> None:
    desk = Desk(most=100)
    desk.see(c1=0)
    for number in range(30):
        desk.collect(*((1, 10 * number + each, 1, number) for each in range(10)))
    assert [start for _, start, _, _ in desk.told(0)] == list(range(200, 300, 10))
    for number in range(30):
        desk.collect(*((2, 10 * number + each, 1, number) for each in range(10)))
    desk.see(c2=0)
    assert sum(len(steps) for *_, steps in desk.told(0)) == 100


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50), st.integers(0, 1 << 33)), max_size=60))
def test_every_byte_has_its_time(segments: Sequence[tuple[int, int, int]]) -> None:
    desk, moment, ends = Desk(), 0, dict.fromkeys((1, 2, 3), 0)
    desk.see(c1=0, c2=0, c3=0)
    expected: dict[tuple[int, int], int] = {}
    for number, length, passed in segments:
        moment += passed
        desk.collect((number, ends[number], length, moment))
        ends[number] += length
        expected[40000 + number, ends[number]] = WALL + moment
    found: dict[tuple[int, int], int] = {}
    for told in desk.book.untold((0).__eq__):
        assert told == ArrivalTimes.parse((*told.said, told.steps))
        at, time = told.start, told.time_ns
        for size, passed in STEP.iter_unpack(told.steps):
            at, time = at + size, time + passed
            found[told.port, at] = time
        assert at == told.end
    assert found == expected
