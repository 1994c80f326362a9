"""What the sensors share: none can take it from the others, and what a connection took comes back."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.lab.triangle import (
    HARDWORKER,
    PATIENCE,
    PINS,
    PORT,
    SENSOR,
    TOS,
    collect,
    counted,
    counters,
    logged,
    sending,
    sysctl,
    wait_until,
)

from midstream import network, packet
from midstream.ebpf import libbpf, pins
from midstream.ebpf.progress import progress
from midstream.hardworker import Hardworker
from midstream.lab import Lab
from midstream.lab.hosts import SWITCH

SENSOR_2 = "10.83.0.12"
SIZE = 1000
LAB = {"data": {"size": SIZE}}
SHARE = np.dtype([("older_end", "<u8"), ("younger", "<u8"), ("open", "<u4"), ("unused", "<u4")])  # tables.h


@pytest.mark.slow
def test_a_flood_leaves_room_while_nobody_reads(triangle: Lab) -> None:
    """One sensor sends as fast as it can, into a ring that nobody empties; the other's messages are held, and
    logged, all the same."""
    flood, few = os.urandom(10_000 * SIZE), os.urandom(500 * SIZE)
    before = counters()
    with sending(triangle, "sensor", flood) as flooding:
        wait_until(lambda: counted(before)[0].get("quota_full", 0) > 3)
        with sending(triangle, "sensor-2", few) as sent:
            port_2, _ = sent.result()
        assert logged(triangle.run_dir / "midstream.db", (SENSOR_2, port_2)) == few
        assert not flooding.done()
        with Hardworker(triangle.config) as application:
            found = collect(application, 2)
        port, _ = flooding.result()
    assert found == {(SENSOR, port): flood, (SENSOR_2, port_2): few}
    assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == flood
    one, other, _ = counted(before)
    assert one["quota_full"] > 3 and "ring_full" not in one
    assert not {"quota_full", "ring_full"} & set(other)


@pytest.mark.slow
def test_a_flood_does_not_delay_others_at_a_slow_application(triangle: Lab) -> None:
    """It reads every 20 ms. The other sensor's messages are in the ring as soon as they are sent."""
    flood, before = os.urandom(60_000 * SIZE), counters()
    with sending(triangle, "sensor", flood) as flooding, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(triangle.call, "sensor-2", send_timed, 500, 500.0)
        streams: dict[int, list[np.ndarray]] = {0: [], 1: []}
        delays: list[np.ndarray] = []
        with Hardworker(triangle.config) as application:
            deadline = time.monotonic() + PATIENCE
            while application.totals.finished < 2:
                assert time.monotonic() < deadline, application.totals
                batch = application.read()
                for number, pieces in streams.items():
                    pieces.append(batch["payload"][batch["sensor"] == number])
                mine = batch[batch["sensor"] == 1]
                delays.append(mine["time"].astype("i8") - mine["payload"][:, :8].copy().view("<i8").ravel())
                time.sleep(0.02)
        flooding.result()
        sent.result()
    assert np.concatenate(streams[0]).tobytes() == flood
    delay = np.concatenate(delays) / 1e6
    assert len(delay) == 500
    assert np.percentile(delay, 99) < 50, "milliseconds; a segment that was dropped takes 200"
    one, other, _ = counted(before)
    assert one.get("quota_full", 0) > 0
    assert not {"quota_full", "ring_full"} & set(other)


@pytest.mark.parametrize("lab", [{"hardworker": {"connections": 256}}], indirect=True, ids=["256 at most"])
def test_a_flood_of_syns_keeps_nobody_out(triangle: Lab) -> None:
    """Of 5000 SYNs from 4000 ports of one sensor, whose stack resets what it did not ask for."""
    data, before = os.urandom(50 * SIZE), counters()
    dropped = dropped_frames(triangle)
    with Hardworker(triangle.config) as application, ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(triangle.call, "sensor", flood_with_syns, triangle, 5000)
        ports = [triangle.call("sensor-2", connect_and_send, data) for _ in range(5)]
        assert flooding.result() == 5000
        # An opening of which a frame was lost, as on a busy machine, stands until another needs its place.
        standing = settled(lambda: progress(PINS / "hardworker").connections)
        lost = dropped_frames(triangle) - dropped
        assert standing <= lost
        own = triangle.call("sensor", connect_and_send, data)
        opened = counted(before)[0]["opened"]
        found = collect(application, opened + len(ports) - standing)
    assert {peer: stream for peer, stream in found.items() if stream} == {
        (SENSOR, own): data,
        **dict.fromkeys([(SENSOR_2, port) for port in ports], data),
    }
    one, other, _ = counted(before)
    assert other["opened"] == 5
    assert not {"quota_full", "table_full"} & set(other)
    # An opening that made room for another is gone when the reset of its SYN-ACK comes.
    assert opened / 2 < one["reset"] < opened
    assert one["reset"] + one["pure_ack"] >= opened - 1 - lost


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_connections_leave_nothing(triangle: Lab, count: int) -> None:
    """Opened and closed in a row, from 250 ports in turn, so that each port is used again."""
    used = 250
    before, old = counters(), sysctl(triangle, "sensor", "tcp_tw_reuse", "1")
    try:
        with Hardworker(triangle.config) as application, ThreadPoolExecutor(1) as pool:
            opening = pool.submit(triangle.call, "sensor", open_and_close, count, used)
            found = collect_all(application, count)
            opening.result()
            assert application.connections == 0
            application.commit()
            assert application.fill == 0
    finally:
        sysctl(triangle, "sensor", "tcp_tw_reuse", old)
    assert sorted(found) == list(range(count))
    assert progress(PINS / "hardworker").connections == 0
    assert shares()["open"].tolist() == [0, 0]
    sensor, *_ = counted(before)
    assert sensor["opened"] == count
    assert not {"reset", "table_full", "quota_full", "no_connection", "replaced"} & set(sensor)


# helpers


def send_timed(count: int, rate: float) -> int:
    """Messages that begin with CLOCK_MONOTONIC in nanoseconds; the own port."""
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(PATIENCE)
        client.connect((HARDWORKER, PORT))
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
            client.sendall(time.monotonic_ns().to_bytes(8, "little").ljust(SIZE, b"."))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        return int(client.getsockname()[1])


def dropped_frames(lab: Lab) -> int:
    """By all interfaces of the lab, which have no room for more than some hundred that wait."""
    return sum(lab.call(host, _dropped) for host in (SWITCH, "sensor", "hardworker", "logger"))


def _dropped() -> int:
    return sum(int(path.read_text()) for path in Path("/sys/class/net").glob("*/statistics/?x_dropped"))


def settled(number: Callable[[], int]) -> int:
    """Nought, or the number that has stood for longer than a SYN-ACK takes to be repeated twice."""
    since, found = time.monotonic(), number()
    while found and time.monotonic() - since < 2.5:
        time.sleep(0.01)
        if found != (now := number()):
            since, found = time.monotonic(), now
    return found


def connect_and_send(data: bytes) -> int:
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.settimeout(PATIENCE)
        client.connect((HARDWORKER, PORT))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        return int(client.getsockname()[1])


def flood_with_syns(lab: Lab, count: int) -> int:
    """Half-open connections from ports that no socket has; 20 % are asked for again."""
    topology = network.load(lab.const)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for number in range(count):
            port = 10_000 + number * 4 // 5
            raw.send(packet.craft(topology, 0, packet.Flags.SYN, seq=number * 7_919_333, peer_port=port))
    return count


def open_and_close(count: int, ports: int) -> None:
    """Connections of one message each, which bears the connection's number; 50 at a time."""
    address = (HARDWORKER, PORT)
    for first in range(0, count, 50):
        clients = []
        for number in range(first, first + 50):
            client = socket.socket()
            client.settimeout(PATIENCE)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
            client.bind(("", 40_000 + number % ports))
            while True:
                try:
                    client.connect(address)
                    break
                except OSError:  # for a second after its last use a port is in TIME_WAIT (tcp_tw_reuse)
                    time.sleep(0.1)
            client.sendall(number.to_bytes(4, "little") * (SIZE // 4))
            client.shutdown(socket.SHUT_WR)
            clients.append(client)
        for client in clients:
            assert client.recv(1) == b""
            client.close()


def collect_all(application: Hardworker, connections: int) -> list[int]:
    """The numbers in the messages of so many connections."""
    found: list[int] = []
    while True:
        numbers = application.read()["payload"].copy().view("<u4")
        assert (numbers == numbers[:, :1]).all()
        found += numbers[:, 0].tolist()
        if application.totals.finished + application.totals.reset >= connections:
            return found
        assert application.wait(PATIENCE), application.totals


def shares() -> np.ndarray:
    """What each sensor holds of what all share."""
    fd = pins.open_map(PINS / "hardworker", "shares", value_size=SHARE.itemsize)
    try:
        rows = [libbpf.lookup(fd, row.to_bytes(4, "little"), SHARE.itemsize) for row in range(2)]
    finally:
        os.close(fd)
    return np.frombuffer(b"".join(row or b"" for row in rows), SHARE)
