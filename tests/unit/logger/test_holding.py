"""What a hardworker says it holds is written down, and closes connections whose logger died."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.support.exchanges import asking, exchanging
from tests.support.logs import SECOND, START, LogFile
from tests.support.site import Serving, Site

from midstream.config import load
from midstream.errors import NetworkError
from midstream.line import Line
from midstream.log.verify import verify
from midstream.logger.holding import MOST, Holding
from midstream.storage import pruning, run, schema
from midstream.storage.formats import ONE_STREAM
from midstream.storage.run import new_name
from midstream.storage.schema import connections
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.told import CLOSED, LOST, OPEN, RESET, STEP, ArrivalTimes, HeldConnection, Knowledge, Pending

SENSOR = "10.83.0.11"


def held(
    port: int, size: int, state: str = OPEN, *, opened_ns: int = START, here: bool = False
) -> HeldConnection:
    return HeldConnection(SENSOR, port, 7, opened_ns, size, state, here)


def waiting(port: int) -> Pending:
    return Pending(SENSOR, port, 7, START, 0, 8, 1, START)


def arrivals(start: int, size: int) -> ArrivalTimes:
    return ArrivalTimes(SENSOR, 1, 7, START, start, start + size, START, 5, 6, STEP.pack(size, 0))


@pytest.fixture
def store(log: LogFile) -> Iterator[SqlStore]:
    with SqlStore(log.url, batch_size=100) as opened:
        yield opened


def told(log: LogFile) -> Knowledge:
    with SqlLog(log.url) as opened:
        return opened.told()


def test_the_last_word_counts_and_no_byte_is_lost(log: LogFile, store: SqlStore) -> None:
    store.note_held([held(1, 100), held(2, 50)], [waiting(9)])
    assert told(log) == Knowledge([held(1, 100), held(2, 50)], [waiting(9)])
    store.note_held([held(1, 40, LOST), held(2, 60, CLOSED, here=True)], None)
    assert told(log) == Knowledge([held(1, 100, LOST), held(2, 60, CLOSED, here=True)], [waiting(9)])
    store.note_held([], [])
    assert told(log).pending == []


def end(log: LogFile, port: int) -> tuple[Any, ...]:
    with SqlLog(log.url) as opened, opened.transaction() as database:
        known = connections.c
        query = select(known.closed_ns, known.reset, known.reason, known.bytes).where(known.port == port)
        return tuple(database.execute(query).one())


@pytest.fixture
def dead() -> str:
    """The name of a run whose process has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = new_name()
    name = f"{mine[:15]}{child.pid:06x}{run._start(child.pid)}{mine[25:]}"
    child.kill()
    child.communicate()
    return name


@pytest.mark.parametrize(
    ("state", "reset", "reason"),
    [
        (RESET, True, "its logger died; it was reset after 900 bytes"),
        (CLOSED, False, "its logger died; the sensor had ended it after 900 bytes"),
        (LOST, True, "its logger died, and the hardworker forgot it after 900 bytes or more"),
    ],
)
def test_a_connection_whose_logger_died_is_closed_with_the_reason(
    log: LogFile, store: SqlStore, dead: str, state: str, reset: bool, reason: str
) -> None:
    for port, name in enumerate((dead, new_name(), dead, dead), 1):
        log.add([b"12345678"] * 3, sensor=SENSOR, port=port, first=7, step_ns=1, closed=False)
        log.execute(f"UPDATE connections SET token = '{name}.{port}' WHERE port = {port}")
    store.note_held(
        [held(1, 900, state), held(2, 900, state), held(3, 900), held(4, 900, state)], [waiting(4)]
    )
    assert end(log, 1) == (START + 2, reset, reason, None)
    assert end(log, 2) == (None, None, None, None), "its logger runs"
    assert end(log, 3) == (None, None, None, None), "the hardworker has it open"
    assert end(log, 4) == (None, None, None, None), "the rest waits in the spool"
    store.note_held([], [])
    assert end(log, 4) == (START + 2, reset, reason, None), "it waits there no more"
    with SqlLog(log.url) as opened:
        verdicts = list(verify(opened, opened.connections()))
    assert [(verdict.faults, verdict.account and verdict.account.verdict) for verdict in verdicts] == [
        ([], "hole"),
        ([], "pending"),
        ([], "pending"),
        ([], "hole"),
    ]


def test_what_is_removed_to_make_room_takes_what_was_told_with_it(log: LogFile, store: SqlStore) -> None:
    for port in (1, 2, 3):
        log.add(
            [bytes(100)] * 64,
            sensor=SENSOR,
            port=port,
            first=7,
            start_ns=START + port * 1000 * SECOND,
            step_ns=SECOND,
        )
    streams = [held(port, 6400, CLOSED, opened_ns=START + port * 1000 * SECOND) for port in (1, 2, 3)]
    nothing = held(4, 10, CLOSED, opened_ns=START)  # of which the log has nothing
    store.note_held([*streams, nothing], [])
    log.execute(f"INSERT INTO forgotten VALUES ('{SENSOR}', 1, 2, 3, 4, 'data')")
    log.execute(f"INSERT INTO forgotten VALUES ('{SENSOR}', 5, {2 * START}, 3, 4, 'data')")
    pruning.prune(log.url, keep_ns=None, keep_bytes=6400)
    found = told(log)
    assert found.held == streams[2:] and [each.first_ns for each in found.forgotten] == [5]


def say(line: Line, said: dict[str, Any], steps: bytes = b"") -> int:
    """How much was noted."""
    line.send(said, [steps])
    before = time.time_ns()
    answer, _ = line.receive()
    assert before - 10**9 < answer["received_ns"] <= answer["answered_ns"] <= time.time_ns()
    return int(answer["noted"])


def test_it_is_said_on_a_line_to_the_logger(tmp_path: Path) -> None:
    site = exchanging(Site(tmp_path))
    with Serving(site.config), asking(site) as line:
        said = {"kind": "held", "connections": [held(1, 100).values], "pending": [waiting(9).values]}
        assert say(line, said) == 1
        two = [arrivals(0, 30), arrivals(30, 20)]
        said = {"connections": [held(1, 200, CLOSED).values], "arrivals": [(*each.said, 8) for each in two]}
        assert say(line, said, b"".join(each.steps for each in two)) == 1
        assert say(line, said | {"arrivals": []}) == 1
        with pytest.raises(NetworkError):
            say(line, {"kind": "held", "connections": [[SENSOR]]})
    with SqlLog(site.url) as opened:
        assert opened.told() == Knowledge([held(1, 200, CLOSED)], [waiting(9)])
        with opened.transaction() as database:
            rows = database.execute(select(schema.arrivals).order_by(schema.arrivals.c.stream_start))
            assert [ArrivalTimes(*row) for row in rows] == two


class Mute:
    """A line on which nothing may be answered."""

    def send(self, head: dict[str, Any]) -> None:
        pytest.fail(f"it was answered: {head}")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"connections": 5},
        {"connections": [[SENSOR, 1, 7, START, -1, OPEN, False]]},
        {"connections": [[SENSOR, 1, 7, START, 1, "dead", False]]},
        {"connections": [[SENSOR, "1", 7, START, 1, OPEN, False]]},
        {"connections": [[SENSOR, 1, 7, START, 1, OPEN]]},
        {"connections": [], "pending": [[SENSOR, 1]]},
        {"connections": [], "arrivals": [[SENSOR, 1]]},
        {"connections": [], "arrivals": [5]},
        {"connections": [], "arrivals": [[SENSOR, 1, 7, START, 0, 30, START, 0, 0, 8]]},  # the steps lack
        {"connections": [], "arrivals": [[SENSOR, 1, 7, START, 0, 0, START, 0, 0, "8"]]},
        {"connections": [held(1, 1).values] * (MOST + 1)},
    ],
)
def test_nonsense_ends_the_line(tmp_path: Path, said: dict[str, Any]) -> None:
    holding = Holding(load(Site(tmp_path).config), ONE_STREAM)
    with pytest.raises(NetworkError):
        holding.answer(Mute(), said)  # type: ignore[arg-type]
    assert not (tmp_path / "midstream.db").exists()
