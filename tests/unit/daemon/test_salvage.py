"""What a logger that failed may have lost goes by the spool, and on where the logger's own messages end."""

import io
import itertools
import random
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.events import collected
from tests.support.exchanges import KEY, exchanging, write_key
from tests.support.site import SIZE, Site, wait_until
from tests.support.spools import Receiving, contents, drain, ended, streams
from tests.unit.logger.test_backfill import FAST, query, sending

from midstream import network
from midstream.config import Config, load
from midstream.daemon import spool as spool_module
from midstream.daemon.salvage import FAILED, in_order, save
from midstream.daemon.spool import Spool
from midstream.framing import Framing, encode
from midstream.logger import backfill
from midstream.logger.spooled import SpoolState, spool_state
from midstream.lost import Lost, Part, dump
from midstream.lost import load as load_lost
from midstream.network import SensorStream
from midstream.storage.databases import open_log, open_spool, open_store
from midstream.storage.formats import AnyStream, formats
from midstream.storage.run import new_name
from midstream.storage.store import FRAME, Batch, ConnectionRow, Piece

OPENED = 10**18
FRAMINGS: tuple[Framing, ...] = ("fixed", "length", "line")
each_framing = pytest.mark.parametrize("framing", FRAMINGS)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "FIRST_RETRY", "LAST_RETRY"):
        monkeypatch.setattr(backfill, name, 0.01)


def configured(folder: Path, framing: Framing, url: str = "", max_size: int = 1 << 20) -> Config:
    """A logger and a hardworker in one."""
    site = Site(folder, url)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    site.configure(
        framing=framing,
        max_size=max_size,
        logger=f'replay_port = {port}\n[daemon]\nkey = "key"\n',
        hardworker=f"{FAST}spool_free = 0\n",
    )
    write_key(folder / "key", KEY)
    return load(site.config)


def messages(framing: Framing, count: int, seed: int = 1) -> list[bytes]:
    chosen = random.Random(seed)
    if framing == "fixed":
        return [number.to_bytes(4, "little").ljust(SIZE, b".") for number in range(count)]
    return [b"%d:" % number + b"x" * chosen.randrange(200) for number in range(count)]


def stream(framing: Framing, some: list[bytes]) -> bytes:
    return b"".join(encode(framing, each, size=SIZE, max_size=1 << 20) for each in some)


def ends(framing: Framing, some: list[bytes]) -> list[int]:
    """Where each message ends in the stream."""
    return list(itertools.accumulate(len(each) + FRAME[framing] for each in some))


def own(*, ended_run: bool = True) -> ConnectionRow:
    """As the logger names it, which has ended."""
    token = f"{new_name()[:-10]}ffff000000.1" if ended_run else f"{new_name()}.1"
    return ConnectionRow(token, "10.83.0.11", 40000, OPENED + 7, 77)


def stored(config: Config, row: ConnectionRow, some: list[bytes], whole: int, begun: int) -> int:
    """The logger has so many messages of them, and so many bytes of the next one; where that ends."""
    framing = config.data.framing
    offset = ([0, *ends(framing, some)])[whole]
    with open_store(config, streams(config)) as store:
        times = [OPENED + number for number in range(whole)]
        piece = Piece(row, 0, 0, some[:whole], times, FRAME[framing])
        store.write(Batch(opened=[row], pieces=[piece] if whole else [], messages=whole))
        if begun:
            begin = stream(framing, some)[offset : offset + begun]
            store.write(Batch(fragments=[(row, offset, begin)]))
    return offset + begun


def lost(parts: list[Part], committed: int, *, closed: bool = False) -> Lost:
    return Lost("10.83.0.11", 40000, 77, OPENED, committed, closed, parts)


def salvage(config: Config, *some: Lost) -> None:
    """Into the spool, as the daemon's child does it."""
    file = io.BytesIO()
    dump(some, file)
    file.seek(0)
    assert config.spool_path
    with open_spool(config, config.spool_path, AnyStream()) as store:
        save(load_lost(file), store)


def parts(data: bytes, begin: int, cuts: list[int]) -> list[Part]:
    """The stream from there on, in pieces; each came at its offset's time."""
    at = sorted({begin, len(data), *(cut for cut in cuts if begin < cut < len(data))})
    return [Part(one, OPENED + one, data[one:two]) for one, two in itertools.pairwise(at)]


@pytest.mark.slow
@each_framing
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_the_log_goes_on_where_it_ended(framing: Framing, drawn: st.DataObject) -> None:
    """Wherever the logger's power went, and however the ring's records are cut and ordered."""
    some = messages(framing, drawn.draw(st.integers(1, 40)))
    data, places = stream(framing, some), [0, *ends(framing, some)]
    whole = drawn.draw(st.integers(0, len(some)))
    begun = drawn.draw(st.integers(0, places[whole + 1] - places[whole] - 1)) if whole < len(some) else 0
    held = drawn.draw(st.integers(places[whole] + begun, len(data)))
    folder = Path(tempfile.mkdtemp())
    try:
        config = configured(folder, framing)
        committed = stored(config, own(), some, whole, begun)
        told = drawn.draw(st.integers(0, committed))  # the hardworker's word is older
        cuts = drawn.draw(st.lists(st.integers(0, held), max_size=10))
        found = parts(data[:held], told, cuts)
        drawn.draw(st.randoms(use_true_random=False)).shuffle(found)
        salvage(config, lost(found, told))
        with Receiving(config):
            drain(config)
        ((facts, rows),) = contents(config.database_url).values()
        complete = sum(place <= max(held, committed) for place in places[1:])
        assert [(each[0], each[2], each[4]) for each in rows] == [
            (number, places[number], some[number]) for number in range(complete)
        ]
        if found:
            unfinished = data[places[complete] : max(held, committed)]
            assert (facts[1], facts[3:]) == (max(held, committed), (True, FAILED, unfinished))
            assert query(config, "SELECT count(*) FROM fragments", logged=True) == [(0,)]
        assert spool_state(Path(str(config.spool_path))) == SpoolState()
    finally:
        shutil.rmtree(folder)


@each_framing
def test_a_message_came_when_its_last_byte_did(tmp_path: Path, framing: Framing) -> None:
    config, some = configured(tmp_path, framing), messages(framing, 3)
    data, places = stream(framing, some), ends(framing, some)
    salvage(config, lost(parts(data, 0, [1, places[0], places[1] - 1]), 0, closed=True))
    with Receiving(config):
        drain(config)
    ((facts, rows),) = contents(config.database_url).values()
    assert [each[1] - OPENED for each in rows] == [1, places[1] - 1, places[1] - 1]
    assert facts[3:] == (False, FAILED, b"")


@pytest.mark.slow
@each_framing
def test_page_by_page(tmp_path: Path, framing: Framing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page begins amid a message, and is sent twice."""
    config, some = configured(tmp_path, framing), messages(framing, 8)
    committed = stored(config, own(), some, 3, 1)
    data = stream(framing, some)
    monkeypatch.setattr(backfill, "PAGE_BYTES", 13)
    for _ in range(2):
        salvage(config, lost(parts(data, committed, [*range(0, len(data), 11)]), committed))
        with Receiving(config):
            drain(config)
        ((facts, rows),) = contents(config.database_url).values()
        assert [each[4] for each in rows] == some
        assert facts[1] == len(data)


@each_framing
def test_a_logger_that_lives_stores_the_same(tmp_path: Path, framing: Framing) -> None:
    """It only took nothing for a while. What it commits afterwards is there once."""
    config, some = configured(tmp_path, framing), messages(framing, 20)
    row, data, places = own(ended_run=False), stream(framing, some), ends(framing, some)
    committed = stored(config, row, some, 5, 0)
    salvage(config, lost(parts(data, committed, places), committed))
    said: list[str] = []
    stopped = threading.Event()
    with Receiving(config), open_store(config, streams(config)) as store:
        sender = sending(config, said.append, stopped)
        sender.start()
        wait_until(lambda: said != [])
        times = [OPENED + number for number in range(5, 12)]
        piece = Piece(row, 5, places[4], some[5:12], times, FRAME[framing])
        store.write(Batch(pieces=[piece], messages=7))
        rest = data[places[11] : places[11] + 3]
        store.write(ended(row, places[11] + len(rest), unfinished=rest))
        wait_until(lambda: query(config, "SELECT count(*) FROM connections") == [(0,)])
        stopped.set()
        sender.join()
    ((facts, rows),) = contents(config.database_url).values()
    assert [(each[0], each[4]) for each in rows] == [*enumerate(some)]
    assert (facts[1], facts[5]) == (len(data), b"")
    assert "the logger still has this connection" in said[0]


@each_framing
def test_bytes_are_missing_before_it(tmp_path: Path, framing: Framing) -> None:
    """The ring was half full, so the word of the logger did not hold: messages of one size are told apart."""
    config, some = configured(tmp_path, framing), messages(framing, 20)
    data, places = stream(framing, some), ends(framing, some)
    stored(config, own(), some, 5, 0)
    salvage(config, lost(parts(data, places[7] + 2, []), places[4]))
    said: list[str] = []
    with Receiving(config):
        if framing == "fixed":
            drain(config)
        else:
            stopped = threading.Event()
            sender = sending(config, said.append, stopped)
            sender.start()
            wait_until(lambda: said != [])
            stopped.set()
            sender.join()
    ((_, rows),) = contents(config.database_url).values()
    there = [*range(5), *(range(9, 20) if framing == "fixed" else ())]
    assert [(each[0], each[4]) for each in rows] == [(number, some[number]) for number in there]
    assert said == [] or "its beginning is not in this log" in said[0]


def test_what_is_behind_a_hole_is_left_out() -> None:
    some = [Part(10, 1, b"b" * 10), Part(0, 2, b"a" * 10), Part(30, 3, b"d" * 10), Part(5, 4, b"x" * 10)]
    assert [*in_order(lost(some, 3))] == [Part(3, 2, b"a" * 7 + b"b" * 10)]
    assert [*in_order(lost([Part(10, 1, b"b")], 3))] == [Part(10, 1, b"b")], "it was not retained"
    assert [*in_order(lost([], 3))] == []


class Daemon:
    """Keeps a spool, as the hardworker's daemon does."""

    def __init__(self, config: Config) -> None:
        self.said = collected()
        assert config.spool_path
        self.spool = Spool(config, config.spool_path, time.monotonic)
        self._topology = network.load(config.const_path)

    def keep(self) -> None:
        self.spool.keep(self._topology, here=False, logger=False)

    def saved(self) -> list[int]:
        """The exit codes of what has stored it."""
        self.keep()
        return [facts["code"] for facts in self.said if facts.get("what") == "saved"]


def test_it_is_stored_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If that fails, it is tried again."""
    monkeypatch.setattr(spool_module, "LAST_DELAY", 0.1)
    config, some = configured(tmp_path, "fixed"), messages("fixed", 5)
    daemon = Daemon(config)
    path = Path(str(config.spool_path))
    path.write_bytes(b"no database" * 1000)
    daemon.spool.save([lost(parts(stream("fixed", some), 0, []), 0)])
    wait_until(lambda: daemon.saved() == [1])
    path.unlink()
    wait_until(lambda: daemon.saved()[-1] == 0)
    assert spool_state(path).bytes == 5 * SIZE
    with Receiving(config):
        drain(config)
    ((_, rows),) = contents(config.database_url).values()
    assert [each[4] for each in rows] == some


def test_what_two_streams_of_one_port_lost_is_given_back_to_each(tmp_path: Path) -> None:
    """Two connections that are the same but for their stream, whose framings differ."""
    robot = (SensorStream("imu", 0, "fixed", SIZE), SensorStream("gps", 0, "line", 300))
    site = exchanging(Site(tmp_path, streams=robot))
    config = load(site.config)
    sent = {each.name: messages(each.framing, 12) for each in robot}
    data = {each.name: stream(each.framing, sent[each.name]) for each in robot}
    known = formats(config, site.topology)
    for number, name in enumerate(sent):
        row = ConnectionRow(f"{own().token}{number}", "10.83.0.11", 40000, OPENED + 7, 77, stream=name)
        piece = Piece(row, 0, 0, sent[name][:3], [OPENED] * 3, known[name].frame)
        with open_store(config, known) as store:
            store.write(Batch(opened=[row], pieces=[piece], messages=3))
    some = [replace(lost(parts(data[name], 0, [50, 100]), 0), stream=name) for name in sent]
    salvage(config, *some)
    with Receiving(config):
        drain(config)
    with open_log(site.url) as log:
        connections = log.connections()
        assert sorted(each.stream for each in connections) == ["gps", "imu"]
        for each in connections:
            found = [one.payload for one in log.piece(each, 0, 99)[0]]
            assert found == sent[each.stream]
