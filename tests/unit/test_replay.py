"""The replay: what the logger stored, and then the ring, without a seam; and who may ask."""

import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from midstream.replay import Line
from tests.unit.fake_ring import FakeRing, RingSource
from tests.unit.site import SIZE, Serving, Site, wait_until

from midstream.config import load
from midstream.ebpf.records import OPEN
from midstream.errors import ConfigError, NetworkError
from midstream.hardworker import Hardworker, history
from midstream.hardworker.source import Segment
from midstream.logger import Logger
from midstream.logger.admission import Admission, Client

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


# those who only take up room


def silent(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), 10) for _ in range(count)]


def test_a_client_among_many_silent_ones_gets_its_replay(site: Site) -> None:
    """With few descriptors, of which each of the silent clients wants one; and again after that."""
    port = load(site.config).logger.replay_port
    with few_descriptors(128), Serving(site.config):
        send(site, range(3))
        time.sleep(DOWN)
        for _ in range(2):
            others = silent(port, 100)
            with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
                began = time.monotonic()
                assert [found.sequence for found in islice(hardworker.replay(), 3)] == [0, 1, 2]
                assert time.monotonic() - began < 8
            for one in others:
                one.close()


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """For what is started meanwhile; this process itself keeps its limit."""
    prlimit = resource.getrlimit(resource.RLIMIT_NOFILE)
    start = subprocess.Popen

    def limited(command: list[str], **options: Any) -> Any:
        if "midstream.logger.replay" in command:
            command = ["prlimit", f"--nofile={count}:{count}", *command]
        return start(command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("midstream.logger.companion.subprocess.Popen", limited)
        yield
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == prlimit


def test_a_request_has_a_time_limit_as_a_whole() -> None:
    """However often its client says something."""
    ours, theirs = socket.socketpair()

    def trickle() -> None:
        with suppress(OSError):
            for _ in range(200):
                theirs.sendall(b"x")
                time.sleep(0.02)

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    with ours, pytest.raises(NetworkError, match="timed out"):
        Line(ours, KEY, asks=False, until=began + 0.2)
    assert time.monotonic() - began < 1
    theirs.close()
    thread.join()


class Admitting(threading.Thread):
    """An admission on loopback whose clients are known when they say a byte, and go when they say another."""

    def __init__(self) -> None:
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.most = 0
        self._now = 0
        self._admission = Admission(self.listener, self._serve)
        self._admission._most = 8

    def __enter__(self) -> "Admitting":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.join()
        self.listener.close()

    def run(self) -> None:
        with suppress(OSError):
            self._admission.run()

    def _serve(self, client: Client) -> None:
        self.most = max(self.most, len(self._admission._clients))
        with suppress(OSError):
            if client.socket.recv(1):
                client.known = True
                client.socket.sendall(b"!")
                client.socket.recv(1)


def test_strangers_give_way_and_those_who_are_known_do_not() -> None:
    with Admitting() as admitting:
        first = socket.create_connection(("127.0.0.1", admitting.port), 10)
        first.sendall(b"x")
        assert first.recv(1) == b"!"
        others = silent(admitting.port, 40)
        last = socket.create_connection(("127.0.0.1", admitting.port), 10)
        last.sendall(b"x")
        assert last.recv(1) == b"!"
        first.settimeout(0.1)
        with pytest.raises(TimeoutError):
            first.recv(1)  # it is still served
        for one in (first, last, *others):
            one.close()
    assert admitting.most <= 8


def test_the_process_that_answers_is_replaced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it was its listener that failed: it ends then, and does not stay without one."""
    monkeypatch.setattr("midstream.logger.companion.RESTART_DELAY", 0)
    with Serving(site.config) as serving:
        assert serving.logger._replay is not None
        process = serving.logger._replay._process
        first = process._child
        assert first is not None
        first.kill()
        wait_until(lambda: process._child is not first)
        send(site, range(3))
        time.sleep(DOWN)
        with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
            assert [found.sequence for found in islice(hardworker.replay(), 3)] == [0, 1, 2]
