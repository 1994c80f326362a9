"""The backfill: what a spool holds comes to the logger, each message once, with all that is known of it."""

import hashlib
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.exchanges import exchanging
from tests.support.site import SIZE, Serving, Site, wait_until
from tests.support.spools import (
    Cutting,
    Receiving,
    batch,
    contents,
    drain,
    ended,
    opening,
    payloads,
    spool,
    streams,
)

from midstream.config import Config, load
from midstream.errors import ConfigError
from midstream.logger import Logger, backfill
from midstream.logger.backfill import Rate, Sender
from midstream.logger.spooled import ENDED, SpoolState, spool_state
from midstream.storage.run import new_name
from midstream.storage.sql import SqlStore
from midstream.storage.store import Batch, ConnectionRow
from midstream.told import Forgotten

FAST = 'backfill_rate = "1GiB"\n'


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "FIRST_RETRY", "LAST_RETRY"):
        monkeypatch.setattr(backfill, name, 0.01)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(exchanging(Site(tmp_path), FAST).config)


def logged(config: Config) -> SqlStore:
    """The logger's own database."""
    return SqlStore(config.database_url, batch_size=4096, streams=streams(config))


def spooled(config: Config) -> str:
    return f"sqlite:///{config.spool_path}"


def query(config: Config, statement: str, *, logged: bool = False) -> list[Any]:
    """Of the spool, or of the logger's database."""
    path = config.database_url.removeprefix("sqlite:///") if logged else str(config.spool_path)
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def sending(config: Config, said: Callable[[str], None], stopped: threading.Event) -> threading.Thread:
    """What sends until it is stopped."""
    return threading.Thread(target=Sender(config, lambda: ["127.0.0.1"], said).run, args=(stopped.wait,))


@pytest.mark.slow
def test_everything_comes_as_it_was(config: Config) -> None:
    with spool(config) as store:
        for number in range(3):
            row, some = opening(number, first=2**32 - 1 - number), payloads(3000 + number)
            store.write(batch(row, some[:2000]))
            store.write(batch(row, some[2000:], sequence=2000, offset=2000 * SIZE))
            store.write(ended(row, len(some) * SIZE + 3, unfinished=b"abc", digest="ab" * 32))
        store.write(ended(opening(9, first=9), 0))  # one without a message
    before = contents(spooled(config))
    with Receiving(config):
        drain(config)
        assert contents(config.database_url) == before
        drain(config)
    assert contents(config.database_url) == before
    assert spool_state(Path(str(config.spool_path))) == SpoolState()
    for table in ("connections", "messages", "fragments"):
        assert query(config, f"SELECT count(*) FROM {table}") == [(0,)]
    marks = query(config, "SELECT token, first, spooled FROM connections ORDER BY opened_ns", logged=True)
    assert marks == [*((f"aa.{number}", 2**32 - 1 - number, 1) for number in range(3)), ("aa.9", 9, 1)]


@pytest.mark.parametrize("overlap", [0, 1, 50])
def test_a_connection_that_the_logger_began_goes_on(config: Config, overlap: int) -> None:
    """It died amid; the spool has what was retained, some of which the logger had committed."""
    some = payloads(100)
    with logged(config) as store:
        own = ConnectionRow(f"{new_name()[:-10]}ffff000000.1", "10.83.0.11", 40000, 10**18 + 7, 77)
        store.write(batch(own, some[:60]))
        store.write(Batch(fragments=[(own, 60 * SIZE, some[60][:9])]))
        other = ConnectionRow("bb.2", "10.83.0.11", 40000, 10**18 - 10**13, 77)  # of another day
        store.write(batch(other, some[:5]))
        store.write(ended(other, 5 * SIZE))
    with spool(config) as store:
        row = opening(1, first=77)
        begin = 60 - overlap
        store.write(batch(row, some[begin:], sequence=begin, offset=begin * SIZE))
        store.write(ended(row, 100 * SIZE + 2, unfinished=b"xy"))
    with Receiving(config):
        drain(config)
    found = contents(config.database_url)
    facts, rows = found["10.83.0.11", 40000, own.opened_ns]
    assert facts == (row.closed_ns, 100 * SIZE + 2, None, False, "end of stream", b"xy")
    assert [each[0] for each in rows] == [*range(100)]
    assert [each[4] for each in rows] == some
    assert [each[2] for each in rows] == [number * SIZE for number in range(100)]
    assert rows[0][1] == own.opened_ns, "what the logger had stays as it was"
    assert len(found) == 2
    assert query(config, "SELECT count(*) FROM fragments", logged=True) == [(0,)]
    assert query(config, "SELECT spooled FROM connections ORDER BY opened_ns", logged=True) == [(0,), (1,)]


def test_the_same_numbers_of_another_day_are_another_connection(config: Config) -> None:
    """A sensor that begins with the same port and number each time that it is switched on."""
    some = payloads(10)
    with logged(config) as store:
        store.write(batch(ConnectionRow("bb.1", "10.83.0.11", 40000, 10**18 - 10**13, 77), some))
    with spool(config) as store:
        row = opening(1, first=77)
        store.write(batch(row, some))
        store.write(ended(row, 10 * SIZE))
    with Receiving(config):
        drain(config)
    assert [len(rows) for _, rows in contents(config.database_url).values()] == [10, 10]


def test_what_the_logger_knows_better_stays(config: Config) -> None:
    """It had committed all before its word could be heard."""
    some = payloads(10)
    with logged(config) as store:
        own = ConnectionRow("bb.1", "10.83.0.11", 40000, 10**18 + 7, 77)
        store.write(batch(own, some))
        store.write(ended(own, 10 * SIZE, digest="cd" * 32))
    before = contents(config.database_url)
    with spool(config) as store:
        row = opening(1, first=77)
        store.write(batch(row, some[5:9], sequence=5, offset=5 * SIZE))
        store.write(ended(row, 9 * SIZE))
    with Receiving(config):
        drain(config)
    assert contents(config.database_url) == before


def test_a_connection_that_the_logger_still_has_waits(config: Config) -> None:
    """Its worker may be storing the same; those behind it need not wait."""
    some = payloads(10)
    with logged(config) as store:
        own = ConnectionRow(f"{new_name()}.1", "10.83.0.11", 40000, 10**18 + 7, 77)
        store.write(batch(own, some[:5]))
    with spool(config) as held:
        for row, begin in ((opening(1, first=77), 4), (opening(2, first=78), 0)):
            held.write(batch(row, some[begin:], sequence=begin, offset=begin * SIZE))
            held.write(ended(row, 10 * SIZE))
    said: list[str] = []
    stopped = threading.Event()
    with Receiving(config), logged(config) as store:
        sender = sending(config, said.append, stopped)
        sender.start()
        wait_until(lambda: query(config, "SELECT first FROM connections") == [(77,)])
        assert [len(rows) for _, rows in contents(config.database_url).values()] == [5, 10]
        store.write(ended(own, 5 * SIZE))
        wait_until(lambda: query(config, "SELECT first FROM connections") == [])
        stopped.set()
        sender.join()
    assert [len(rows) for _, rows in contents(config.database_url).values()] == [10, 10]
    name = "the connection from 10.83.0.11 port 40000"
    assert said == [f"logger: {name} stays in the spool: the logger still has this connection"]


def test_of_an_open_connection_the_last_message_stays(config: Config) -> None:
    """There a worker goes on that takes the place of a killed one."""
    some = payloads(10)
    stopped = threading.Event()
    with Receiving(config), spool(config) as store:
        row = opening(1, first=77)
        row.token = f"{new_name()}.1"
        store.write(batch(row, some[:5]))
        sender = sending(config, print, stopped)
        sender.start()
        wait_until(lambda: query(config, "SELECT sequence FROM messages") == [(4,)])
        position = store.resume([row])[row.token]
        assert (position.sequence, position.offset) == (5, 5 * SIZE)
        assert spool_state(Path(str(config.spool_path))).messages == 1
        store.write(batch(row, some[5:], sequence=5, offset=5 * SIZE))
        wait_until(lambda: query(config, "SELECT sequence FROM messages") == [(9,)])
        store.write(ended(row, 10 * SIZE))
        wait_until(lambda: query(config, "SELECT token FROM connections") == [])
        stopped.set()
        sender.join()
    ((facts, rows),) = contents(config.database_url).values()
    assert (facts[1], [each[4] for each in rows]) == (10 * SIZE, some)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [b"", b"begun"])
def test_a_connection_whose_logger_died_ends(
    config: Config, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "LINGERING", 0.2)
    with spool(config) as store:
        row = opening(1, first=77)
        name = new_name()
        row.token = f"{name[:21]}ffff{name[25:]}.1"  # a process of this number that has ended
        store.write(batch(row, payloads(3)))
        if begun:
            store.write(Batch(fragments=[(row, 3 * SIZE, begun)]))
    began = time.monotonic()
    with Receiving(config):
        drain(config)
    assert time.monotonic() - began > 0.2, "a worker of its may still have stored something"
    ((facts, rows),) = contents(config.database_url).values()
    assert facts == (row.opened_ns + 2000, 3 * SIZE + len(begun), None, True, ENDED, begun)
    assert len(rows) == 3


def test_what_was_forgotten_is_named_once(config: Config) -> None:
    hole = Forgotten("10.83.0.11", 1, 5, 3, 30)
    grown = Forgotten("10.83.0.11", 1, 9, 7, 70)
    with spool(config) as store, Receiving(config):
        store.note_forgotten([hole, Forgotten("10.83.0.12", 1, 1, 1, 10)])
        assert spool_state(Path(str(config.spool_path))).forgotten == 4
        drain(config)
        store.note_forgotten([hole])  # as if the logger's answer had been lost
        drain(config)
        store.note_forgotten([grown])
        drain(config)
        assert query(config, "SELECT * FROM forgotten") == []
    found = query(config, "SELECT * FROM forgotten ORDER BY sensor", logged=True)
    assert found == [grown, Forgotten("10.83.0.12", 1, 1, 1, 10)]


def test_a_connection_with_a_hole_comes_with_it(config: Config) -> None:
    """A full spool forgot its first messages, and some within."""
    some = payloads(20)
    with spool(config) as store:
        row = opening(1, first=77)
        store.write(batch(row, some[5:8], sequence=5, offset=5 * SIZE))
        store.write(batch(row, some[12:], sequence=12, offset=12 * SIZE))
        store.write(ended(row, 20 * SIZE))
    before = contents(spooled(config))
    with Receiving(config):
        drain(config)
    assert contents(config.database_url) == before


def test_a_damaged_row_arrives_as_damaged(config: Config) -> None:
    with spool(config) as store:
        row = opening(1, first=77)
        store.write(batch(row, payloads(3)))
        store.write(ended(row, 3 * SIZE))
    with closing(sqlite3.connect(str(config.spool_path))) as database, database:
        database.execute("UPDATE messages SET crc = 5 WHERE sequence = 1")
    with Receiving(config):
        drain(config)
    ((_, rows),) = contents(config.database_url).values()
    assert [each[3] == 5 for each in rows] == [False, True, False]


@pytest.mark.parametrize(
    ("size", "framing", "why"),
    [
        (SIZE + 4, "fixed", f"another size than the logger's {SIZE} bytes"),
        (SIZE, "line", 'the framing of its stream data is "line", and the logger\'s "fixed"'),
    ],
)
def test_what_the_logger_cannot_have_stays(config: Config, size: int, framing: str, why: str) -> None:
    with spool(config) as store:
        for number in range(2):
            row = opening(number, first=number)
            store.write(batch(row, payloads(3, SIZE if number else size)))
            store.write(ended(row, 3 * SIZE))
    if framing != "fixed":
        with closing(sqlite3.connect(str(config.spool_path))) as database, database:
            database.execute("UPDATE connections SET framing = ? WHERE first = 0", (framing,))
    said: list[str] = []
    stopped = threading.Event()
    with Receiving(config):
        sender = sending(config, said.append, stopped)
        sender.start()
        wait_until(lambda: query(config, "SELECT first FROM connections") == [(0,)])
        stopped.set()
        sender.join()
    assert query(config, "SELECT count(*) FROM messages") == [(3,)]
    assert len(said) == 1
    assert why in said[0]


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_line_may_end_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, at_once: None, data: st.DataObject
) -> None:
    """Connections of any length, some of which the logger began; the line ends again and again."""
    site = exchanging(Site(tmp_path_factory.mktemp("cut")), 'backfill_rate = "1MiB"\n')
    config = load(site.config)
    counts = data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=3))
    had = [data.draw(st.integers(0, count)) for count in counts]
    limits = data.draw(st.lists(st.integers(0, 50_000), max_size=8))
    expected = {}
    with logged(config) as own, spool(config) as store:
        for number, (count, begun) in enumerate(zip(counts, had, strict=True)):
            some = payloads(count)
            row = opening(number, first=number)
            expected["10.83.0.11", 40000, row.opened_ns] = some
            if begun:
                before = ConnectionRow(f"bb.{number}", row.sensor, row.port, row.opened_ns, row.first)
                own.write(batch(before, some[:begun]))
                own.write(ended(before, begun * SIZE))
            start = data.draw(st.integers(0, begun))
            store.write(batch(row, some[start:], sequence=start, offset=start * SIZE))
            store.write(ended(row, count * SIZE))
    with Receiving(config), Cutting(config.logger.replay_port, limits) as wire:
        cut = config.model_copy(
            update={"logger": config.logger.model_copy(update={"replay_port": wire.port})}
        )
        cut._path = config.path
        drain(cut)
    found = contents(config.database_url)
    assert {key: [each[4] for each in rows] for key, (_, rows) in found.items()} == expected
    for (facts, rows), count in zip(found.values(), counts, strict=True):
        assert (facts[1], [each[0] for each in rows]) == (count * SIZE, [*range(count)])
    assert not spool_state(Path(str(config.spool_path)))


def test_a_line_that_ends_again_and_again_makes_it_no_slower(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits longer only where nothing at all is taken."""
    monkeypatch.setattr(backfill, "PAGE_BYTES", 4 * SIZE)
    monkeypatch.setattr(backfill, "LAST_RETRY", 100.0)
    with spool(config) as store:
        store.write(batch(row := opening(1), payloads(100)))
        store.write(ended(row, 100 * SIZE))
    rests: list[float] = []
    with Receiving(config), Cutting(config.logger.replay_port, [2000 + 6 * SIZE] * 10) as wire:
        cut = config.model_copy(
            update={"logger": config.logger.model_copy(update={"replay_port": wire.port})}
        )
        cut._path = config.path

        def stop(seconds: float) -> bool:
            rests.append(seconds)
            return False

        Sender(cut, lambda: ["127.0.0.1"], lambda _: None).run(stop, drain=True)
    assert not spool_state(Path(str(config.spool_path)))
    assert max(rests) == backfill.FIRST_RETRY


def test_the_next_logger_takes_it_where_the_first_does_not(config: Config) -> None:
    with spool(config) as store:
        row = opening(1, first=77)
        store.write(batch(row, payloads(3)))
        store.write(ended(row, 3 * SIZE))
    with Receiving(config, "127.0.0.2"):
        drain(config, loggers=("127.0.0.1", "127.0.0.2"))
    assert len(contents(config.database_url)) == 1


def test_a_sender_says_why_it_waits(config: Config) -> None:
    with spool(config) as store:
        store.write(batch(opening(1, first=77), payloads(3)))
    said: list[str] = []
    stopped = threading.Event()
    sender = sending(config, said.append, stopped)
    sender.start()
    wait_until(lambda: bool(said))
    time.sleep(0.1)
    stopped.set()
    sender.join()
    (text,) = said
    assert text.startswith("logger: the spool cannot be sent just now: 127.0.0.1 port ")
    assert "logger.replay_port" in text


def test_what_a_sender_needs(tmp_path: Path) -> None:
    site = exchanging(Site(tmp_path))
    text = site.config.read_text()
    site.config.write_text(text.replace('spool = "spool.db"', 'spool = ""'))
    with pytest.raises(ConfigError, match=r'hardworker.spool = "": there is no spool'):
        Sender(load(site.config), list, print)
    site.configure(logger="replay_port = 0\n")
    with pytest.raises(ConfigError, match=r"logger.replay_port = 0"):
        Sender(load(site.config), list, print)


def test_nothing_is_needed_to_send_nothing(config: Config) -> None:
    assert spool_state(Path(str(config.spool_path))) == SpoolState()
    drain(config)
    spool(config).close()
    drain(config)


def test_the_state_of_a_spool(config: Config) -> None:
    with spool(config) as store:
        for number in range(2):
            row = opening(number, first=number)
            store.write(batch(row, payloads(30)[10:], sequence=10, offset=10 * SIZE))
        store.write(Batch(opened=[opening(2)]))
    state = spool_state(Path(str(config.spool_path)))
    assert state == SpoolState(3, 40, 40 * SIZE, 10**18 + 10 * 1000)


@pytest.mark.slow
def test_a_spool_hands_back_to_the_logger(tmp_path: Path) -> None:
    """As it is used: a sensor's connection to the hardworker itself, and then the logger is back."""
    site = exchanging(Site(tmp_path), FAST)
    config = load(site.config)
    url = f"sqlite:///{config.spool_path}"
    hand_back = threading.Event()
    stream = b"".join(payloads(1000))
    with Logger(site.config, spool=True) as logger:
        serving = threading.Thread(target=logger.serve, kwargs={"hand_back": hand_back.is_set})
        serving.start()
        with socket.create_connection(("127.0.0.2", site.port), 10, ("127.0.0.11", 0)) as sensor:
            sensor.sendall(stream + b"half")
            wait_until(lambda: [len(rows) for _, rows in contents(url).values()] == [1000])
            with Serving(site.config):
                hand_back.set()
                assert sensor.recv(1) == b"", "the sensor sees that it is to open anew"
                sensor.close()
                serving.join(60)
                assert not serving.is_alive()
        assert spool_state(Path(str(config.spool_path))) == SpoolState()
    ((facts, rows),) = contents(config.database_url).values()
    assert b"".join(row[4] for row in rows) == stream
    assert facts[1:] == (
        len(stream) + 4,
        hashlib.sha256(stream + b"half").hexdigest(),
        False,
        "end of stream",
        b"half",
    )
    assert query(config, "SELECT spooled, first IS NOT NULL FROM connections", logged=True) == [(1, 1)]


# the rate


@pytest.mark.parametrize(("per_second", "page"), [(1 << 10, 64), (8 << 20, 512 << 10), (1 << 40, 1 << 20)])
def test_pages_are_small_where_the_rate_is(per_second: int, page: int) -> None:
    assert Rate(per_second).page == page


def test_the_rate_is_kept_and_nothing_is_saved_up() -> None:
    now = [100.0]
    rate = Rate(1000, lambda: now[0])
    now[0] += 50
    waited = 0.0
    for _ in range(20):
        rest = rate.sent(100)
        now[0] += rest
        waited += rest
    assert waited == pytest.approx(2.0)


@pytest.mark.slow
def test_a_slow_backfill_holds_up_neither_line_nor_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the rate is waited for the spool's logger writes as ever, and the line does not time out."""
    monkeypatch.setattr("midstream.line.TIMEOUT", 0.6)
    monkeypatch.setattr(backfill, "TIMEOUT", 0.6)
    config = load(exchanging(Site(tmp_path), "backfill_rate = 1024\n").config)
    row = opening(1, first=77)
    row.token = f"{new_name()}.1"
    stopped = threading.Event()
    said: list[str] = []
    with Receiving(config), spool(config) as store:
        store.write(batch(row, payloads(60)))
        sender = sending(config, said.append, stopped)
        began = time.monotonic()
        sender.start()
        longest = 0.0
        for number in range(60, 80):
            before = time.monotonic()
            store.write(batch(row, payloads(1), sequence=number, offset=number * SIZE))
            longest = max(longest, time.monotonic() - before)
            time.sleep(0.02)
        wait_until(lambda: query(config, "SELECT sequence FROM messages") == [(79,)])
        taken = time.monotonic() - began
        stopped.set()
        sender.join()
    assert longest < 0.5
    assert taken > 80 * SIZE / 1024 - 0.2
    assert said == []
    ((_, rows),) = contents(config.database_url).values()
    assert [each[0] for each in rows] == [*range(80)]
