"""While there is no logger sensors' packets go to the stack; what it has then, it keeps afterwards."""

import ctypes
import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.program.bench import TOPOLOGY, XDP_DROP, XDP_PASS, Bench, Sensor

from midstream.ebpf import libbpf, records
from midstream.packet import Flags

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
SENSOR, HARDWORKER = str(TOPOLOGY.sensors[0].ip), str(TOPOLOGY.hardworker.ip)
CLONE_NEWNET = 0x40000000


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(Bench()) as made:
        yield made


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network of this thread's own, with a sensor's and the hardworker's address."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
            for address in (SENSOR, HARDWORKER):
                netlink.addr("add", index=1, address=address, prefixlen=32)
        yield
    finally:
        assert libc.setns(home, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(home)


def tell(bench: Bench, mode: int) -> None:
    value = np.array((mode, 1), records.CONTROL).tobytes()
    libbpf.update(bench.program.map_fd("control"), bytes(4), value)


def break_off(bench: Bench, key: bytes) -> int:
    fd = bench.program.program_fd("midstream_break_off")
    verdict, _, _ = libbpf.prog_test_run(fd, (bytes(14) + key).ljust(64, b"\0"))
    return verdict


def key(sensor: Sensor) -> bytes:
    return TOPOLOGY.sensors[sensor.sensor].ip.packed + sensor.port.to_bytes(2) + bytes(2)


@pytest.mark.parametrize("flags", [SYN, ACK, ACK | FIN, RST, RST | ACK])
def test_without_a_logger_nothing_is_sent_on(bench: Bench, flags: Flags) -> None:
    sensor = Sensor(bench)
    tell(bench, records.MODE_HANDLER)
    sensor.expect(sensor.frame(flags, -1 if flags is SYN else 0), "handled")
    if flags == ACK:
        sensor.expect(sensor.frame(ACK, 0, b"data"), "handled")
    assert bench.open_connections() == 0


@pytest.mark.parametrize("flags", [ACK, ACK | FIN, SYN, RST])
def test_an_open_connection_is_broken_off_by_its_next_packet(bench: Bench, flags: Flags) -> None:
    sensor = Sensor(bench)
    sensor.open()
    sensor.store(0, b"stored")
    tell(bench, records.MODE_HANDLER)
    frame = sensor.frame(flags, 6, b"lost" if flags == ACK else b"")
    sensor.expect(frame, "handled", sensor.record(6, b"", records.RESET))
    assert (bench.open_connections(), bench.share(0)["open"]) == (0, 0)
    sensor.expect(frame, "handled")


def test_the_mode_holds_also_beside_what_the_application_is_told(bench: Bench) -> None:
    """A program is on its interface again a moment before that is taken back."""
    sensor = Sensor(bench)
    tell(bench, records.MODE_HANDLER | records.MODE_UNLINKED)
    sensor.expect(sensor.frame(SYN, -1), "handled")
    tell(bench, records.MODE_FAST | records.MODE_UNLINKED)
    sensor.open()


def test_with_a_logger_again_a_syn_opens_as_before(bench: Bench) -> None:
    sensor = Sensor(bench)
    tell(bench, records.MODE_HANDLER)
    sensor.expect(sensor.frame(SYN, -1), "handled")
    tell(bench, records.MODE_FAST)
    sensor.open()
    sensor.store(0, b"data")


def test_what_the_stack_has_it_keeps(bench: Bench, namespace: None) -> None:
    """Acknowledgements and ends of a connection that was made while there was no logger go to the stack."""
    sensor, stranger = Sensor(bench), Sensor(bench)
    with socket.socket() as listener, socket.socket() as client:
        listener.bind((HARDWORKER, TOPOLOGY.port))
        listener.listen()
        sensor.expect(sensor.frame(ACK, 0), "bare")  # one that only listens has no connection
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((SENSOR, sensor.port))
        client.connect((HARDWORKER, TOPOLOGY.port))
        for flags in (ACK, ACK | FIN, RST):
            sensor.expect(sensor.frame(flags, 0), "local")
        sensor.expect(sensor.frame(ACK, 0, b"data"), "no_connection")
        stranger.expect(stranger.frame(ACK, 0), "bare")


def test_the_daemon_breaks_off_a_connection_that_is_silent(bench: Bench) -> None:
    sensor, other = Sensor(bench), Sensor(bench, sensor=1)
    sensor.open()
    sensor.store(0, b"data")
    other.open()
    before = bench.counters()
    assert break_off(bench, key(sensor)) == XDP_PASS
    assert bench.counters() == before
    assert bench.ring.take() == [sensor.record(4, b"", records.RESET)]
    assert (bench.connection(0, sensor.port), bench.share(0)["open"]) == (None, 0)
    other.store(0, b"goes on")
    assert break_off(bench, key(sensor)) == XDP_PASS, "it is gone already: only the reader is woken"
    assert bench.ring.take() == []


def test_a_full_ring_keeps_the_connection_until_there_is_room() -> None:
    with closing(Bench(ring_size=mmap.PAGESIZE)) as bench:
        sensor = Sensor(bench)
        sensor.open()
        for position in range(0, bench.ring.size, 1000):
            bench.run(sensor.frame(ACK, position, bytes(1000)))
        while (other := Sensor(bench)).bench.run(other.frame(SYN, -1))[0] != XDP_DROP:
            pass  # the record of an opening is the smallest: for that of an end there is no room either
        opened = bench.open_connections()
        assert break_off(bench, key(sensor)) == XDP_DROP
        assert bench.open_connections() == opened
        bench.ring.take()
        assert break_off(bench, key(sensor)) == XDP_PASS
        assert bench.open_connections() == opened - 1
