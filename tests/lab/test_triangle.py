"""Sensors that are not ours: any TCP client, whatever its options, and every byte once at both ends."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, cycle, takewhile
from pathlib import Path

import pytest
from tests.lab.triangle import (
    HARDWORKER,
    PORT,
    SENSOR,
    TOS,
    collect,
    command,
    counted,
    counters,
    logged,
    send,
    sending,
    stack,
    started,
    sysctl,
)

from midstream.hardworker import Hardworker
from midstream.lab import Lab

SIZE = 1000  # divides neither a segment nor a file below
LAB = {"data": {"size": SIZE}}

TEN_LINES = """
import socket, sys
sensor = socket.socket()
sensor.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 104)
sensor.connect(("10.83.0.2", 12345))
for line in sys.stdin.buffer:
    sensor.send(line)
sensor.shutdown(socket.SHUT_WR)
assert sensor.recv(1) == b""
print(sensor.getsockname()[1])
"""

TCPI_OPT_TIMESTAMPS, TCPI_OPT_SACK, TCPI_OPT_WSCALE, TCPI_OPT_ECN = 1, 2, 4, 8  # linux/tcp.h


@pytest.fixture(scope="module")
def text() -> bytes:
    """A file of lines of many lengths, 300 messages long."""
    lines = (b"%d %s\n" % (number, b"." * (number * 7 % 200)) for number in range(10_000))
    return b"".join(lines)[: 300 * SIZE]


def check(lab: Lab, application: Hardworker, data: bytes, port: int) -> None:
    """Both ends have this connection's bytes, and nothing else came."""
    assert collect(application, 1) == {(SENSOR, port): data}
    assert logged(lab.run_dir / "midstream.db", (SENSOR, port)) == data


# clients


def test_ten_lines_of_python(triangle: Lab, application: Hardworker, text: bytes) -> None:
    client = triangle.run(
        "sensor", [sys.executable, "-I", "-c", TEN_LINES], input=text, stdout=subprocess.PIPE, check=True
    )
    check(triangle, application, text, int(client.stdout))


@pytest.mark.parametrize(
    "client",
    [
        ["nc", "-N", "-T", str(TOS), "-p", "40001", HARDWORKER, str(PORT)],
        ["socat", "-t5", "-u", "STDIN", f"TCP4:{HARDWORKER}:{PORT},tos={TOS},sourceport=40002"],
    ],
    ids=["nc", "socat"],
)
def test_netcat(
    triangle: Lab, application: Hardworker, text: bytes, tmp_path: Path, client: list[str]
) -> None:
    """Run by nobody: a sensor needs no rights."""
    file = tmp_path / "data"
    file.write_bytes(text)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with file.open("rb") as stdin:
        triangle.run("sensor", [*nobody, *client], stdin=stdin, check=True, timeout=20)
    check(triangle, application, text, 40001 if client[0] == "nc" else 40002)


@pytest.mark.slow
@pytest.mark.parametrize("lab", [{"tos": 0}], indirect=True, ids=["any TOS"])
def test_a_client_that_marks_nothing(triangle: Lab, application: Hardworker, text: bytes) -> None:
    port, _ = triangle.call("sensor", send, HARDWORKER, text, tos=0)
    check(triangle, application, text, port)


# options of TCP


@contextmanager
def set_on(lab: Lab, hosts: tuple[str, ...], name: str, value: str) -> Iterator[None]:
    before = {host: sysctl(lab, host, name, value) for host in hosts}
    try:
        yield
    finally:
        for host, old in before.items():
            sysctl(lab, host, name, old)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("tcp_timestamps", TCPI_OPT_TIMESTAMPS),
        ("tcp_sack", TCPI_OPT_SACK),
        ("tcp_window_scaling", TCPI_OPT_WSCALE),
    ],
)
def test_without_an_option(triangle: Lab, application: Hardworker, name: str, bit: int) -> None:
    data = os.urandom(300 * SIZE)
    assert triangle.call("sensor", negotiated) & bit
    with set_on(triangle, ("sensor",), name, "0"):
        assert not triangle.call("sensor", negotiated) & bit
        port, _ = triangle.call("sensor", send, HARDWORKER, data)
    found = collect(application, 3)
    assert found == {(SENSOR, port): data}
    assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == data


def test_congestion_notification(triangle: Lab, application: Hardworker) -> None:
    """RFC 3168: both low bits of the marked byte are set on the way."""
    data = os.urandom(300 * SIZE)
    with set_on(triangle, ("sensor", "logger"), "tcp_ecn", "1"):
        assert triangle.call("sensor", negotiated) & TCPI_OPT_ECN
        port, _ = triangle.call("sensor", send, HARDWORKER, data)
    assert collect(application, 2) == {(SENSOR, port): data}
    assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == data


@pytest.mark.parametrize(
    "option",
    [
        pytest.param((socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88), id="small segments"),
        pytest.param((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), id="no delay"),
        *(
            pytest.param((socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode()), id=name)
            for name in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        ),
    ],
)
def test_with_an_option(triangle: Lab, application: Hardworker, option: tuple[int, int, int | bytes]) -> None:
    data = os.urandom(200 * SIZE)
    with sending(triangle, "sensor", data, options=[option], chunk=777) as sent:
        found = collect(application, 1)
        port, _ = sent.result()
    assert found == {(SENSOR, port): data}
    assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == data


def negotiated() -> int:
    """tcpi_options of an empty connection, before it ends."""
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.connect((HARDWORKER, PORT))
        return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]


# many bytes, many sensors


@pytest.mark.slow
def test_a_hundred_megabytes(triangle: Lab, application: Hardworker, tmp_path: Path) -> None:
    """As fast as TCP goes; the digests are each end's own."""
    before = stack(triangle, "hardworker")
    arguments = ("sensor", "--config", triangle.config, "--rate", "0", "--messages", "104858", "--json")
    with started(triangle, "sensor", tmp_path, *arguments) as sensor:
        (found,) = collect(application, 1).items()
        result = sensor.result()
    assert result.code == 0, result.err
    peer, data = found
    assert peer == (SENSOR, result.object["port"])
    assert result.object["bytes"] == len(data) == 104_858 * SIZE
    assert result.object["clean"]
    assert hashlib.sha256(data).hexdigest() == result.object["digest"]
    assert (
        hashlib.sha256(logged(triangle.run_dir / "midstream.db", peer)).hexdigest() == result.object["digest"]
    )
    assert stack(triangle, "hardworker") == before, "the hardworker's own stack took part"


def test_sizes_that_never_meet(triangle: Lab, application: Hardworker) -> None:
    """Writes of 1 to 4999 bytes, small segments, messages of 1000."""
    data = os.urandom(300 * SIZE)
    sizes = [1, 1459, 7, 4999, 64, 65, 512, 513, 1448, 999]
    ends = [*takewhile(lambda end: end < len(data), accumulate(cycle(sizes))), len(data)]
    port = triangle.call("sensor", send_pieces, data, ends)
    check(triangle, application, data, port)


def send_pieces(data: bytes, ends: list[int]) -> int:
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect((HARDWORKER, PORT))
        for start, end in zip([0, *ends], ends, strict=False):
            client.sendall(data[start:end])
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        return int(client.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("lab", [{"sensors": 16}], indirect=True, ids=["16 sensors"])
def test_sensors_at_once(triangle: Lab, application: Hardworker) -> None:
    """Sensor n makes 1 to 3 connections, in turn; every stream is whole and counted as its sensor's."""
    before = counters()
    work = {
        host: [os.urandom(SIZE * (50 + 10 * number)) for _ in range(number % 3 + 1)]
        for number, host in enumerate(triangle.sensors)
    }
    with ThreadPoolExecutor(len(work)) as pool:
        ports = {
            host: pool.submit(triangle.call, host.name, send_each, streams) for host, streams in work.items()
        }
        found = collect(application, sum(map(len, work.values())))
    expected = {
        (str(host.ip), port): data
        for host, streams in work.items()
        for port, data in zip(ports[host].result(), streams, strict=True)
    }
    assert found == expected
    for peer, data in expected.items():
        assert logged(triangle.run_dir / "midstream.db", peer) == data
    *rows, others = counted(before)
    for row, streams in zip(rows, work.values(), strict=True):
        assert row["opened"] == len(streams)
        assert row["stored"] >= sum(map(len, streams)) // 1448
        assert set(row) <= {"opened", "stored", "pure_ack", "duplicate", "out_of_order"}
    assert others == {}
    told = command(triangle, "hardworker", "status", "--config", triangle.config, "--json").object[
        "hardworker"
    ]
    assert (told["attached"], told["mode"]) == (True, "native")
    assert list(told["counters"].values()) == counters()


def send_each(streams: list[bytes]) -> list[int]:
    return [send(HARDWORKER, data, chunk=1313)[0] for data in streams]
