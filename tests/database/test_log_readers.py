"""Every database that a log may be in is read alike: the same calls, the same answers."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.database import servers
from tests.support.batches import batch_of, end, laid_out

from midstream.cli import main
from midstream.fields import Field, Layout
from midstream.log.conditions import condition
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.log.verify import verify
from midstream.storage.databases import open_log
from midstream.storage.sql import SqlStore
from midstream.storage.store import ConnectionRow, Store
from midstream.storage.stored import Log, StoredConnection

LAYOUT = Layout(8, (Field("level", "<f4", 0, unit="m"), Field("tag", "V2", 4), Field("count", "<u2", 6)))
PAYLOADS = [struct.pack("<f2sH", number / 4, b"ab", number) for number in range(5000)]
SENSORS = ("10.83.0.11", "10.83.0.12")


@pytest.fixture(params=["sqlite", "postgresql", "nats"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Store]]:
    """A database with a connection that has ended, and an open one; each with PAYLOADS."""
    if request.param == "nats":
        cluster: servers.Nats = request.getfixturevalue("cluster")
        url = cluster.url("".join(letter for letter in request.node.name if letter.isalnum()))
        store: Store = servers.patient(url, streams=laid_out(LAYOUT))
    else:
        url = f"sqlite:///{tmp_path}/midstream.db"
        if request.param == "postgresql":
            postgres: servers.Postgres = request.getfixturevalue("postgres")
            url = postgres.new_database(f"readers{abs(hash(request.node.name))}")
        store = SqlStore(url, batch_size=1000, streams=laid_out(LAYOUT))
    with store:
        for number, sensor in enumerate(SENSORS):
            connection = ConnectionRow(
                token=f"a.{number}", sensor=sensor, port=40000, opened_ns=1000 + number
            )
            if number == 0:
                connection.first, connection.spooled = 2**32 - 1, True
            batch = batch_of(connection, PAYLOADS)
            if number == 0:
                digest = hashlib.sha256(b"".join(PAYLOADS) + b"half").hexdigest()
                batch.closed.append(end(connection, 8 * len(PAYLOADS) + 4, unfinished=b"half"))
                connection.closed_ns, connection.digest = 9000, digest
            store.write(batch)
        yield url, store


def connection_of(log: Log, sensor: str) -> StoredConnection:
    (found,) = (connection for connection in log.connections() if connection.sensor == sensor)
    return found


def test_what_was_written_is_read(written: tuple[str, Store]) -> None:
    url, _ = written
    with open_log(url) as log:
        ended, running = log.connections()
        assert (ended.sensor, ended.port, ended.opened_ns, ended.closed_ns) == (SENSORS[0], 40000, 1000, 9000)
        assert (ended.first, ended.spooled) == (2**32 - 1, True)
        assert (running.first, running.spooled) == (None, False)
        assert (ended.size, ended.unfinished, ended.state, ended.framing) == (
            40004,
            b"half",
            "closed",
            "fixed",
        )
        assert (running.closed_ns, running.size, running.state, running.pruned) == (None, None, "open", 0)
        assert ended.layout is not None
        assert ended.layout.describe() == LAYOUT.describe()
        pieces = list(LogReader(log, Selection()).read())
        for connection in (ended, running):
            mine = [each for piece in pieces for each in piece if each.connection.id == connection.id]
            assert [message.payload for message in mine] == PAYLOADS
            assert [message.sequence for message in mine] == list(range(5000))
        times = [message.received_ns for piece in pieces for message in piece]
        assert times == sorted(times)
        extents = log.extents()
        assert [(each.messages, each.first, each.last) for each in extents.values()] == [(5000, 0, 4999)] * 2
        assert [(each.start, each.end, each.first_ns, each.last_ns) for each in extents.values()] == [
            (0, 40000, 1000, 5999)
        ] * 2
        assert log.last_sequences() == {ended.id: 4999, running.id: 4999}
        verdicts = list(verify(log, log.connections()))
        assert [verdict.digest for verdict in verdicts] == ["right", "none"]
        assert all(verdict.right for verdict in verdicts)


@pytest.mark.slow
def test_a_selection_is_read(written: tuple[str, Store]) -> None:
    url, _ = written
    with open_log(url) as log:
        selection = Selection(
            conditions=(condition("level>=1249"), condition("tag=6162")), sensors=(SENSORS[1],)
        )
        (chosen,) = LogReader(log, selection).read()
        assert [message.sequence for message in chosen] == [4996, 4997, 4998, 4999]
        between = Selection(since_ns=3000, until_ns=3002)
        chosen = [message for piece in LogReader(log, between).read() for message in piece]
        assert sorted(message.sequence for message in chosen) == [2000, 2000, 2001, 2001]
        newest = LogReader(log, Selection())
        newest.skip_to_last(3)
        assert sorted(message.sequence for piece in newest.read() for message in piece) == [
            *(4997, 4997, 4998, 4998, 4999, 4999)
        ]
        found, following = log.piece(connection_of(log, SENSORS[0]), 17, 4000, 80)
        assert found[0].sequence == 17
        assert following == found[-1].sequence + 1 < 4000  # few, since these are bytes enough
        found, _ = log.piece(connection_of(log, SENSORS[0]), 1234, 1236)
        assert [message.sequence for message in found] == [1234, 1235]


def test_following_sees_what_comes(written: tuple[str, Store]) -> None:
    url, store = written
    with open_log(url) as log:
        reader = LogReader(log, Selection())
        assert sum(map(len, reader.read())) == 10000
        running = ConnectionRow(token="a.1", sensor=SENSORS[1], port=40000, opened_ns=1001)
        store.resume([running])
        running.id = connection_of(log, SENSORS[1]).id
        store.write(batch_of(running, PAYLOADS[:7], sequence=5000, offset=40000))
        later = ConnectionRow(token="a.2", sensor="10.83.0.13", port=40001, opened_ns=6000)
        store.write(batch_of(later, PAYLOADS[:5]))
        reader.refresh()
        found = [message for piece in reader.read() for message in piece]
        assert [each.sequence for each in found if each.connection.sensor == SENSORS[1]] == [
            *range(5000, 5007)
        ]
        assert [each.sequence for each in found if each.connection.sensor == "10.83.0.13"] == [*range(5)]
        assert len(found) == 12
        reader.refresh()
        assert list(reader.read()) == []


@pytest.mark.slow
@pytest.mark.parametrize("written", ["nats"], indirect=True)
def test_the_commands(
    written: tuple[str, Store],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, _ = written

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["midstream", "log", *arguments, "--database", url])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (None, 0)
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    listed = json.loads(run("list", "--json"))
    assert [(row["messages"], row["missing"], row["removed"], row["state"]) for row in listed] == [
        (5000, 0, 0, "closed"),
        (5000, 0, 0, "open"),
    ]
    shown = json.loads(run("show", "-n", "1", "--sensor", SENSORS[0], "--json"))
    assert shown["fields"] == {"level": 1249.75, "tag": "6162", "count": 4999}
    for kind in ("csv", "jsonl", "parquet", "mcap"):
        assert json.loads(run("export", "-o", f"x.{kind}", "--json"))["messages"] == 10000
    with (tmp_path / "x.jsonl").open() as lines:
        counts = [json.loads(line)["fields"]["count"] for line in lines]
    assert sorted(counts) == sorted([*range(5000), *range(5000)])
    assert [row["right"] for row in json.loads(run("verify", "--json"))] == [True, True]
