"""Connections go where the program is told when they open: to the logger, or to the hardworker's own stack.

What ebpf/control.py tells and asks is tried on a program that is attached.
"""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.lab.triangle import (
    HARDWORKER,
    PINS,
    PORT,
    SENSOR,
    TOS,
    collect,
    counted,
    counters,
    logged,
    send,
    wait_until,
)

from midstream import config, network
from midstream.ebpf import control, loader
from midstream.ebpf.records import HERE
from midstream.hardworker import Hardworker
from midstream.lab import Lab, faults
from midstream.lab.impairment import ALL, Impairment
from midstream.network import Host

SIZE = 1000
LAB = {"data": {"size": SIZE}}
FOLDER = PINS / "hardworker"

LISTEN = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
accepted, _ = listener.accept()
while data := accepted.recv(1 << 16):
    sys.stdout.buffer.write(data)
"""

PLAIN = """
import socket, sys
sensor = socket.socket()
sensor.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, int(sys.argv[3]))
sensor.connect((sys.argv[1], int(sys.argv[2])))
print(sensor.getsockname()[1], flush=True)
sensor.sendall(sys.stdin.buffer.read())
sensor.shutdown(socket.SHUT_WR)
assert sensor.recv(1) == b""
"""


def connected(lab: Lab) -> tuple[subprocess.Popen[bytes], int]:
    """A plain client on the sensor, which sends what it is given, and its port."""
    client = lab.popen(
        "sensor",
        [sys.executable, "-I", "-c", PLAIN, HARDWORKER, str(PORT), str(TOS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert client.stdout
    return client, int(client.stdout.readline())


@contextmanager
def listening(lab: Lab, path: Path) -> Iterator[Callable[[], bytes]]:
    """A plain TCP server on the hardworker. Gives what it has read of one connection, once that has ended."""
    with path.open("wb") as output:
        process = lab.popen(
            "hardworker", [sys.executable, "-I", "-c", LISTEN, HARDWORKER, str(PORT)], stdout=output
        )
    try:
        wait_until(lambda: path.read_bytes().startswith(b"listening\n"))

        def read() -> bytes:
            assert process.wait(30) == 0
            return path.read_bytes().removeprefix(b"listening\n")

        yield read
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def to_the_logger(triangle: Lab) -> Iterator[None]:
    """At first, and again after each test."""
    assert control.read_destination(FOLDER) == 0
    control.ended(FOLDER)
    yield
    control.set_destination(FOLDER, 0)


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_the_stack_takes_what_the_ring_has(
    triangle: Lab, application: Hardworker, tmp_path: Path, loss: float
) -> None:
    data = random.Random(1).randbytes(300 * SIZE)
    control.set_destination(FOLDER, HERE)
    before = counters()
    with listening(triangle, tmp_path / "read") as read:
        if loss:
            faults.impair(triangle, ALL, Impairment(drop=loss, duplicate=loss, reorder=loss))
        try:
            port, _ = triangle.call("sensor", send, HARDWORKER, data)
        finally:
            faults.clear(triangle)
        assert read() == data
    assert collect(application, 1) == {(SENSOR, port): data}
    sensor = counted(before)[0]
    assert sensor["opened"] == 1 and sensor["stored"] > 0
    (end,) = control.ended(FOLDER)
    assert (end.ip, end.port, end.sensor, end.reset) == (IPv4Address(SENSOR), port, 0, False)
    assert (end.held, end.destination) == (len(data), HERE)
    assert control.ended(FOLDER) == []


def test_a_change_is_for_new_connections(triangle: Lab, application: Hardworker, tmp_path: Path) -> None:
    first, port = connected(triangle)
    wait_until(lambda: [one.port for one in control.connections(FOLDER)] == [port])
    (opened,) = control.connections(FOLDER)
    assert (opened.ip, opened.sensor, opened.destination, opened.next) == (IPv4Address(SENSOR), 0, 0, 0)
    control.set_destination(FOLDER, HERE)
    assert control.read_destination(FOLDER) == HERE
    with listening(triangle, tmp_path / "read") as read:
        second, _ = triangle.call("sensor", send, HARDWORKER, b"h" * SIZE)
        assert read() == b"h" * SIZE
    first.communicate(b"l" * SIZE, timeout=30)
    assert first.returncode == 0
    assert collect(application, 2) == {(SENSOR, port): b"l" * SIZE, (SENSOR, second): b"h" * SIZE}
    assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == b"l" * SIZE
    told = {end.port: end for end in control.ended(FOLDER)}
    assert (told[port].destination, told[second].destination) == (0, HERE)
    assert (told[port].first, told[port].number) == (opened.first, opened.number)
    assert told[port].opened_ns == opened.opened_ns < told[second].opened_ns


def test_what_is_broken_off_is_told(triangle: Lab, application: Hardworker) -> None:
    client, port = connected(triangle)
    wait_until(lambda: control.connections(FOLDER))
    opened = control.connections(FOLDER)
    assert control.break_off(FOLDER, opened) == []
    assert control.connections(FOLDER) == []
    assert collect(application, 1) == {}
    (end,) = control.ended(FOLDER)
    assert (end.port, end.reset, end.held, end.first) == (port, True, 0, opened[0].first)
    _, why = client.communicate(b"anybody?" * SIZE, timeout=30)
    assert b"ConnectionResetError" in why, "what no connection is known for is answered with a reset"


def test_another_program_on_these_maps_goes_on_so(triangle: Lab) -> None:
    control.set_destination(FOLDER, HERE)
    control.tell_unlinked(FOLDER, True)
    settings = config.load(triangle.config)
    topology = network.load(settings.const_path)
    more = replace(topology, standbys=(Host(IPv4Address("10.83.0.99"), "02:00:00:00:00:99"),))
    for one in (more, topology):
        triangle.call("hardworker", attach, settings, one)
        assert control.read_destination(FOLDER) == HERE


def attach(settings: config.Config, topology: network.Topology) -> None:
    loader.attach("hardworker", settings, topology, replace=True)
