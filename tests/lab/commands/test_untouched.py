"""What is not marked passes as if midstream were not there, and the hardworker's TCP sees none of what is."""

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

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
    sending,
    stack,
    wait_until,
)

from midstream.ebpf import loader
from midstream.hardworker import Hardworker
from midstream.lab import Lab, programs

T = TypeVar("T")
Ping = Callable[[str], bool]

IPERF_PORT, UDP_PORT = 5201, 9999
IPERF_BYTES, DATAGRAMS, PINGS = 20 << 20, 200, 5


@pytest.mark.slow
def test_other_traffic_is_counted_by_the_stack_as_without(triangle: Lab, ping: Ping) -> None:
    """iperf3, UDP (also to the marked port, with the marked TOS) and pings, first attached, then not."""
    before = counters()
    attached = exchange(triangle, ping)
    assert counted(before) == [{}] * len(before)
    triangle.call("hardworker", loader.detach, "hardworker", PINS / "hardworker")
    try:
        detached = exchange(triangle, ping)
    finally:
        programs.attach(triangle)
    expected = {"Udp.InDatagrams": 2 * DATAGRAMS, "Udp.NoPorts": 0, "Icmp.InEchos": PINGS, "Icmp.InErrors": 0}
    for seen in (attached, detached):
        assert {name: seen[name] for name in expected} == expected
        assert seen["Tcp.PassiveOpens"] == 2, "iperf3's control and data connection"
        assert seen["IpExt.InOctets"] > IPERF_BYTES // 2  # iperf3's server leaves what comes last
        assert seen["Tcp.InErrs"] == 0


@pytest.mark.slow
def test_other_traffic_beside_a_stream(triangle: Lab, application: Hardworker, ping: Ping) -> None:
    before = counters()
    data = os.urandom(1024 * 1024)
    with sending(triangle, "sensor-2", data, chunk=9000) as sent:
        seen = exchange(triangle, ping)
        found = collect(application, 1)
        port, _ = sent.result()
    assert found == {("10.83.0.12", port): data}
    assert logged(triangle.run_dir / "midstream.db", ("10.83.0.12", port)) == data
    assert (seen["Tcp.PassiveOpens"], seen["Tcp.InErrs"]) == (2, 0)
    assert seen["IpExt.InOctets"] > IPERF_BYTES // 2  # iperf3's server leaves what comes last
    first, second, others = counted(before)
    assert (first, others) == ({}, {})
    assert second["opened"] == 1


def test_the_stack_sees_nothing_of_a_stream(triangle: Lab, application: Hardworker) -> None:
    """No socket on the port, and not one segment for the hardworker's TCP, in or out."""
    data = os.urandom(1024 * 1024)
    before = stack(triangle, "hardworker")
    port, _ = triangle.call("sensor", send, HARDWORKER, data)
    sockets = triangle.call("hardworker", read_sockets, "tcp")
    after = stack(triangle, "hardworker")
    assert collect(application, 1) == {(SENSOR, port): data}
    assert after == before
    assert sockets == []


def test_an_unmarked_connection_to_the_port_meets_the_stack(triangle: Lab) -> None:
    """Nobody listens on the hardworker: its own TCP refuses, and midstream counts nothing."""
    before, segments = counters(), stack(triangle, "hardworker")
    for tos in (0, 8, TOS + 4, 0xB8):
        with pytest.raises(ConnectionRefusedError):
            triangle.call("sensor", send, HARDWORKER, b"hello", tos=tos)
    assert counted(before) == [{}] * len(before)
    assert stack(triangle, "hardworker")["Tcp.OutRsts"] - segments["Tcp.OutRsts"] == 4


def test_a_marked_connection_of_a_stranger_meets_the_stack(triangle: Lab) -> None:
    """The logger is no sensor."""
    before = counters()
    with pytest.raises(ConnectionRefusedError):
        triangle.call("logger", send, HARDWORKER, b"hello")
    *rows, others = counted(before)
    assert rows == [{}] * len(rows)
    assert others == {"stranger": 1}


def test_a_server_of_the_hardworkers_own(triangle: Lab) -> None:
    """An unmarked connection to the marked port is served as if midstream were not there."""
    with child(triangle, "hardworker", answer_once):
        _, reply = triangle.call("sensor", send, HARDWORKER, b"hello", tos=0)
    assert reply == b"HELLO"


def exchange(lab: Lab, ping: Ping) -> dict[str, int]:
    """TCP, UDP and ICMP from the sensor to the hardworker; what its stack counted."""
    before = stack(lab, "hardworker")
    iperf(lab)
    with child(lab, "hardworker", receive_datagrams) as datagrams:
        lab.call("sensor", send_datagrams)
    assert datagrams.result() == 2 * DATAGRAMS
    assert [lab.call("sensor", ping, HARDWORKER) for _ in range(PINGS)] == [True] * PINGS
    after = stack(lab, "hardworker")
    return {name: after[name] - before[name] for name in before}


def iperf(lab: Lab) -> None:
    """An iperf3 run from the sensor to another port, with the marked TOS."""
    port = ["-p", str(IPERF_PORT)]
    with lab.popen("hardworker", ["iperf3", "-s", "-1", *port], stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: lab.call("hardworker", is_listening, IPERF_PORT))
            client = ["iperf3", "-c", HARDWORKER, *port, "-n", str(IPERF_BYTES), "-S", str(TOS)]
            lab.run("sensor", client, check=True, timeout=60, stdout=subprocess.DEVNULL)
            assert server.wait(10) == 0
        finally:
            server.kill()


@contextmanager
def child(lab: Lab, host: str, function: Callable[[int], T]) -> Iterator[Future[T]]:
    """`function` on a host, meanwhile; it writes to the descriptor that it gets once it is ready."""
    reader, writer = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lab.call, host, function, writer)
        os.read(reader, 1)
        yield running
    os.close(reader)
    os.close(writer)


def is_listening(port: int) -> bool:
    lines = [line.split() for family in ("tcp", "tcp6") for line in read_sockets(family)]
    return any(words[1].endswith(f":{port:04X}") and words[3] == "0A" for words in lines)


def read_sockets(family: str) -> list[str]:
    """The sockets of this host, a line each, without the heading."""
    path = Path("/proc/net", family)
    return path.read_text().splitlines()[1:] if path.exists() else []


def receive_datagrams(ready: int) -> int:
    """How many datagrams come to two ports until both have theirs, or none comes for two seconds."""
    count = 0
    with ExitStack() as stack:
        receivers = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)]
        for receiver, port in zip(receivers, (UDP_PORT, PORT), strict=True):
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            receiver.bind((HARDWORKER, port))
        os.write(ready, b".")
        while count < 2 * DATAGRAMS and (readable := select.select(receivers, [], [], 2)[0]):
            for receiver in readable:
                receiver.recv(2048)
                count += 1
    return count


def send_datagrams() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        for _ in range(DATAGRAMS):
            time.sleep(0.001)  # a veth end holds 256 frames, and UDP waits for nobody
            sender.sendto(bytes(1000), (HARDWORKER, UDP_PORT))
            sender.sendto(bytes(1000), (HARDWORKER, PORT))


def answer_once(ready: int) -> None:
    with socket.create_server((HARDWORKER, PORT)) as server:
        os.write(ready, b".")
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data.upper())
