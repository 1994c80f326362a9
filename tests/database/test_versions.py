"""A database of the version before streams is read as it is, goes on, and is brought up to date."""

from sqlalchemy import create_engine, inspect, text
from tests.support import version_3
from tests.support.batches import batch_of, laid_out
from tests.support.version_3 import OPENED, PAYLOADS, SENSOR

from midstream.fields import Field, Layout
from midstream.log.verify import verify
from midstream.storage.databases import open_log
from midstream.storage.formats import StreamFormat
from midstream.storage.pruning import prune
from midstream.storage.schema import VERSION
from midstream.storage.sql import SqlStore
from midstream.storage.store import ConnectionRow, Position
from midstream.told import STEP, ArrivalTimes, Forgotten, HeldConnection, Pending

LAYOUT = Layout(8, (Field("heat", "<u4", 0), Field("level", "<f4", 4)))


def old(url: str) -> None:
    engine = create_engine(url)
    version_3.make(engine)
    engine.dispose()


def check(url: str) -> None:
    """All that there was, read through the log."""
    with open_log(url) as log:
        first, second = log.connections()
        assert (first.port, first.size, first.layout, second.port) == (40000, 24, LAYOUT, 40001)
        assert first.stream == second.stream == "data"
        messages, _ = log.piece(first, 0, 9)
        assert [each.payload for each in messages] == PAYLOADS
        verdicts = list(verify(log, [first]))
        assert [(each.faults, each.messages) for each in verdicts] == [([], 3)]
        told = log.told()
        assert sorted(told.held, key=lambda each: each.port) == [
            HeldConnection(SENSOR, 40000, 77, OPENED, 24, "closed", False),
            HeldConnection(SENSOR, 40001, 78, OPENED + 5, 3, "open", True),
        ]
        assert told.pending == [Pending(SENSOR, 40001, 78, OPENED + 5, 0, 16, 2, OPENED)]
        assert told.forgotten == [Forgotten(SENSOR, 1, 2, 3, 24)]
        assert log.arrivals(first, 0, 24, 0) == [
            ArrivalTimes(SENSOR, 40000, 77, OPENED, 0, 24, OPENED, 5, 6, STEP.pack(24, 0))
        ]


def test_it_is_read_as_it_is(url: str) -> None:
    old(url)
    check(url)


def test_it_is_brought_up_to_date_and_goes_on(url: str) -> None:
    old(url)
    streams = {**laid_out(LAYOUT), "gps": StreamFormat("line", 80)}
    for _ in range(2):
        SqlStore(url, batch_size=10, streams=streams).close()
        check(url)
    engine = create_engine(url)
    assert not {"readings", "held_before"} & set(inspect(engine).get_table_names())
    with SqlStore(url, batch_size=10, streams=streams) as store:
        begun = ConnectionRow("run.2", SENSOR, 40001, OPENED, first=78)
        assert store.resume([begun]) == {"run.2": Position(2, 0, 3, b"abc")}
        assert store.find(ConnectionRow("x.1", SENSOR, 40001, OPENED, first=78)) is not None
        assert store.find(ConnectionRow("x.1", SENSOR, 40001, OPENED, first=78, stream="gps")) is None
        store.write(batch_of(ConnectionRow("run.3", SENSOR, 40002, OPENED), [bytes(8)]))
        store.write(batch_of(ConnectionRow("run.4", SENSOR, 40002, OPENED, stream="gps"), [b"$"]))
        store.note_held(
            [
                HeldConnection(SENSOR, 40000, 77, OPENED, 5, "closed", False, stream)
                for stream in ("data", "gps")
            ],
            None,
        )
        store.note_forgotten([Forgotten(SENSOR, 1, 2, 4, 32), Forgotten(SENSOR, 1, 2, 1, 1, "gps")])
    with engine.connect() as database:
        assert database.execute(text("SELECT version FROM schema_version")).scalar() == VERSION
        held = "SELECT stream, held_bytes FROM held WHERE port = 40000 ORDER BY 1"
        assert database.execute(text(held)).all() == [("data", 24), ("gps", 5)]
        holes = "SELECT stream, messages FROM forgotten ORDER BY 1"
        assert database.execute(text(holes)).all() == [("data", 4), ("gps", 1)]
        rows = "SELECT connection_id, sequence, heat FROM readings_data ORDER BY 1, 2"
        assert database.execute(text(rows)).all() == [(1, 0, 0), (1, 1, 1), (1, 2, 2), (3, 0, 0)]
        streams_of = "SELECT stream, count(*) FROM log GROUP BY stream ORDER BY 1"
        assert database.execute(text(streams_of)).all() == [("data", 4), ("gps", 1)]
    engine.dispose()


def test_it_is_pruned_as_it_is(url: str) -> None:
    old(url)
    assert prune(url, keep_ns=None, keep_bytes=0).messages == 3
    engine = create_engine(url)
    with engine.connect() as database:
        assert database.execute(text("SELECT count(*) FROM readings")).scalar() == 0
    engine.dispose()
