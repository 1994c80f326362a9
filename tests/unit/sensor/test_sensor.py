"""The sensor against a plain TCP server on loopback."""

import hashlib
import io
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midstream.errors import ConfigError, FramingError, NetworkError
from midstream.network import Host, Topology, write
from midstream.sensor import SENT_DTYPE, Sensor, file_messages, numbered_messages, tcp

SIZE = 32
TOS = 104


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


@pytest.fixture
def config(tmp_path: Path, listener: socket.socket) -> Path:
    return write_files(tmp_path, listener.getsockname()[1])


def write_files(folder: Path, port: int, framing: str = "fixed") -> Path:
    hosts = [Host(IPv4Address(f"127.0.0.{n}"), f"02:00:00:00:00:{n:02x}") for n in (1, 2, 11)]
    logger, hardworker, sensor = hosts
    topology = Topology((sensor,), hardworker, logger, tos=TOS, port=port, mtu=1500, size=SIZE)
    write(folder / "const.toml", topology, "a test")
    path = folder / "config.toml"
    path.write_text(f'[sensor]\ntarget = "logger"\n[data]\nframing = "{framing}"\n')
    return path


class Receiver(threading.Thread):
    """Reads one connection to its end and keeps each piece with the time it came."""

    def __init__(self, listener: socket.socket, *, reply: bytes = b"") -> None:
        super().__init__()
        self._listener = listener
        self._reply = reply
        self.stream = b""
        self.times: list[float] = []
        self.peer = ("", 0)
        self.start()

    def run(self) -> None:
        connection, self.peer = self._listener.accept()
        with connection:
            while data := connection.recv(65536):
                self.times.append(time.monotonic())
                self.stream += data
                connection.sendall(self._reply)

    def finish(self) -> bytes:
        self.join(10)
        assert not self.is_alive()
        return self.stream


def stop_after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def test_run_sends_everything_and_sums_up(config: Path, listener: socket.socket) -> None:
    receiver = Receiver(listener)
    with Sensor(config) as sensor:
        summary = sensor.run(numbered_messages(SIZE, 500), rate=0)
    stream = receiver.finish()
    assert (summary.sensor, summary.port) == receiver.peer
    assert (summary.messages, summary.bytes, summary.partial) == (500, 500 * SIZE, 0)
    assert summary.digest == hashlib.sha256(stream).hexdigest()
    assert summary.clean
    assert [struct.unpack_from("<Q", stream, start)[0] for start in range(0, len(stream), SIZE)] == [
        *range(500)
    ]


def test_the_mark_is_set_before_the_syn(
    config: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = []

    class Recorder(socket.socket):
        def connect(self, address: Any) -> None:
            options.append(self.getsockopt(socket.IPPROTO_IP, socket.IP_TOS))
            options.append(self.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super().connect(address)

    receiver = Receiver(listener)
    monkeypatch.setattr(socket, "socket", Recorder)
    with Sensor(config):
        pass
    receiver.finish()
    assert options == [TOS, 1]


def test_the_source_port_can_be_chosen_and_used_again(config: Path, listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for _ in range(2):
        receiver = Receiver(listener)
        with Sensor(config, source_port=port) as sensor:
            sensor.send(bytes(SIZE))
        receiver.finish()
        assert receiver.peer == ("127.0.0.1", port)


def test_the_turns_do_not_drift(config: Path, listener: socket.socket) -> None:
    """A slow producer (every tenth message takes five turns) delays no later turn, and the total is exact."""
    rate, count = 200.0, 100
    starts = []

    def messages() -> Iterator[bytes]:
        for number in range(count):
            starts.append(time.monotonic())
            if number % 10 == 0:
                time.sleep(5 / rate)
            yield bytes(SIZE)

    receiver = Receiver(listener)
    with Sensor(config) as sensor:
        summary = sensor.run(messages(), rate=rate)
    receiver.finish()
    turns = np.array(starts) - starts[0] - np.arange(count) / rate
    assert turns.min() > -0.002  # never early
    assert abs(turns[9::10]).max() < 0.02  # back on time within each ten
    assert summary.seconds == pytest.approx(count / rate, abs=0.03)
    assert summary.rate == pytest.approx(rate, rel=0.07)
    assert summary.late_max_us > 3 / rate * 1e6  # the waiting messages were late, and it says so


def test_a_message_is_made_at_its_turn(config: Path, listener: socket.socket) -> None:
    receiver = Receiver(listener)
    with Sensor(config) as sensor:
        started = time.time_ns()
        sensor.run(numbered_messages(SIZE, 20), rate=100)
    stream = receiver.finish()
    times = (np.frombuffer(stream, dtype="<i8").reshape(20, -1)[:, 1] - started) / 1e9
    # None is made before its turn, as those of a list would be. A process that is late makes up for it.
    assert (times - np.arange(20) / 100).min() > -0.001
    assert times[-1] - times[0] == pytest.approx(0.19, abs=0.02)


def test_stop_ends_a_slow_run_soon_and_in_order(config: Path, listener: socket.socket) -> None:
    receiver = Receiver(listener)
    started = time.monotonic()
    with Sensor(config) as sensor:
        summary = sensor.run(numbered_messages(SIZE, None), rate=0.5, stop=stop_after(0.3))
    assert time.monotonic() - started < 1
    assert summary.messages == 1
    assert summary.clean
    assert len(receiver.finish()) == SIZE


def test_the_record_holds_each_message(config: Path, listener: socket.socket, tmp_path: Path) -> None:
    receiver = Receiver(listener)
    before = time.time_ns()
    with Sensor(config, record=tmp_path / "sent") as sensor:
        sensor.run(numbered_messages(SIZE, 50, seed=3), rate=0)
    stream = receiver.finish()
    record = np.fromfile(tmp_path / "sent", SENT_DTYPE)
    assert record["sequence"].tolist() == [*range(50)]
    assert np.all(np.diff(record["time"].astype(np.int64)) >= 0)
    assert before <= record["time"][0] <= record["time"][-1] <= time.time_ns()
    digests = [
        hashlib.blake2b(stream[s : s + SIZE], digest_size=16).digest() for s in range(0, 50 * SIZE, SIZE)
    ]
    assert [entry.tobytes() for entry in record["digest"]] == digests


def test_an_unwritable_record_is_refused(config: Path, listener: socket.socket, tmp_path: Path) -> None:
    receiver = Receiver(listener)
    with pytest.raises(ConfigError, match="cannot write the record"), Sensor(config, record=tmp_path):
        pass
    assert receiver.finish() == b""


@pytest.mark.parametrize(
    ("framing", "expected"), [("length", b"\0\0\0\2ab\0\0\0\0"), ("line", b"ab\n\n"), ("fixed", None)]
)
def test_framings(tmp_path: Path, listener: socket.socket, framing: str, expected: bytes | None) -> None:
    receiver = Receiver(listener)
    with Sensor(write_files(tmp_path, listener.getsockname()[1], framing)) as sensor:
        if expected is None:
            with pytest.raises(FramingError, match="messages of 32 bytes, this one has 2"):
                sensor.send(b"ab")
            sensor.send(bytes(SIZE))
            expected = bytes(SIZE)
        else:
            sensor.send(b"ab")
            sensor.send(b"")
    assert receiver.finish() == expected
    assert sensor.summary.bytes == len(expected)
    assert sensor.summary.clean


def test_a_file_arrives_bit_for_bit(config: Path, listener: socket.socket) -> None:
    content = os.urandom(10 * SIZE + 5)
    receiver = Receiver(listener)
    with Sensor(config) as sensor:
        summary = sensor.run(file_messages(io.BytesIO(content), "fixed", SIZE), rate=0)
    assert receiver.finish() == content
    assert (summary.messages, summary.partial, summary.bytes) == (10, 5, len(content))
    assert summary.digest == hashlib.sha256(content).hexdigest()


def test_nothing_may_follow_a_partial_message(config: Path, listener: socket.socket) -> None:
    receiver = Receiver(listener)
    with Sensor(config) as sensor, pytest.raises(FramingError, match="must be the last"):
        sensor.run([b"short", bytes(SIZE)], rate=0)
    assert receiver.finish() == b"short"


def test_replies_are_discarded_and_do_not_break_the_close(config: Path, listener: socket.socket) -> None:
    receiver = Receiver(listener, reply=b"thank you")
    with Sensor(config) as sensor:
        summary = sensor.run(numbered_messages(SIZE, 20), rate=200)
    assert len(receiver.finish()) == 20 * SIZE
    assert summary.clean


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(NetworkError, match=rf"logger at 127\.0\.0\.1 port {port}: Connection refused. Start"):
        Sensor(write_files(tmp_path, port)).__enter__()


def test_a_reset_is_a_network_error_that_names_the_peer(config: Path, listener: socket.socket) -> None:
    with Sensor(config) as sensor:
        connection, _ = listener.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        with pytest.raises(NetworkError, match=r"logger at 127\.0\.0\.1 .*lost after \d+ messages.*start"):
            sensor.run(numbered_messages(SIZE, None), rate=0)
    assert not sensor.summary.clean


def test_a_peer_that_closes_is_noticed(config: Path, listener: socket.socket) -> None:
    with Sensor(config) as sensor:
        connection, _ = listener.accept()
        connection.close()
        time.sleep(0.05)
        with pytest.raises(NetworkError, match="it closed the connection"):
            sensor.send(bytes(SIZE))
        with pytest.raises(NetworkError, match="not open"):
            sensor.send(bytes(SIZE))


def test_a_peer_that_reads_nothing_makes_the_close_unclean(
    config: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "CLOSE_TIMEOUT", 0.2)
    with Sensor(config) as sensor:
        connection, _ = listener.accept()
        with connection:
            summary = sensor.run(numbered_messages(SIZE, 10), rate=0)
            assert not summary.clean
            assert summary.messages == 10


def test_a_peer_that_takes_nothing_cannot_prevent_the_stop(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "CLOSE_TIMEOUT", 0.2)
    with Sensor(write_files(tmp_path, listener.getsockname()[1], "length")) as sensor:
        connection, _ = listener.accept()
        with connection, pytest.raises(NetworkError, match="takes no data"):
            sensor.run(repeat(bytes(1 << 20)), rate=0, stop=stop_after(0.5))  # soon fills all buffers


def test_numbered_messages_repeat_with_their_seed() -> None:
    first, again, other = (list(numbered_messages(64, 5, seed)) for seed in (1, 1, 2))
    assert [message[16:] for message in first] == [message[16:] for message in again]
    assert first[0][16:] != other[0][16:]
    assert len({message[16:] for message in first}) == 5
    assert [len(message) for message in first] == [64] * 5
    assert [len(message) for message in numbered_messages(16, 2)] == [16, 16]
    with pytest.raises(ConfigError, match="size = 15"):
        numbered_messages(15, 1)


def test_file_messages() -> None:
    assert list(file_messages(io.BytesIO(b"abcdefgh"), "fixed", 3)) == [b"abc", b"def", b"gh"]
    assert list(file_messages(io.BytesIO(b"a\n\nb"), "line", 3)) == [b"a", b"", b"b"]
    assert list(file_messages(io.BytesIO(b"\0\0\0\1a\0\0\0\0"), "length", 3)) == [b"a", b""]
    with pytest.raises(FramingError, match="ends 3 bytes into a length frame"):
        list(file_messages(io.BytesIO(b"\0\0\0"), "length", 3))
    with pytest.raises(FramingError, match="longest allowed is 4"):
        list(file_messages(io.BytesIO(b"12345\n"), "line", 3, max_size=4))


def test_a_pipe_is_not_read_ahead() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        pipe.write(b"first\n")
        messages = file_messages(stream, "line", 1)
        assert next(messages) == b"first"  # would block for ever if it waited for a whole chunk
