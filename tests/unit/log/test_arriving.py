"""When each message came to the hardworker, as the log shows and exports it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mcap.reader
import pyarrow.parquet
import pytest
from tests.support.logs import SECOND, START, LogFile

from midstream.framing import Framing
from midstream.log import export as exports
from midstream.log.listing import line
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.storage import pruning
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.storage.stored import Arrival, StoredMessage
from midstream.told import CLOSED, STEP, ArrivalTimes, HeldConnection

SENSOR = "10.83.0.11"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    made = LogFile(tmp_path / "midstream.db")
    yield made
    made.close()


def told(
    start: int, sizes: list[int], *, port: int = 1, first: int = 7, time_ns: int = 0, step_ns: int = 1000
) -> ArrivalTimes:
    """The logger's clock is 500 ns ahead."""
    steps = b"".join(STEP.pack(size, step_ns if number else 0) for number, size in enumerate(sizes))
    end = start + sum(sizes)
    return ArrivalTimes(SENSOR, port, first, START, start, end, START + time_ns, 500, 20, steps)


def note(log: LogFile, *arrivals: ArrivalTimes) -> None:
    with SqlStore(log.url, batch_size=10) as store:
        store.note_held([], None, arrivals)


def messages(log: LogFile) -> list[StoredMessage]:
    with SqlLog(log.url) as opened:
        return [each for piece in LogReader(opened, Selection()).read() for each in piece]


def times(log: LogFile) -> list[int | None]:
    return [each.arrival.time_ns - START if each.arrival else None for each in messages(log)]


def test_a_message_came_with_its_last_byte(log: LogFile) -> None:
    log.add([bytes(10)] * 4, sensor=SENSOR, port=1, first=7, step_ns=SECOND)
    note(log, told(0, [10, 5, 5, 30]))
    assert times(log) == [0, 2000, 3000, 3000]
    assert messages(log)[1].arrival == Arrival(START + 2000, SECOND - 2000 - 500, 20)


def test_what_came_by_the_spool_was_received_by_one_of_two_clocks(log: LogFile) -> None:
    log.add([bytes(10)], sensor=SENSOR, port=1, first=7)
    log.execute("UPDATE connections SET spooled = 1")
    note(log, told(0, [10], time_ns=-3000))
    assert messages(log)[0].arrival == Arrival(START - 3000, 3000, 520)


@pytest.mark.parametrize(("framing", "frame"), [("length", 4), ("line", 1)])
def test_a_frame_counts(log: LogFile, framing: Framing, frame: int) -> None:
    log.add([b"1234567890"] * 3, sensor=SENSOR, port=1, first=7, framing=framing)
    note(log, told(0, [10 + frame, 10, frame, 10 + frame]))
    assert times(log) == [0, 2000, 3000]


def test_what_nobody_told_is_not_known(log: LogFile) -> None:
    """A hole in what was told, another port, another connection of this port, and one whose number is not
    known."""
    log.add([bytes(10)] * 5, sensor=SENSOR, port=1, first=7)
    note(log, told(0, [10]), told(30, [10]), told(10, [10], port=2), told(10, [10], first=8))
    assert times(log) == [0, None, None, 0, None]
    log.add([bytes(10)], sensor=SENSOR, port=9, first=None)
    assert times(log)[-1] is None


def test_told_twice_is_told_once(log: LogFile) -> None:
    log.add([bytes(10)] * 3, sensor=SENSOR, port=1, first=7)
    note(log, told(0, [10, 10]))
    note(log, told(0, [10, 10]), told(10, [10, 10], time_ns=9000))
    assert times(log) == [0, 1000, 10_000]
    with SqlLog(log.url) as opened, opened.transaction() as database:
        assert database.exec_driver_sql("SELECT count(*) FROM arrivals").scalar() == 2


def test_a_log_of_before(log: LogFile) -> None:
    log.add([bytes(10)], sensor=SENSOR, port=1, first=7)
    log.execute("DROP TABLE arrivals")
    assert times(log) == [None]
    pruning.prune(log.url, keep_ns=None, keep_bytes=10**6)
    note(log, told(0, [10]))
    assert times(log) == [0]


def test_what_is_removed_takes_its_arrivals_with_it(log: LogFile) -> None:
    for port in (1, 2):
        log.add(
            [bytes(100)] * 64, sensor=SENSOR, port=port, first=7, start_ns=START + port * 1000 * SECOND,
            step_ns=SECOND,
        )  # fmt: skip
    note(log, *(told(100 * each, [100], port=port) for port in (1, 2) for each in range(64)))
    with SqlStore(log.url, batch_size=10) as store:
        store.note_held([HeldConnection(SENSOR, 1, 7, START, 6400, CLOSED, False)], None)
    pruning.prune(log.url, keep_ns=None, keep_bytes=3200)
    left = {each.sequence for each in messages(log)}
    assert 0 < len(left) < 64 and min(left) > 0
    with SqlLog(log.url) as opened, opened.transaction() as database:
        rows = database.exec_driver_sql("SELECT port, min(stream_start) FROM arrivals GROUP BY port").all()
    assert [tuple(row) for row in rows] == [(2, 100 * min(left))]


def exported(log: LogFile, kind: exports.Format, folder: Path) -> Path:
    path = folder / f"out.{kind}"
    with SqlLog(log.url) as opened:
        exports.export(LogReader(opened, Selection()), kind, path)
    return path


def test_what_is_shown_and_exported(log: LogFile, tmp_path: Path) -> None:
    log.add([b"1234567890"] * 2, sensor=SENSOR, port=1, first=7, step_ns=SECOND)
    note(log, told(0, [10], time_ns=-2_000_500))
    arrived = exports.iso(START - 2_000_500)
    known = {"arrived": arrived, "delay_ns": 2_000_000, "delay_error_ns": 20}
    first, second = messages(log)
    assert line(first, {"text": "x"}).endswith(" 1:0 +2.000±0.000ms x")
    assert line(second, {"text": "x"}).endswith(" 1:1 x")
    early = first._replace(arrival=Arrival(START, -75_000, 200_000))
    assert line(early, {"text": "x"}).endswith(" 1:0 -0.075±0.200ms x"), "within the clocks' error"
    rows: list[dict[str, Any]] = [
        json.loads(each) for each in exported(log, "jsonl", tmp_path).read_text().splitlines()
    ]
    assert {key: rows[0][key] for key in known} == known and rows[0]["arrived_ns"] == START - 2_000_500
    assert {rows[1][key] for key in (*known, "arrived_ns")} == {None}
    with exported(log, "csv", tmp_path).open(newline="") as stream:
        cells = list(csv.DictReader(stream))
    assert [cells[0][key] for key in known] == [str(value) for value in known.values()]
    assert [cells[1][key] for key in known] == ["", "", ""]
    table = pyarrow.parquet.read_table(exported(log, "parquet", tmp_path))
    assert table["arrived"].cast("int64").to_pylist() == [START - 2_000_500, None]
    assert table["delay_ns"].to_pylist() == [2_000_000, None]
    assert table["delay_error_ns"].to_pylist() == [20, None]
    with exported(log, "mcap", tmp_path).open("rb") as stream:
        found = [each for *_, each in mcap.reader.make_reader(stream).iter_messages()]
    assert [(each.publish_time, each.log_time) for each in found] == [
        (START - 2_000_500, START),
        (START + SECOND, START + SECOND),
    ]
