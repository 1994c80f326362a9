"""Which connections of each sensor came first is noted: by them a replay knows where the ring began."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.program.bench import Bench, Sensor
from tests.program.reference import source

from midstream import packet
from midstream.hardworker.ring import Ring
from midstream.packet import Flags

ACK, FIN, SYN = Flags.ACK, Flags.FIN, Flags.SYN


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(Bench(ring_size=1 << 16)) as bench:
        yield bench


@pytest.fixture
def ring(bench: Bench) -> Iterator[Ring]:
    with closing(source(bench)) as ring:
        yield ring


def noted(ring: Ring) -> list[tuple[int, int, int]]:
    return [(one.sensor, one.port, one.first) for one in ring.beginnings()]


def known(sensor: Sensor) -> tuple[int, int, int]:
    return sensor.sensor, sensor.port, (sensor.isn + 1) % 2**32


def test_the_first_that_are_established_are_noted(bench: Bench, ring: Ring) -> None:
    """Each sensor's own, by what came first of it: an answer alone, or data."""
    assert noted(ring) == []
    refused, one, other, third = (
        Sensor(bench, sensor=number, isn=isn) for number, isn in ((0, 5), (0, 2**32 - 1), (1, 7), (0, 9))
    )
    for each in (refused, one, other, third):
        each.open()
    assert noted(ring) == [], "a SYN alone may be refused"
    one.establish()
    other.store(0, b"data before the answer")
    third.establish()
    third.store(0, b"data")
    assert noted(ring) == [known(one), known(third), known(other)]
    assert all(abs(each.opened_ns - time.time_ns()) < 10 * 10**9 for each in ring.beginnings())


def test_they_stay_when_the_connections_have_gone(bench: Bench, ring: Ring) -> None:
    sensors = [Sensor(bench, isn=number) for number in range(20)]
    for each in sensors:
        each.open()
        each.establish()
        each.expect(each.frame(ACK | FIN, 0), "stored", each.record(0, b"", 2))
    assert noted(ring) == [known(each) for each in sensors[:7]]


def test_data_that_is_not_taken_at_first_is_noted_once(bench: Bench, ring: Ring) -> None:
    one, other = Sensor(bench), Sensor(bench)
    one.open()
    for _ in range(20):
        one.expect(packet.corrupt(one.frame(ACK, 0, bytes(100)), "tcp"), "bad_checksum")
    other.open()
    other.establish()
    one.store(0, b"data")
    assert noted(ring) == [known(one), known(other)]
