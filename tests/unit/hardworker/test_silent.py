"""An application learns that a sensor has fallen silent, by whatever method it reads."""

import time
from pathlib import Path

import pytest
from tests.support.hosts import SENSORS
from tests.support.reader import SIZE, Site, later, payload

from midstream.hardworker import Hardworker

DEADLINE = 0.2


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def send(site: Site, number: int = 0, *, sensor: int = 0) -> None:
    """Message `number` of the sensor's connection, which comes now."""
    site.put(1 + sensor, number * SIZE, payload(number), sensor=sensor, time=time.monotonic_ns())


def read_messages(hardworker: Hardworker) -> int:
    return len(list(hardworker.messages()))


def read_rows(hardworker: Hardworker) -> int:
    return len(hardworker.read())


@pytest.mark.parametrize("read", [read_messages, read_rows])
def test_who_is_silent(site: Site, read: object) -> None:
    assert callable(read)
    with site.hardworker(deadline=DEADLINE) as hardworker:
        site.open(*(1 + sensor for sensor in range(len(SENSORS))))
        assert hardworker.silent == ()
        time.sleep(DEADLINE)
        assert hardworker.silent == tuple(SENSORS), "a connection alone is no data"
        send(site)
        assert hardworker.silent == tuple(SENSORS[1:]), "it is in the ring, and not read"
        assert read(hardworker) == 1
        assert hardworker.silent == tuple(SENSORS[1:]), "it was read"
        hardworker.commit()
        assert hardworker.silent == tuple(SENSORS[1:])
        time.sleep(DEADLINE)
        assert hardworker.silent == tuple(SENSORS)
    with pytest.raises(Exception, match="closed"):
        assert hardworker.silent


def test_a_part_of_a_message_is_data(site: Site) -> None:
    with site.hardworker(deadline=DEADLINE) as hardworker:
        site.open(1)
        time.sleep(DEADLINE)
        site.put(1, 0, payload(0)[:5], time=time.monotonic_ns())
        assert read_messages(hardworker) == 0
        assert SENSORS[0] not in hardworker.silent


def test_a_wait_for_data_ends_when_a_sensor_falls_silent(site: Site) -> None:
    with site.hardworker(deadline=DEADLINE) as hardworker:
        site.open(1)
        assert hardworker.wait(), "a connection was opened"
        assert hardworker.read().size == 0
        send(site)
        began = time.monotonic()
        assert hardworker.wait() and len(hardworker.read()) == 1
        assert not hardworker.wait(5.0)
        assert DEADLINE / 2 < time.monotonic() - began < 2.0
        assert set(SENSORS[1:]) <= set(hardworker.silent)
        while SENSORS[0] not in hardworker.silent:
            assert not hardworker.wait(5.0)
        assert time.monotonic() - began < 2.0
        began = time.monotonic()
        assert not hardworker.wait(0.3), "each silence ends one"
        assert time.monotonic() - began >= 0.3
        with later(lambda: send(site, 1)):
            assert hardworker.wait(5.0)
        assert hardworker.silent == tuple(SENSORS[1:])
        assert len(hardworker.read()) == 1
        assert not hardworker.wait(5.0)
        assert hardworker.silent == tuple(SENSORS)


def test_without_a_deadline_nobody_is_silent(site: Site) -> None:
    with site.hardworker() as hardworker:
        time.sleep(0.01)
        assert hardworker.silent == ()
        assert not hardworker.wait(0.01)


def test_cycles_note_who_spoke(site: Site) -> None:
    with site.hardworker(deadline=DEADLINE, period=0.02) as hardworker:
        site.open(1)
        batches, number = hardworker.batches(), 0
        began = time.monotonic()
        while time.monotonic() < began + 2 * DEADLINE:
            send(site, number)
            number += 1
            next(batches)
        assert hardworker.silent == tuple(SENSORS[1:])
        while time.monotonic() < began + 4 * DEADLINE:
            next(batches)
        assert hardworker.silent == tuple(SENSORS)
