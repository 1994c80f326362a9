"""The load and the sink over loopback: what is sent is what arrives, and what is lost is told."""

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from midstream.errors import LabError, NetworkError
from midstream.load import Connection, Load, LoadSummary, Plan, Sink
from midstream.load import load as helper
from midstream.load import message as wire
from midstream_bench.machine import guest

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        number: int = probe.getsockname()[1]
        return number


def run(load: Load) -> LoadSummary:
    load.start()
    while load.running:
        load.feed()
        time.sleep(0.02)
    return load.result()


@pytest.mark.parametrize("size", [16, 20, 24, 100, 1024, 5000])
def test_every_byte_arrives_and_is_verified(port: int, size: int) -> None:
    plan = Plan(sensors=4, rate=500, size=size, seconds=0.2)
    with Sink(HOST, port, size) as sink, Load(plan, [Connection(HOST, port)] * 4) as load:
        summary = run(load)
        assert sink.received == load.sent == 400
        arrived = sink.result()
    assert (summary.planned, summary.messages, summary.unsent, summary.lost) == (400, 400, 0, 0)
    assert summary.unacknowledged == 0
    assert summary.clean and summary.counts == (100, 100, 100, 100)
    assert (arrived.messages, arrived.wrong) == (400, 0)
    assert all(c["clean"] and c["bytes"] == 100 * size for c in arrived.connections)
    if size >= 24:
        assert sorted(c["connection"] for c in arrived.connections) == [0, 1, 2, 3]


def test_a_flood_sends_as_much_as_is_taken(port: int) -> None:
    plan = Plan(sensors=2, rate=0, seconds=0.3)
    with Sink(HOST, port, 1024) as sink, Load(plan, [Connection(HOST, port)] * 2) as load:
        summary = run(load)
        arrived = sink.result()
    assert summary.messages == arrived.messages > 1000
    assert arrived.wrong == 0 and min(summary.counts) > 0.2 * max(summary.counts)


@pytest.fixture
def peer(port: int) -> Iterator[socket.socket]:
    with socket.create_server((HOST, port)) as listener:
        listener.settimeout(5)
        yield listener


def test_python_and_c_write_the_same_messages(port: int, peer: socket.socket) -> None:
    size, received = 77, b""
    before = time.time_ns()
    plan = Plan(sensors=2, rate=1000, size=size, seconds=0.01)
    with Load(plan, [Connection(HOST, port)] * 2) as load, peer.accept()[0]:
        connection = peer.accept()[0]
        load.start()
        while not received.endswith(b"none") and len(received) < 10 * size:
            received += connection.recv(1 << 16) or b"none"
        connection.close()
    for number in range(10):
        message = received[number * size : (number + 1) * size]
        sent = int.from_bytes(message[8:16], "little")
        assert message == wire.message(1, number, sent, size)
        assert before <= sent <= time.time_ns()
        assert wire.find_connection(message) == 1
    assert wire.find_connection(bytes(size)) == -1


def test_filler_is_that_of_each_message() -> None:
    every = wire.filler(3, np.array([5, 6]), 40)
    assert every[1].tobytes() == wire.message(3, 6, 0, 40)[16:]
    assert every[0].tobytes() != every[1].tobytes()


def test_the_sink_sees_what_is_wrong(port: int) -> None:
    messages = [wire.message(7, n, 0, 64) for n in range(4)]
    damaged = bytearray(messages[2])
    damaged[63] ^= 1
    with Sink(HOST, port, 64) as sink, socket.create_connection((HOST, port)) as sensor:
        sensor.sendall(b"".join([messages[0], messages[1], bytes(damaged), messages[1], messages[3]])[:-3])
        deadline = time.monotonic() + 5
        while sink.received < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        arrived = sink.result()
    (connection,) = arrived.connections
    assert (connection["connection"], connection["messages"], connection["wrong"]) == (7, 4, 2)
    assert not connection["clean"]


def test_the_sink_takes_joined_streams_apart(port: int) -> None:
    def piece(stream: int, data: bytes | bytearray) -> bytes:
        return struct.pack("<II", stream, len(data)) + data

    def messages(number: int) -> bytes:
        return b"".join(wire.message(number, sequence, 0, 64) for sequence in range(3))

    first, second = messages(3), bytearray(messages(9))
    second[130] ^= 1  # in its third message
    sent = piece(0, first[:70]) + piece(1, second) + piece(0, first[70:]) + piece(0, b"")
    with Sink(HOST, port, 64, joined=True) as sink, socket.create_connection((HOST, port)) as relay:
        relay.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), 11):  # heads and bodies come in parts
            relay.sendall(sent[at : at + 11])
        deadline = time.monotonic() + 5
        while sink.received < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # for the end
        arrived = sink.result()
    assert arrived.messages == 6
    told = {c["connection"]: (c["messages"], c["bytes"], c["wrong"], c["clean"]) for c in arrived.connections}
    assert told == {3: (3, 192, 0, True), 9: (3, 192, 1, False)}


def test_nobody_there() -> None:
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        load = Load(Plan(seconds=1), [Connection(HOST, closed.getsockname()[1])])
        with pytest.raises(NetworkError, match=r"load: 127\.0\.0\.1: Connection refused"), load:
            pass


def test_a_lost_connection_is_an_error(port: int, peer: socket.socket) -> None:
    with Load(Plan(seconds=5), [Connection(HOST, port)]) as load:
        accepted = peer.accept()[0]
        load.start()
        reset(accepted)
        with pytest.raises(NetworkError, match=r"Connection reset|Broken pipe|closed the connection"):
            run_out(load)


@pytest.mark.slow
def test_or_is_made_again(port: int, peer: socket.socket) -> None:
    with Load(Plan(rate=200, seconds=1), [Connection(HOST, port)], reconnect=True) as load:
        first = peer.accept()[0]
        load.start()
        time.sleep(0.2)
        reset(first)
        second = peer.accept()[0]
        second.settimeout(5)
        received = b""
        while data := second.recv(1 << 16):
            received += data
        second.close()
        summary = run_out(load)
    assert (summary.lost, summary.planned) == (1, 200)
    assert summary.messages + summary.unsent == 200 and summary.unsent > 0
    assert received[:1024] == wire.message(0, 0, int.from_bytes(received[8:16], "little"), 1024)


@pytest.mark.slow  # it waits as long as the load does for such a peer
def test_a_peer_that_takes_nothing(port: int, peer: socket.socket) -> None:
    """What was due and what arrived is told: nothing is in neither figure."""
    plan = Plan(rate=200, size=1 << 16, seconds=1)
    with Load(plan, [Connection(HOST, port)]) as load, peer.accept()[0]:
        load.start()
        summary = run_out(load)
    assert not summary.clean and summary.lost == 0
    assert summary.planned == 200 == summary.messages + summary.unsent
    assert summary.unsent > 0 and summary.unacknowledged > 0


def test_it_ends_when_it_is_asked(port: int) -> None:
    with Sink(HOST, port, 1024), Load(Plan(seconds=1e6), [Connection(HOST, port)]) as load:
        load.start()
        time.sleep(0.2)
        load.stop()
        summary = load.result()
    assert summary.clean and 0 < summary.messages < 1000


def test_the_sink_needs_its_port(port: int, peer: socket.socket) -> None:
    with (
        pytest.raises(NetworkError, match=r"sink: 127\.0\.0\.1: Address (already )?in use"),
        Sink(HOST, port, 64),
    ):
        pass


def test_another_launcher_is_used(port: int) -> None:
    seen: list[Any] = []

    def launch(arguments: list[str], **options: Any) -> subprocess.Popen[Any]:
        seen.append(arguments[0])
        return subprocess.Popen(arguments, **options)

    with (
        Sink(HOST, port, 1024, launch=launch),
        Load(Plan(seconds=0.01), [Connection(HOST, port)], launch=launch) as load,
    ):
        run(load)
    assert [argument.rpartition("/")[2].partition("-")[0] for argument in seen] == ["sink", "load"]


def run_out(load: Load) -> LoadSummary:
    while load.running:
        load.feed()
        time.sleep(0.02)
    return load.result()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class TestHelpers:
    """A program that should be ready and is not is ended, whatever it does with its output."""

    @staticmethod
    def started(script: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("script", "complaint"),
        [
            ("echo warning >&2; exec sleep 60", "^warning$"),
            ("echo warning >&2; sleep 60 & wait", "^warning$"),
            ("echo one >&2; sleep 0.2; echo two >&2; exit 1", "^one\ntwo$"),
            ("printf almost >&2; exec sleep 60", "^almost$"),
            ("exec sleep 60", r"^it: not ready within 0\.5 s$"),
            ("sleep 3 & exit 3", r"^it: not ready within 0\.5 s$"),
            ("exit 3", "^it: ended without a word$"),
        ],
    )
    def test_not_ready(self, script: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(helper, "_LAST_WORDS", 0.5)
        process, before = self.started(script), time.monotonic()
        with pytest.raises(NetworkError, match=complaint):
            helper.await_ready(process, "it", 0.5)
        assert time.monotonic() - before < 5
        assert process.returncode is not None

    @pytest.mark.parametrize("said", ["ready", "ready\nand a warning"])
    def test_ready(self, said: str) -> None:
        process = self.started(f"printf '{said}\n' >&2; echo '{{}}'")
        helper.await_ready(process, "it", 5)
        assert helper.finish(process, "it", 5) == {}

    def test_one_that_does_not_end_is_ended(self) -> None:
        process = self.started("trap '' TERM; echo ready >&2; sleep 60")
        helper.await_ready(process, "it", 5)
        with pytest.raises(LabError, match=r"did not end within 0\.2 s"):
            helper.finish(process, "it", 0.2)
        assert process.returncode is not None

    @pytest.mark.slow
    def test_in_the_guest(self) -> None:
        """A receiver whose first word is another kept the guest, and its host for 240 s."""
        before = time.monotonic()
        with pytest.raises(NetworkError, match="warning"):
            guest.start(["/bin/sh", "-c", "echo warning >&2; sleep 60 & wait"])
        assert time.monotonic() - before < 10
