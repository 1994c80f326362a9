"""The load and the sink over loopback: what is sent is what arrives, and what is lost is told."""

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midstream.errors import LabError, NetworkError
from midstream.framing import Framing, decoder, encode
from midstream.load import SENT, Connection, Incoming, JointPlan, Load, LoadSummary, Plan, Sink
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
    with Sink(HOST, [Incoming(port, size)]) as sink, Load(plan, [Connection(HOST, port)] * 4) as load:
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
    with Sink(HOST, [Incoming(port, 1024)]) as sink, Load(plan, [Connection(HOST, port)] * 2) as load:
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
    with Sink(HOST, [Incoming(port, 64)]) as sink, socket.create_connection((HOST, port)) as sensor:
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
    with (
        Sink(HOST, [Incoming(port, 64)], joined=True) as sink,
        socket.create_connection((HOST, port)) as relay,
    ):
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
    with Sink(HOST, [Incoming(port, 1024)]), Load(Plan(seconds=1e6), [Connection(HOST, port)]) as load:
        load.start()
        time.sleep(0.2)
        load.stop()
        summary = load.result()
    assert summary.clean and 0 < summary.messages < 1000


def test_the_sink_needs_its_port(port: int, peer: socket.socket) -> None:
    with (
        pytest.raises(NetworkError, match=r"sink: 127\.0\.0\.1: Address (already )?in use"),
        Sink(HOST, [Incoming(port, 64)]),
    ):
        pass


def test_another_launcher_is_used(port: int) -> None:
    seen: list[Any] = []

    def launch(arguments: list[str], **options: Any) -> subprocess.Popen[Any]:
        seen.append(arguments[0])
        return subprocess.Popen(arguments, **options)

    with (
        Sink(HOST, [Incoming(port, 1024)], launch=launch),
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


MIXED = [
    Plan(rate=500, size=64, seconds=0.5),
    Plan(rate=30, size=102400, seconds=0.5, framing="length", varies=0.2),
    Plan(sensors=2, rate=10, size=79, seconds=0.5, framing="line"),
    Plan(rate=10, size=1 << 20, seconds=0.5),
]


def test_all_framings_at_once(tmp_path: Path) -> None:
    """Every byte of each is verified; the record tells what each message was."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((HOST, 0))) for _ in MIXED]
        ports = [probe.getsockname()[1] for probe in probes]
    plan, record = JointPlan(MIXED), tmp_path / "sent"
    most = [64, 122880, 79, 1 << 20]
    incoming = [
        Incoming(port, size, plan.framing) for port, size, plan in zip(ports, most, MIXED, strict=True)
    ]
    to = [ports[0], ports[1], ports[2], ports[2], ports[3]]
    with Sink(HOST, incoming) as sink:
        with Load(plan, [Connection(HOST, port) for port in to], record=record) as load:
            summary = run(load)
        wait(lambda: sink.received == summary.messages)
        arrived = sink.result()
    assert summary.planned == summary.messages == 280 and summary.clean
    assert summary.counts == (250, 15, 5, 5, 5)
    assert (arrived.messages, arrived.wrong) == (280, 0)
    found = {c["connection"]: (c["to"], c["port"]) for c in arrived.connections}
    assert found == {number: (to[number], port) for number, port in enumerate(summary.ports)}
    rows = np.fromfile(record, SENT)
    assert np.bincount(rows["connection"]).tolist() == list(summary.counts)
    assert all(
        rows["sequence"][rows["connection"] == number].tolist() == list(range(count))
        for number, count in enumerate(summary.counts)
    )


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("framing", ["length", "line"])
def test_python_and_c_frame_alike(port: int, peer: socket.socket, framing: Framing) -> None:
    size, received = 131, b""
    plan = Plan(rate=1000, size=size, seconds=0.01, framing=framing)
    with Load(plan, [Connection(HOST, port)]) as load:
        connection = peer.accept()[0]
        load.start()
        wait(lambda: load.sent == 10)
        messages = decoder(framing, size=size, max_size=size)
        while len(received) < 10 * size:
            received += connection.recv(1 << 16)
        connection.close()
    found = messages.feed(received)
    assert len(found) == 10 and not messages.pending
    for number, payload in enumerate(found):
        content = wire.carried(framing, payload)
        assert payload == wire.payload(framing, 0, number, int.from_bytes(content[8:16], "little"), size)
        assert int.from_bytes(content[:8], "little") == number


@pytest.mark.parametrize("framing", ["length", "line"])
@pytest.mark.parametrize("piece", [1, 7, 100, 5000])
def test_frames_come_in_any_pieces(port: int, framing: Framing, piece: int) -> None:
    payloads = [wire.payload(framing, 3, n, n, 57 + 2 * n) for n in range(20)]
    data = b"".join(encode(framing, payload, size=1, max_size=200) for payload in payloads)
    with Sink(HOST, [Incoming(port, 200, framing)]) as sink, socket.create_connection((HOST, port)) as sensor:
        sensor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), piece):
            sensor.sendall(data[start : start + piece])
            time.sleep(0.0005)
        wait(lambda: sink.received == 20)
        arrived = sink.result()
    assert (arrived.messages, arrived.wrong) == (20, 0)
    assert arrived.connections[0]["connection"] == 3


@pytest.mark.parametrize("framing", ["length", "line"])
def test_the_sink_sees_what_breaks_the_framing(port: int, framing: Framing) -> None:
    good = encode(framing, wire.payload(framing, 0, 0, 0, 41), size=1, max_size=200)
    with Sink(HOST, [Incoming(port, 200, framing)]) as sink, socket.create_connection((HOST, port)) as sensor:
        sensor.sendall(good + b"x" * 1000)
        wait(lambda: sink.received == 1)
        time.sleep(0.05)
        arrived = sink.result()
    assert arrived.messages == 1 and arrived.wrong >= 1


def test_a_damaged_line_carries_nothing() -> None:
    line = wire.payload("line", 0, 5, 6, 79)
    assert b"\n" not in line and line.startswith(b"$PMID,")
    assert wire.carried("line", line)[:16] == (5).to_bytes(8, "little") + (6).to_bytes(8, "little")
    for at in range(len(line)):
        damaged = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
        assert wire.carried("line", damaged) == b""
    assert wire.carried("line", line[:-1]) == wire.carried("line", b"") == b""
