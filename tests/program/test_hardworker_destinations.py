"""Where a connection's packets go is decided at its SYN: to one of the loggers, or to this host's stack."""

import ctypes
import mmap
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.program.bench import SEVERAL, TOPOLOGY, XDP_DROP, XDP_PASS, XDP_TX, Bench, Sensor

from midstream import packet
from midstream.ebpf import libbpf, records
from midstream.ebpf.records import HERE
from midstream.packet import Flags

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
SENSOR, HARDWORKER = str(TOPOLOGY.sensors[0].ip), str(TOPOLOGY.hardworker.ip)
CLONE_NEWNET = 0x40000000
DESTINATIONS = (0, 1, 2, HERE)
SECOND = 10**9


@pytest.fixture(scope="module")
def several() -> Iterator[Bench]:
    with closing(Bench(SEVERAL)) as made:
        yield made


@pytest.fixture
def bench(several: Bench) -> Bench:
    """With three loggers."""
    several.clear()
    return several


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


def opened(bench: Bench, destination: int) -> Sensor:
    bench.destination = destination
    sensor = Sensor(bench)
    sensor.open()
    return sensor


def break_off(bench: Bench, sensor: Sensor) -> int:
    fd = bench.program.program_fd("midstream_break_off")
    key = TOPOLOGY.sensors[sensor.sensor].ip.packed + sensor.port.to_bytes(2) + bytes(2)
    verdict, _, _ = libbpf.prog_test_run(fd, (bytes(14) + key).ljust(64, b"\0"))
    return verdict


def use_of(sensor: Sensor) -> None:
    """All that a sensor does on a connection, and what somebody else may."""
    sensor.expect(sensor.frame(SYN, -1), "duplicate")
    sensor.establish()
    sensor.store(0, b"data")
    sensor.expect(sensor.frame(ACK, 0, b"data"), "duplicate")
    sensor.expect(sensor.frame(ACK, 8, b"behind"), "out_of_order", sensor.record(8, b"behind"))
    sensor.expect(sensor.frame(ACK, 4), "pure_ack")
    sensor.expect(sensor.frame(RST, 3), "reset_ignored")
    sensor.expect(sensor.frame(ACK, 100, b"forged", ack=2**31), "bad_ack")
    sensor.expect(packet.corrupt(sensor.frame(ACK, 4, b"fill"), "tcp"), "bad_checksum")
    sensor.expect(Sensor(sensor.bench, isn=5, port=sensor.port).frame(SYN, -1), "syn_ignored")
    sensor.store(4, b"fill")


@pytest.mark.parametrize("destination", DESTINATIONS)
def test_everything_of_a_connection_goes_where_it_was_opened(bench: Bench, destination: int) -> None:
    """Also after its end, whatever is decided meanwhile. To the stack it goes unchanged."""
    sensor = opened(bench, destination)
    for other in DESTINATIONS:
        bench.destination = other
        sensor.expect(sensor.frame(ACK, 0), "pure_ack")
    use_of(sensor)
    sensor.expect(sensor.frame(ACK | FIN, 14, b"end"), "stored", sensor.record(14, b"end", records.FIN))
    sensor.expect(sensor.frame(ACK, 18), "duplicate")
    sensor.expect(sensor.frame(ACK | FIN, 14, b"end"), "duplicate")
    sensor.expect(sensor.frame(ACK, 14, b"beyond"), "beyond_fin")


@pytest.mark.parametrize("before", DESTINATIONS)
@pytest.mark.parametrize("after", DESTINATIONS)
def test_a_change_is_for_connections_that_open_then(bench: Bench, before: int, after: int) -> None:
    old = opened(bench, before)
    old.store(0, b"old")
    new = opened(bench, after)
    for position in (0, 3):
        new.store(position, b"new")
        old.store(position + 3, b"old")
    assert (old.destination, new.destination) == (before, after)
    old.expect(old.frame(RST, 6 + 3), "reset", old.record(9, b"", records.RESET))
    new.expect(new.frame(RST, 6), "reset", new.record(6, b"", records.RESET))


def test_with_one_logger_there_is_its_position_and_here() -> None:
    with closing(Bench()) as bench:
        for destination in (0, HERE):
            use_of(opened(bench, destination))
        bench.destination = 7  # the one of a const.toml that had more
        sensor = Sensor(bench)
        assert bench.run(sensor.frame(SYN, -1)) == (
            XDP_TX,
            packet.rewrite(sensor.frame(SYN, -1), TOPOLOGY),
        )


def test_a_position_that_no_logger_has_any_more(bench: Bench) -> None:
    """Its connections are refused by the first, which does not know them."""
    sensor = opened(bench, 2)
    sensor.change(destination=3)
    sensor.destination = 0
    sensor.store(0, b"data")


def test_the_destination_is_the_first_logger_at_first() -> None:
    with closing(Bench(SEVERAL)) as bench:
        sensor = Sensor(bench)
        sensor.open()
        assert (sensor.state["destination"], sensor.destination) == (0, 0)


def test_when_it_opened(bench: Bench) -> None:
    begin = time.monotonic_ns()
    sensor = opened(bench, HERE)
    opened_at = int(sensor.state["opened"])
    assert begin < opened_at < time.monotonic_ns()
    sensor.store(0, b"data")
    assert sensor.state["opened"] == opened_at


@pytest.mark.parametrize("refused", DESTINATIONS)
@pytest.mark.parametrize("now", DESTINATIONS)
def test_a_sensor_that_was_refused_and_comes_from_the_same_port(bench: Bench, refused: int, now: int) -> None:
    """Nobody has answered, so its next SYN goes where connections go now; so does what follows."""
    old = opened(bench, refused)
    began = int(old.state["opened"])
    bench.destination = now
    new = Sensor(bench, isn=old.isn + 2**30, port=old.port)
    new.number, new.destination = old.number, now
    new.expect(new.frame(SYN, -1), "syn_ignored")
    assert new.state["opened"] > began
    new.establish()
    new.store(0, b"data")


def test_a_later_syn_upon_an_established_connection_changes_nothing(bench: Bench) -> None:
    old = opened(bench, 1)
    old.establish()
    bench.destination = HERE
    old.expect(Sensor(bench, isn=old.isn + 2**30, port=old.port).frame(SYN, -1), "syn_ignored")
    assert old.state["destination"] == 1
    old.store(0, b"data")


@pytest.mark.parametrize("destination", DESTINATIONS)
def test_without_a_connection_a_packet_goes_where_they_go_now(bench: Bench, destination: int) -> None:
    bench.destination = destination
    sensor = Sensor(bench)
    for flags in (ACK, ACK | FIN, RST, RST | ACK):
        sensor.expect(sensor.frame(flags, 0), "pure_ack")
    sensor.expect(sensor.frame(ACK, 0, b"data"), "no_connection")
    assert bench.open_connections() == 0


@pytest.mark.parametrize("destination", [0, HERE])
def test_the_stack_gets_no_data_that_is_not_held(bench: Bench, namespace: None, destination: int) -> None:
    """The maps were made anew while the stack had a connection: it sees no data, and the sensor is told that
    there is no connection. All else is the stack's, so that it ends there too."""
    bench.destination = destination
    sensor, stranger = Sensor(bench), Sensor(bench)
    with socket.socket() as listener, socket.socket() as client:
        listener.bind((HARDWORKER, TOPOLOGY.port))
        listener.listen()
        sensor.expect(sensor.frame(ACK, 0), "pure_ack")  # one that only listens has no connection
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((SENSOR, sensor.port))
        client.connect((HARDWORKER, TOPOLOGY.port))
        sensor.destination = HERE
        for flags in (ACK, ACK | FIN, RST):
            sensor.expect(sensor.frame(flags, 0), "pure_ack")
        for flags in (ACK, ACK | FIN, Flags(0)):
            sensor.expect(sensor.frame(flags, 0, b"data"), "no_connection")
        sensor.expect(sensor.frame(RST, 0, b"why"), "pure_ack")
        stranger.expect(stranger.frame(ACK, 0), "pure_ack")


def test_a_connection_that_is_replaced_gives_the_stack_no_data(bench: Bench) -> None:
    """The stack may have accepted the later SYN, and this data fits there."""
    old = opened(bench, HERE)
    old.establish()
    old.store(0, b"data")
    new = Sensor(bench, isn=old.isn + 2**30, port=old.port)
    old.expect(new.frame(SYN, -1), "syn_ignored")
    old.change(seen=time.monotonic_ns() - 11 * SECOND)
    old.expect(new.frame(ACK, 0, b"new"), "replaced", old.record(4, b"", records.RESET))


# what the daemon is told


def test_ends_are_told(bench: Bench) -> None:
    finished, reset, early = (opened(bench, destination) for destination in (2, HERE, 0))
    for sensor in (finished, reset, early):
        sensor.establish()
        sensor.store(0, b"held")
    bench.run(early.frame(ACK | FIN, 8, b"last"))  # its end is known, and not reached
    assert not bench.ended()
    began = [int(sensor.state["opened"]) for sensor in (finished, reset, early)]
    bench.run(finished.frame(ACK | FIN, 4, b"more"))
    bench.run(reset.frame(RST, 4))
    bench.run(early.frame(ACK, 4, b"fill"))
    told = bench.ended()
    for end, sensor, opened_at, held, how in zip(
        told,
        (finished, reset, early),
        began,
        (8, 4, 12),
        (records.FIN, records.RESET, records.FIN),
        strict=True,
    ):
        assert end["ip"].tobytes() == TOPOLOGY.sensors[0].ip.packed
        assert (end["port"], end["sensor"]) == (sensor.port, 0)
        assert (end["number"], end["first"]) == (sensor.number, sensor.isn + 1)
        assert (end["destination"], end["opened"]) == (sensor.destination, opened_at)
        assert (end["held"], end["how"]) == (held, how)
    for sensor in (finished, reset, early):
        bench.run(sensor.frame(ACK | FIN, 4, b"more"))
    assert not bench.ended()


def test_a_daemon_that_does_not_ask_loses_the_oldest_ends(bench: Bench) -> None:
    sensors = [Sensor(bench, isn=number) for number in range(4096 + 3)]
    for sensor in sensors:
        bench.run(sensor.frame(SYN, -1))
        bench.run(sensor.frame(ACK | FIN, 0))
    last = bench.last_number()
    assert [int(end["number"]) for end in bench.ended()] == list(range(last - 4095, last + 1))
    assert not bench.ended()


# what the daemon ends


def test_the_daemon_breaks_off_a_connection_that_is_silent(bench: Bench) -> None:
    sensor, other = Sensor(bench), Sensor(bench, sensor=1)
    sensor.open()
    sensor.store(0, b"data")
    other.open()
    before = bench.counters()
    assert break_off(bench, sensor) == XDP_PASS
    assert bench.counters() == before
    assert bench.ring.take() == [sensor.record(4, b"", records.RESET)]
    assert [(end["number"], end["how"]) for end in bench.ended()] == [(sensor.number, records.RESET)]
    assert (bench.connection(0, sensor.port), bench.share(0)["open"]) == (None, 0)
    other.store(0, b"goes on")
    assert break_off(bench, sensor) == XDP_PASS, "it is gone already"
    assert (bench.ring.take(), bench.ended()) == ([], [])


def test_a_full_ring_keeps_the_connection_until_there_is_room() -> None:
    with closing(Bench(ring_size=mmap.PAGESIZE)) as bench:
        sensor = Sensor(bench)
        sensor.open()
        for position in range(0, bench.ring.size, 1000):
            bench.run(sensor.frame(ACK, position, bytes(1000)))
        while (other := Sensor(bench)).bench.run(other.frame(SYN, -1))[0] != XDP_DROP:
            pass  # the record of an opening is the smallest: for that of an end there is no room either
        opened = bench.open_connections()
        assert break_off(bench, sensor) == XDP_DROP
        assert (bench.open_connections(), bench.ended()) == (opened, [])
        bench.ring.take()
        assert break_off(bench, sensor) == XDP_PASS
        assert bench.open_connections() == opened - 1
