"""A sensor whose connection is lost: it connects anew, and what was not acknowledged comes again."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from midstream.errors import NetworkError
from midstream.network import Host, Topology, write
from midstream.sensor import Sensor, SensorSummary, numbered_messages

SIZE = 1000
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def config(folder: Path, port: int, reconnect: float) -> Path:
    logger, hardworker, sensor = (
        Host(IPv4Address(f"127.0.0.{n}"), f"02:00:00:00:00:{n:02x}") for n in (1, 2, 11)
    )
    topology = Topology((sensor,), hardworker, logger, tos=104, port=port, mtu=1500, size=SIZE)
    write(folder / "const.toml", topology, "a test")
    path = folder / "config.toml"
    path.write_text(f'[sensor]\ntarget = "logger"\nreconnect = {reconnect}\n')
    return path


class Peer(threading.Thread):
    """Accepts connections one after another, and ends each but the last its own way after so many bytes."""

    def __init__(self, listener: socket.socket, ends: list[str], size: int) -> None:
        super().__init__()
        self._listener, self._ends, self._size = listener, ends, size
        self.streams: list[bytes] = []
        self.start()

    def run(self) -> None:
        # On one processor: from two, a reset can overtake the acknowledgement before it, and what that
        # acknowledged comes again.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        for how in self._ends:
            connection, _ = self._listener.accept()
            stream, end = b"", how
            with connection:
                while data := connection.recv(65536):
                    stream += data
                    if len(stream) >= self._size and end == "reset":
                        # An acknowledgement that is held back would go with the connection (tcp(7)).
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                        break
                    if len(stream) >= self._size and end == "shutdown":
                        connection.shutdown(socket.SHUT_WR)
                        end = ""
            self.streams.append(stream)

    def numbers(self) -> list[list[int]]:
        """The numbers of the whole messages of each connection."""
        self.join(20)
        assert not self.is_alive()
        return [
            [struct.unpack_from("<Q", stream, start)[0] for start in range(0, len(stream) - SIZE + 1, SIZE)]
            for stream in self.streams
        ]


def send_often(sensor: Sensor) -> None:
    for _ in range(100):
        sensor.send(bytes(SIZE))


def sent(path: Path, count: int, rate: float = 2000) -> SensorSummary:
    with Sensor(path) as sensor:
        return sensor.run(numbered_messages(SIZE, count), rate=rate)


def test_after_a_reset_nothing_is_missing(tmp_path: Path, listener: socket.socket) -> None:
    """The peer reads all before: what only its kernel has acknowledged is lost with a reset."""
    peer = Peer(listener, ["reset", "reset", ""], 100 * SIZE)
    messages = list(numbered_messages(SIZE, 300))
    with Sensor(config(tmp_path, listener.getsockname()[1], 5.0)) as sensor:
        for lives in range(3):
            for message in messages[lives * 100 : lives * 100 + 100]:
                sensor.send(message)
            while len(peer.streams) < min(lives + 1, 2):
                time.sleep(0.001)
    summary = sensor.summary
    first, second, third = peer.numbers()
    assert first + second + third == list(range(300))
    assert (summary.messages, summary.reconnects, summary.repeated, summary.clean) == (300, 2, 0, True)


def test_a_peer_that_ends_its_side_gets_everything_once(tmp_path: Path, listener: socket.socket) -> None:
    peer = Peer(listener, ["shutdown", ""], 100 * SIZE)
    summary = sent(config(tmp_path, listener.getsockname()[1], 5.0), 500)
    first, second = peer.numbers()
    assert first + second == list(range(500))
    assert (summary.reconnects, summary.repeated, summary.clean) == (1, 0, True)


def test_nobody_is_there_any_more(tmp_path: Path, listener: socket.socket) -> None:
    path = config(tmp_path, listener.getsockname()[1], 0.2)
    peer = Peer(listener, ["reset"], SIZE)
    with Sensor(path) as sensor:
        sensor.send(bytes(SIZE))
        peer.join(10)
        listener.close()
        with pytest.raises(NetworkError, match=r"and no other was to be had for 0\.2 s"):
            send_often(sensor)


def test_without_the_setting_a_lost_connection_is_the_end(tmp_path: Path, listener: socket.socket) -> None:
    peer = Peer(listener, ["reset"], SIZE)
    with Sensor(config(tmp_path, listener.getsockname()[1], 0.0)) as sensor:
        sensor.send(bytes(SIZE))
        peer.join(10)
        with pytest.raises(NetworkError, match=r"was lost after [0-9]+ messages"):
            send_often(sensor)
