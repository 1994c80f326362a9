"""The judge of tests/lab/test_healing.py sees each fault, and excuses only the hardworker's power cut and the
last messages of a connection that the spool ended."""

import numpy as np
from tests.lab.chaos.client import LIFE, Connection
from tests.lab.chaos.healed import HARDWORKER_OUT, Healed, judge
from tests.lab.chaos.judge import Event, Row
from tests.lab.chaos.messages import SIZE
from tests.unit.lab.test_chaos_judge import CONNECTION, COUNT, LOGGED, PORT, life

CUT = Event(HARDWORKER_OUT, 12.0, 13.0)


def judged(*lives: np.ndarray, logged: list[Row] = LOGGED, events: tuple[Event, ...] = ()) -> Healed:
    return judge([CONNECTION], {PORT: lives}, {PORT: logged}, events, set())


def from_zero(first: int, count: int, *, port: int, acknowledged: int, how: str = "clean") -> Connection:
    return Connection(0, port, first, 10.0, count * SIZE, acknowledged * SIZE, 20.0, how)


def test_the_first_numbers_are_missing() -> None:
    assert judged(life(*range(COUNT))).faults == ["log, sensor 0: 0 to 99 are missing"]


def whole(
    *connections: Connection,
    counts: tuple[int, ...],
    logged: tuple[int, ...] = (),
    spooled: tuple[int, ...] = (),
    events: tuple[Event, ...] = (),
) -> Healed:
    """The application has the first so many messages of each connection. logged: the log; empty: as many."""
    rows_by_port: dict[int, list[Row]] = {
        one.port: [(place, one.first + place) for place in range(count)]
        for one, count in zip(connections, logged or counts, strict=True)
    }
    lives = {}
    for one, count in zip(connections, counts, strict=True):
        rows = life(*range(count), numbers=one.first)
        rows["port"] = one.port
        lives[one.port] = [rows]
    return judge(connections, lives, rows_by_port, events, set(spooled))


def test_what_was_not_acknowledged_comes_again() -> None:
    first = from_zero(0, 8, port=1, acknowledged=5, how="reset")
    second = from_zero(5, 10, port=2, acknowledged=10)
    found = whole(first, second, counts=(7, 10))
    assert (found.faults, found.again, found.logged, found.delivered) == ([], 2, 17, 17)


def test_the_spool_has_ended_a_connection() -> None:
    first = from_zero(0, 8, port=1, acknowledged=5, how="reset")
    second = from_zero(5, 10, port=2, acknowledged=10)
    found = whole(first, second, counts=(7, 10), logged=(5, 10), spooled=(1,))
    assert (found.faults, found.only_delivered) == ([], 2)
    assert whole(first, second, counts=(7, 10), logged=(5, 10), spooled=(2,)).faults == [
        "application, port 1 of sensor 0: 7 messages, and the log has 5"
    ]
    powerless = (CUT._replace(begin=15.0, end=16.0),)
    found = whole(first, second, counts=(7, 10), logged=(5, 10), events=powerless)
    assert (found.faults, found.only_delivered) == ([], 2)
    clean = from_zero(0, 8, port=1, acknowledged=5)
    assert whole(clean, second, counts=(7, 10), logged=(5, 10), spooled=(1,)).faults
    assert whole(first, second, counts=(7, 10), logged=(4, 10), spooled=(1,)).faults


def test_a_client_that_was_killed_begins_with_new_numbers() -> None:
    first = from_zero(0, 0, port=1, acknowledged=0, how="")
    second = from_zero(LIFE, 3, port=2, acknowledged=3)
    assert whole(first, second, counts=(7, 3)).faults == []


def test_acknowledged_and_not_in_the_log() -> None:
    first = from_zero(0, 8, port=1, acknowledged=5, how="reset")
    second = from_zero(5, 10, port=2, acknowledged=10)
    assert whole(first, second, counts=(4, 10)).faults == [
        "log, port 1 of sensor 0: 1 of 5 acknowledged are missing",
        "log, sensor 0: 4 to 4 are missing",
    ]


def test_log_and_application_differ() -> None:
    def faults(*events: Event, places: int) -> list[str]:
        found = judged(life(*range(places)), events=events)
        return [fault for fault in found.faults if "application" in fault]

    whose = f"application, port {PORT} of sensor 0"
    assert faults(places=COUNT - 1) == [f"{whose}: 5 messages, and the log has 6"]
    assert faults(CUT, places=COUNT - 1) == []
    assert faults(CUT, places=COUNT) == []
    assert faults(CUT._replace(begin=400.0, end=500.0), places=COUNT - 1)
    assert judged(life(*range(COUNT - 2)), events=(CUT,)).only_logged == 2


def test_wrong_at_the_application() -> None:
    assert "another message" in judged(life(0, 1, numbers=101)).faults[0]
    assert "within a life" in judged(life(0, 2, 1)).faults[0]
