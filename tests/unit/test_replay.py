"""The replay: what the logger stored, and then the ring, without a seam; and who may ask."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from tests.unit.fake_ring import FakeRing, RingSource
from tests.unit.site import SIZE, Serving, Site

from midstream.config import load
from midstream.ebpf.records import OPEN
from midstream.errors import ConfigError, NetworkError
from midstream.hardworker import Hardworker, history
from midstream.hardworker.source import Segment
from midstream.logger import Logger
from midstream.replay import Line

KEY = b"k" * 32
DOWN = 0.02  # seconds without a program: more than a round trip to the logger


class Young(RingSource):
    """A ring that was pinned when it was made."""

    def __init__(self, ring: FakeRing) -> None:
        super().__init__(ring)
        self._since = time.time()

    @property
    def began(self) -> float:
        return self._since


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    made.configure(logger=f'replay_port = {port}\n[daemon]\nkey = "key"\n')
    write_key(made, KEY)
    return made


def write_key(site: Site, key: bytes) -> None:
    path = site.folder / "key"
    path.write_bytes(key)
    path.chmod(0o600)


def message(number: int) -> bytes:
    return number.to_bytes(4, "little").ljust(SIZE, b".")


def send(site: Site, numbers: range) -> int:
    """As one connection of the sensor of const.toml; its port."""
    with socket.create_connection(("127.0.0.1", site.port), 10, ("127.0.0.11", 0)) as client:
        client.sendall(b"".join(map(message, numbers)))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        port: int = client.getsockname()[1]
        return port


def test_history_and_then_the_ring(site: Site) -> None:
    ring = FakeRing(1 << 16)
    with Serving(site.config):
        send(site, range(3000))
        send(site, range(5))
        time.sleep(DOWN)
        with Hardworker(site.config, source=Young(ring)) as hardworker:
            send(site, range(7))  # through the ring too
            ring.put(Segment(1, 0, 40000, 0, 5, OPEN, b""), capacity=None)
            ring.put(Segment(1, 0, 40000, 0, 5, 0, b"".join(map(message, range(7)))), capacity=None)
            got = list(islice(hardworker.replay(), 3012))
    assert [found.connection for found in got] == [-1] * 3000 + [-2] * 5 + [1] * 7
    assert [found.sequence for found in got] == [*range(3000), *range(5), *range(7)]
    assert [found.payload for found in got] == [message(found.sequence) for found in got]
    assert {found.sensor for found in got} == {"127.0.0.11"}
    assert abs(got[0].time - time.time_ns()) < 60e9


def test_since(site: Site) -> None:
    with Serving(site.config):
        send(site, range(3))
        time.sleep(0.05)
        between = datetime.now(UTC)
        send(site, range(4))
        time.sleep(DOWN)
        with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
            got = list(islice(hardworker.replay(between), 4))
            assert [found.sequence for found in got] == [0, 1, 2, 3]
            hardworker.stop()
            assert list(hardworker.replay(between + timedelta(hours=1))) == []


def test_messages_of_an_open_connection_are_waited_for(site: Site) -> None:
    """What the logger's kernel has acknowledged is in the answer, although it was not committed."""
    with (
        Serving(site.config),
        socket.create_connection(("127.0.0.1", site.port), 10, ("127.0.0.11", 0)) as client,
    ):
        client.sendall(message(0))
        site.wait_for("SELECT count(*) FROM messages", [(1,)])
        time.sleep(DOWN)
        with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
            client.sendall(message(1))
            assert [found.sequence for found in islice(hardworker.replay(), 2)] == [0, 1]


def test_another_key_gets_nothing(site: Site) -> None:
    with Serving(site.config), Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
        send(site, range(3))
        port = load(site.config).logger.replay_port
        with socket.create_connection(("127.0.0.1", port), 10) as asking:
            Line(asking, KEY, asks=True)  # it runs, and has read its key
        write_key(site, b"x" * 32)
        with pytest.raises(NetworkError, match="key"):
            next(hardworker.replay())


def test_no_logger_and_no_replay(site: Site) -> None:
    with (
        Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker,
        pytest.raises(NetworkError, match=r"no answer to the replay.*logger.replay_port"),
    ):
        next(hardworker.replay())
    site.configure()
    with (
        Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker,
        pytest.raises(ConfigError, match=r"logger.replay_port = 0"),
    ):
        next(hardworker.replay())


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (KEY, 0o640, "mode 0640 lets others read"),
        (b"short", 0o600, "5 bytes are no key"),
        (None, 0, "there is no key"),
    ],
)
def test_a_key_that_is_none(site: Site, content: bytes | None, mode: int, reason: str) -> None:
    path = site.folder / "key"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=reason), Logger(site.config):
        pass


class Pair:
    """Two ends of a line, with somebody in the middle who may change what passes."""

    def __init__(self) -> None:
        self.client, self._inner = socket.socketpair()
        self._outer, self.server = socket.socketpair()
        self.change: Callable[[bytes], bytes] = bytes
        ways = ((self._inner, self._outer), (self._outer, self._inner))
        self._threads = [threading.Thread(target=self._pass, args=way) for way in ways]
        for thread in self._threads:
            thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(self.change(data))
            sink.shutdown(socket.SHUT_WR)

    def lines(self) -> tuple[Line, Line]:
        made: list[Line] = []
        answering = threading.Thread(target=lambda: made.append(Line(self.server, KEY, asks=False)))
        answering.start()
        asking = Line(self.client, KEY, asks=True)
        answering.join(10)
        return asking, made[0]

    def close(self) -> None:
        for end in (self.client, self.server):
            end.close()
        for thread in self._threads:
            thread.join(5)
        for end in (self._inner, self._outer):
            end.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_what_is_said_arrives(pair: Pair) -> None:
    asking, answering = pair.lines()
    for number in range(3):
        asking.send({"number": number}, [b"a", b"bc"])
        assert answering.receive() == ({"number": number}, memoryview(b"abc"))
        answering.send({"answer": number})
        assert asking.receive()[0] == {"answer": number}


def test_when_the_ring_began_by_another_clock(pair: Pair) -> None:
    """Never later than it did, and earlier by no more than the fastest of the round trips."""
    ahead, delays = 3600 * 10**9, [0.05, 0.05, 0.0, 0.05, 0.05]
    asking, answering = pair.lines()

    def answer() -> None:
        for delay in delays:
            assert answering.receive()[0] == {"clock": True}
            now = time.time_ns() + ahead
            time.sleep(delay)
            answering.send({"now": now})

    began = time.time() - 1000
    answers = threading.Thread(target=answer)
    answers.start()
    early = int(began * 1e9) + ahead - history.beginning(asking, began)
    answers.join(10)
    assert 0 <= early < 40e6


def test_a_changed_bit_is_noticed(pair: Pair) -> None:
    asking, answering = pair.lines()
    pair.change = lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:]
    asking.send({"number": 1}, [bytes(100)])
    with pytest.raises(NetworkError, match="changed on its way"):
        answering.receive()


def test_a_repeated_message_is_noticed(pair: Pair) -> None:
    asking, answering = pair.lines()
    pair.change = lambda data: data + data
    asking.send({"number": 1})
    assert answering.receive()[0] == {"number": 1}
    with pytest.raises(NetworkError, match="changed on its way"):
        answering.receive()


def test_an_answer_is_not_taken_for_a_question(pair: Pair) -> None:
    """Who sends back what it was sent has not the key."""

    def reflect() -> None:
        pair.server.sendall(pair.server.recv(64))
        pair.server.sendall(pair.server.recv(64))

    mirror = threading.Thread(target=reflect)
    mirror.start()
    with pytest.raises(NetworkError):
        Line(pair.client, KEY, asks=True)
    mirror.join(5)
