"""The user-mode handler on the loopback network: what sensors send is handed over and relayed unchanged."""

import contextlib
import os
import random
import resource
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from tests.support.fake_ring import Segment
from tests.support.hosts import HARDWORKER, LOGGER, SENSORS, STRANGER, configure, free_port, topology
from tests.support.observed import ObservedHandler

from midstream.ebpf.records import FIN, OPEN, RESET
from midstream.errors import NetworkError
from midstream.hardworker import Hardworker

PATIENCE = 10.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Pump(threading.Thread):
    """Takes the handler's segments, as a Hardworker does, until the `with` block ends."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.handler = ObservedHandler(topology(port=port))
        self.segments: list[Segment] = []
        self.fullest = 0.0
        self._stopped = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self.join()
        self.handler.close()

    def run(self) -> None:
        while not self._stopped:
            self.handler.look()
            while segment := self.handler.next():
                self.segments.append(segment)
            self.fullest = max(self.fullest, self.handler.standing.fill)
            time.sleep(0.0005)

    def flags(self, connection: int = 1) -> list[int]:
        """The events of a connection, in order."""
        return [s.flags for s in self.segments if s.connection == connection and s.flags]

    def stream(self, connection: int = 1) -> bytes:
        """The bytes of a connection. Their offsets leave no gap."""
        data = b""
        for segment in [s for s in self.segments if s.connection == connection]:
            assert segment.offset == len(data)
            data += segment.data
        return data


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def logger(port: int) -> Iterator[socket.socket]:
    with listen(port) as listener:
        yield listener


@pytest.fixture
def pump(port: int) -> Iterator[Pump]:
    before = descriptors()
    with Pump(port) as pump:
        yield pump
    # Neither a connection nor the listener outlives the handler.
    assert descriptors() <= before


def listen(port: int, backlog: int = 128) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((LOGGER, port))
    listener.listen(backlog)
    listener.settimeout(PATIENCE)
    return listener


def connect(port: int, source: str = SENSORS[0]) -> socket.socket:
    return socket.create_connection((HARDWORKER, port), timeout=PATIENCE, source_address=(source, 0))


def accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    return connection


def receive_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(1 << 16):
        data += piece
    return bytes(data)


def send_all(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.close()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def descriptors() -> set[tuple[str, str]]:
    """This process's open descriptors and what they are of."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor that listed the others
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


def step(handler: ObservedHandler, segments: list[Segment]) -> list[Segment]:
    """Take what the handler has at hand, for a test that has to be in step with it."""
    handler.look()
    while segment := handler.next():
        segments.append(segment)
    return segments


def events(segments: list[Segment]) -> list[int]:
    return [segment.flags for segment in segments if segment.flags]


@contextlib.contextmanager
def stalled(
    handler: ObservedHandler, segments: list[Segment], sensor: socket.socket, logger: socket.socket
) -> Iterator[tuple[socket.socket, int]]:
    """Sensor and logger have both ended, but the logger takes nothing: its connection, and the bytes sent."""
    sent = 0
    logger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    wait_until(lambda: step(handler, segments))
    with accept(logger) as outer:
        outer.shutdown(socket.SHUT_WR)
        while handler.standing.fill < 0.5:
            sent += sensor.send(bytes(1 << 16))
            step(handler, segments)
            if handler.standing.fill >= 0.5:
                time.sleep(0.05)  # the kernel may still take some of it
                step(handler, segments)
        sensor.shutdown(socket.SHUT_WR)
        wait_until(lambda: step(handler, segments)[-1].flags == FIN)
        assert handler.standing.fill > 0.2
        yield outer, sent


def test_a_stream_is_handed_over_and_relayed_byte_for_byte(
    port: int, logger: socket.socket, pump: Pump
) -> None:
    data = random.Random(1).randbytes(5_000_000)
    before = time.monotonic_ns()
    with connect(port) as sensor:
        sender = threading.Thread(target=send_all, args=(sensor, data))
        sender.start()
        with accept(logger) as outer:
            assert receive_all(outer) == data
        sender.join()
        assert sensor.recv(1) == b""
        source_port = sensor.getsockname()[1]
    wait_until(lambda: FIN in pump.flags())
    assert pump.stream() == data
    assert pump.flags() == [OPEN, FIN]
    assert {(s.connection, s.sensor, s.port) for s in pump.segments} == {(1, 0, source_port)}
    times = [segment.time for segment in pump.segments]
    assert times == sorted(times)
    assert before < times[0] and times[-1] < time.monotonic_ns()


def test_packets_to_the_logger_bear_the_mark(port: int, logger: socket.socket, pump: Pump) -> None:
    def mark(fd: str) -> int:
        try:
            if not stat.S_ISSOCK(os.stat(int(fd)).st_mode):
                return 0
            with socket.socket(fileno=os.dup(int(fd))) as connection:
                to_logger = connection.getpeername() == (LOGGER, port)
                return connection.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) if to_logger else 0
        except OSError:  # not connected, or the descriptor that listed the others
            return 0

    with connect(port), accept(logger):
        assert [tos for fd in os.listdir("/proc/self/fd") if (tos := mark(fd))] == [104]


def test_each_side_may_end_first(port: int, logger: socket.socket, pump: Pump) -> None:
    with connect(port) as sensor, accept(logger) as outer:
        outer.sendall(b"welcome")
        outer.shutdown(socket.SHUT_WR)
        assert receive_all(sensor) == b"welcome"
        sensor.sendall(b"still here")
        assert outer.recv(100) == b"still here"
        sensor.shutdown(socket.SHUT_WR)
        assert receive_all(outer) == b""
    with connect(port) as sensor, accept(logger) as outer:
        sensor.sendall(b"question")
        sensor.shutdown(socket.SHUT_WR)
        assert receive_all(outer) == b"question"
        outer.sendall(b"answer")
        outer.shutdown(socket.SHUT_WR)
        assert receive_all(sensor) == b"answer"
    wait_until(lambda: FIN in pump.flags(2))
    assert pump.flags(1) == pump.flags(2) == [OPEN, FIN]


def test_replies_of_any_length_reach_the_sensor(port: int, logger: socket.socket, pump: Pump) -> None:
    replies = random.Random(2).randbytes(3_000_000)
    with connect(port) as sensor, accept(logger) as outer:
        sender = threading.Thread(target=send_all, args=(outer, replies))
        sender.start()
        sensor.sendall(b"data")
        assert receive_all(sensor) == replies
        sender.join()
        assert outer.recv(100) == b"data"
    assert pump.fullest <= 1


def test_without_a_logger_the_sensor_is_reset(port: int, pump: Pump) -> None:
    with pytest.raises(ConnectionResetError), connect(port) as sensor:  # maybe before connect returns
        sensor.recv(1)
    wait_until(lambda: RESET in pump.flags())
    assert pump.flags() == [OPEN, RESET]


def test_a_logger_that_dies_resets_the_sensor(port: int, logger: socket.socket, pump: Pump) -> None:
    with connect(port) as sensor:
        outer = accept(logger)
        sensor.sendall(b"data")
        assert outer.recv(100) == b"data"
        reset(outer)
        with pytest.raises(ConnectionResetError):
            sensor.recv(1)
    wait_until(lambda: RESET in pump.flags())
    assert (pump.flags(), pump.stream()) == ([OPEN, RESET], b"data")


def test_a_sensor_that_dies_resets_the_connection_to_the_logger(
    port: int, logger: socket.socket, pump: Pump
) -> None:
    sensor = connect(port)
    with accept(logger) as outer:
        sensor.sendall(b"data")
        assert outer.recv(100) == b"data"
        reset(sensor)
        with pytest.raises(ConnectionResetError):
            outer.recv(1)
    wait_until(lambda: RESET in pump.flags())
    assert pump.flags() == [OPEN, RESET]


def receive_until_reset(end: socket.socket) -> bytes:
    received = bytearray()
    try:
        while piece := end.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        return bytes(received)
    raise AssertionError("the stream ended as if it were complete")


def test_what_came_before_a_reset_reaches_a_slow_logger(port: int, logger: socket.socket, pump: Pump) -> None:
    logger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    data = random.Random(4).randbytes(1 << 20)
    sensor = connect(port)
    with accept(logger) as outer:
        sensor.sendall(data)
        wait_until(lambda: len(pump.stream()) == len(data))
        reset(sensor)
        wait_until(lambda: RESET in pump.flags())
        assert receive_until_reset(outer) == data
    assert not pump.handler._relays


def test_urgent_bytes_stay_in_the_stream(port: int, logger: socket.socket, pump: Pump) -> None:
    with connect(port) as sensor, accept(logger) as outer:
        for number in range(100):
            sensor.send(bytes([number]), 0 if number % 3 else socket.MSG_OOB)
        sensor.shutdown(socket.SHUT_WR)
        assert receive_all(outer) == bytes(range(100))
    wait_until(lambda: FIN in pump.flags())
    assert pump.stream() == bytes(range(100))


def test_a_stranger_is_reset_and_leaves_no_trace(port: int, logger: socket.socket, pump: Pump) -> None:
    with pytest.raises(ConnectionResetError), connect(port, STRANGER) as stranger:
        stranger.recv(1)
    logger.settimeout(0.05)
    with pytest.raises(TimeoutError):
        logger.accept()
    assert pump.segments == []


@pytest.mark.parametrize("left", [0, 1], ids=["none", "one, and none for the logger's side"])
def test_without_descriptors_a_sensor_is_reset_and_the_handler_does_not_spin(
    port: int, logger: socket.socket, left: int
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.closing(ObservedHandler(topology(port=port))) as handler, connect(port) as sensor:
        free = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, hard))
        try:
            assert handler.next() is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(ConnectionResetError):
            sensor.recv(1)
        assert not select.select([handler], [], [], 0)[0]
        with connect(port):  # it tries again, and there is room
            segment = handler.next()
            assert segment is not None and segment.flags == OPEN


def test_a_slow_logger_slows_the_sensor_and_little_is_kept(
    port: int, logger: socket.socket, pump: Pump
) -> None:
    data = random.Random(3).randbytes(1 << 20)
    sent = 0
    with connect(port) as sensor, accept(logger) as outer:
        sensor.settimeout(0.5)
        try:
            while sent < 200 << 20:  # far more than all buffers on the way
                sent += sensor.send(data[sent % len(data) :])
        except TimeoutError:
            pass
        assert sent < 100 << 20
        assert 0.9 < pump.fullest <= 1
        sensor.shutdown(socket.SHUT_WR)
        position = 0
        while piece := outer.recv(1 << 20):
            start = position % len(data)
            assert piece == (data + data)[start : start + len(piece)]
            position += len(piece)
        assert position == sent
    wait_until(lambda: FIN in pump.flags())
    assert sum(len(segment.data) for segment in pump.segments) == sent
    assert pump.handler.standing.fill == 0


def test_an_end_that_waits_for_a_slow_logger_is_told_once_and_wakes_nobody(
    port: int, logger: socket.socket
) -> None:
    segments: list[Segment] = []
    handler = ObservedHandler(topology(port=port))
    with contextlib.closing(handler), connect(port) as sensor:
        with stalled(handler, segments, sensor, logger) as (outer, sent):
            for _ in range(20):
                step(handler, segments)
            assert events(segments) == [OPEN, FIN]
            with select.epoll() as outside:
                outside.register(handler.fileno(), select.EPOLLIN)
                assert outside.poll(0.05) == []
            left = sent
            while left:
                left -= len(outer.recv(1 << 20))
                step(handler, segments)
            step(handler, segments)
            assert receive_all(outer) == b""
        assert events(segments) == [OPEN, FIN]


def test_a_stream_cut_short_by_closing_does_not_look_complete_to_the_logger(
    port: int, logger: socket.socket
) -> None:
    segments: list[Segment] = []
    handler = ObservedHandler(topology(port=port))
    with (
        contextlib.closing(handler),
        connect(port) as sensor,
        stalled(handler, segments, sensor, logger) as (outer, _),
    ):
        handler.close()
        with pytest.raises(ConnectionResetError):
            receive_all(outer)


@pytest.mark.slow
def test_an_end_is_relayed_also_while_the_logger_takes_its_time_to_accept(port: int, pump: Pump) -> None:
    with (
        listen(port, backlog=0) as logger,
        socket.create_connection((LOGGER, port)),  # fills the backlog: the next SYN is not answered
        connect(port) as sensor,
    ):
        sensor.shutdown(socket.SHUT_WR)
        wait_until(lambda: FIN in pump.flags())
        accept(logger).close()
        with accept(logger) as outer:
            assert receive_all(outer) == b""
        assert receive_all(sensor) == b""
    assert pump.flags() == [OPEN, FIN]


def test_a_logger_that_dies_after_the_end_of_the_stream_is_no_reset_of_it(
    port: int, logger: socket.socket, pump: Pump
) -> None:
    with connect(port) as sensor, accept(logger) as outer:
        sensor.sendall(b"data")
        sensor.shutdown(socket.SHUT_WR)
        assert receive_all(outer) == b"data"
        reset(outer)
        with pytest.raises(ConnectionResetError):
            sensor.recv(1)
    assert pump.flags() == [OPEN, FIN]


@pytest.mark.slow
def test_a_sensor_that_never_pauses_does_not_keep_a_read_from_ending(
    tmp_path: Path, port: int, logger: socket.socket
) -> None:
    path = configure(tmp_path, receiver="socket", port=port, size=1000)
    over = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                sensor.sendall(bytes(1 << 20))

    def receive() -> None:
        with contextlib.suppress(OSError):
            while outer.recv(1 << 20):
                pass

    threads = [threading.Thread(target=send), threading.Thread(target=receive)]
    with Hardworker(path) as hardworker, connect(port) as sensor:
        assert hardworker.wait(PATIENCE)
        hardworker.read()
        with accept(logger) as outer:
            for thread in threads:
                thread.start()
            try:
                for _ in range(50):
                    assert hardworker.wait(PATIENCE)
                    assert hardworker.read().nbytes < 16 << 20
            finally:
                over.set()
                hardworker.close()
                for thread in threads:
                    thread.join()


def test_many_sensors_at_once(tmp_path: Path, port: int, logger: socket.socket) -> None:
    size, count = 100, 500
    path = configure(tmp_path, receiver="socket", port=port, size=size)
    streams = {ip: random.Random(ip).randbytes(size * count) for ip in SENSORS}
    relayed: list[bytes] = []

    def send(ip: str) -> None:
        source = random.Random(ip)
        with connect(port, ip) as sensor:
            position = 0
            while position < size * count:
                step = source.randrange(1, 2000)
                sensor.sendall(streams[ip][position : position + step])
                position += step
            sensor.shutdown(socket.SHUT_WR)
            assert receive_all(sensor) == b"stored"

    def log() -> None:
        with accept(logger) as outer:
            relayed.append(receive_all(outer))
            outer.sendall(b"stored")

    threads = [threading.Thread(target=send, args=(ip,)) for ip in SENSORS]
    threads += [threading.Thread(target=log) for _ in SENSORS]
    messages: dict[str, list[bytes]] = {ip: [] for ip in SENSORS}
    with Hardworker(path) as hardworker:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            hardworker.wait(0.05)
            for row in hardworker.read():
                received = messages[SENSORS[row["sensor"]]]
                assert row["offset"] == len(received) * size
                received.append(row["payload"].tobytes())
        hardworker.read()
        totals = hardworker.totals
        assert hardworker.connections == 0
    for thread in threads:
        thread.join()
    assert {ip: b"".join(received) for ip, received in messages.items()} == streams
    assert sorted(relayed) == sorted(streams.values())
    assert (totals.opened, totals.finished, totals.reset, totals.skipped) == (len(SENSORS),) * 2 + (0, 0)


def test_closing_resets_sensors_that_are_not_done(port: int, logger: socket.socket) -> None:
    before = descriptors()
    with Pump(port):
        sensor = connect(port)
        outer = accept(logger)
    with sensor, outer:
        for connection in (sensor, outer):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    assert descriptors() <= before


def test_a_port_that_is_taken_is_named(port: int) -> None:
    before = descriptors()
    with Pump(port), pytest.raises(NetworkError, match=f"{HARDWORKER}:{port}: cannot listen there"):
        ObservedHandler(topology(port=port))
    assert descriptors() <= before


def test_who_is_silent(tmp_path: Path, port: int, logger: socket.socket) -> None:
    path = configure(tmp_path, receiver="socket", port=port, size=8, deadline=0.2)
    with Hardworker(path) as hardworker, connect(port) as sensor:
        hardworker.read()
        time.sleep(0.2)
        assert hardworker.silent == tuple(SENSORS), "a connection alone is no data"
        sensor.sendall(bytes(8))
        wait_until(lambda: len(hardworker.read()))
        assert hardworker.silent == tuple(SENSORS[1:])
        time.sleep(0.2)
        assert hardworker.silent == tuple(SENSORS)
