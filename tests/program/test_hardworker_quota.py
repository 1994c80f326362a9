"""What one sensor may take of what all share: ring and connections. Nobody can starve the others."""

import mmap
import random
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.program.bench import Bench, Sensor

from midstream import packet
from midstream.ebpf import libbpf, records
from midstream.packet import Flags

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
RECORD = records.RECORD.itemsize
RING, OPEN = 64 << 10, 3
QUOTA = (
    2 * 86 * (RECORD + 64)
)  # so that records for a byte fill it exactly, if OPEN connections were opened before
LARGEST = RECORD + 1472  # bytes that the largest record takes of a quota


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(Bench(ring_size=RING, ring_quota=QUOTA, open_quota=OPEN)) as bench:
        yield bench


def opened(bench: Bench, sensor: int) -> Sensor:
    connected = Sensor(bench, sensor=sensor)
    connected.open()
    connected.establish()
    return connected


def flood(sensor: Sensor, position: int = 0, size: int = 1024) -> int:
    """Send data until none is stored; how far the stream got."""
    while sensor.bench.run(sensor.frame(ACK, position, bytes(size)))[0] == 3:
        position += size
    return position


@pytest.mark.parametrize("size", [1, 64, 65, 512, 1024, 1460])
def test_a_flood_takes_no_more_than_its_share(bench: Bench, size: int) -> None:
    one, other = opened(bench, 0), opened(bench, 1)
    end = flood(one, size=size)
    stored = bench.ring.take()
    taken = sum(RECORD + (record.room or 0) for record in stored)
    assert QUOTA - 2 * LARGEST < taken <= QUOTA
    assert b"".join(record.payload for record in stored) == bytes(end)
    other.store(0, b"the other")


def test_the_others_go_on(bench: Bench) -> None:
    """While one has its share, whatever else of it needs room is refused and nothing changes."""
    one, second, third, other = (opened(bench, sensor) for sensor in (0, 0, 0, 1))
    end = flood(one, size=1)
    new = Sensor(bench, sensor=0)
    for sensor, flags, position, payload in (
        (one, ACK, end, b"x"),
        (one, ACK, end + 10, b"behind a hole"),
        (one, ACK | FIN, end, b""),
        (one, RST, end, b""),
        (second, ACK, 0, bytes(1460)),
        (second, ACK | FIN, 0, b"last"),
        (third, RST, 0, b""),
    ):
        before = sensor.state
        bench.expect_outcome(sensor.frame(flags, position, payload), "quota_full")
        assert sensor.state == before
    bench.expect_outcome(new.frame(SYN, -1), "quota_full")
    assert bench.connection(0, new.port) is None
    for flags, position, payload, outcome in (
        (ACK, 0, b"x", "duplicate"),
        (SYN, -1, b"", "duplicate"),
        (SYN, 5, b"", "syn_ignored"),
        (RST, end + 1, b"", "reset_ignored"),
        (ACK, end, b"", "pure_ack"),
    ):
        bench.expect_outcome(one.frame(flags, position, payload), outcome)

    for position in range(0, 8 * 1024, 1024):
        bench.expect_outcome(other.frame(ACK, position, bytes(1024)), "stored", sensor=1)
    bench.expect_outcome(Sensor(bench, sensor=2).frame(SYN, -1), "opened", sensor=2)

    bench.ring.take()
    one.store(end, b"more")
    third.expect(third.frame(RST, 0), "reset", third.record(0, b"", records.RESET))
    new.open()
    second.expect(second.frame(RST, 0), "reset", second.record(0, b"", records.RESET))


@pytest.mark.slow
def test_the_share_comes_back_as_the_reader_reads(bench: Bench) -> None:
    """In order, and however the reads are cut: in the end every byte of a flood arrives."""
    one, other = opened(bench, 0), opened(bench, 1)
    numbers = random.Random(1)
    end, read, other_end, refused = 0, 0, 0, 0
    for _ in range(3000):
        size = numbers.choice([1, 64, 300, 1024, 1460])
        verdict, _ = bench.run(one.frame(ACK, end, bytes(size)))
        end += size if verdict == 3 else 0
        refused += verdict != 3
        bench.expect_outcome(other.frame(ACK, other_end, b"steady"), "stored", sensor=1)
        other_end += 6
        if numbers.random() < 0.7:
            for record in bench.ring.take(numbers.randrange(7)):
                if record.sensor == 0:
                    assert record.offset == read
                    read += len(record.payload)
    assert refused > 30
    read += sum(len(record.payload) for record in bench.ring.take() if record.sensor == 0)
    assert read == end > 500_000
    assert flood(one, end) > end


def test_reading_half_gives_half_back(bench: Bench) -> None:
    one = opened(bench, 0)
    bench.ring.take()
    end = flood(one)
    whole = end // 1024
    bench.ring.take(whole - 1)
    again = flood(one, end)
    assert whole // 2 - 1 <= (again - end) // 1024 < whole


def test_corrupt_data_takes_a_share_for_a_while(bench: Bench) -> None:
    """A record that is discarded lay in the ring all the same, until the reader passes over it."""
    one, other = opened(bench, 0), opened(bench, 1)
    frame = packet.corrupt(one.frame(ACK, 0, bytes(1024)), "tcp")
    outcomes = [name for _ in range(40) for _, name in sent(bench, frame)]
    assert outcomes[0] == "bad_checksum" and outcomes[-1] == "quota_full"
    assert outcomes.count("bad_checksum") * (RECORD + 1024) <= QUOTA
    other.store(0, b"the other")
    assert flood(one) > 0


def sent(bench: Bench, frame: bytes) -> list[tuple[int, str]]:
    before = bench.counters()
    bench.run(frame)
    return list(bench.counters() - before)


def test_a_small_quota_stops_nobody() -> None:
    """Less than a record: then a sensor has one or two records at a time."""
    with closing(Bench(ring_size=RING, ring_quota=1, open_quota=1)) as bench:
        sensor, other = opened(bench, 0), opened(bench, 1)
        for position in range(0, 5 * 1460, 1460):
            sensor.store(position, bytes(1460))
        end = flood(sensor, 5 * 1460)
        assert 1 <= (end - 5 * 1460) // 1024 <= 2
        bench.expect_outcome(other.frame(ACK, 0, b"x"), "stored", sensor=1)


def test_a_full_ring_is_no_full_quota() -> None:
    """Who is refused because of all others together is told so, and its share is as it was."""
    with closing(Bench(ring_size=mmap.PAGESIZE, ring_quota=mmap.PAGESIZE)) as bench:
        one, two, three = (opened(bench, sensor) for sensor in range(3))
        ends = [flood(sensor, size=400) for sensor in (one, two)]
        before = bench.share(2)
        for flags, payload in 50 * [(ACK, bytes(500)), (ACK | FIN, bytes(512))]:
            bench.expect_outcome(three.frame(flags, 0, payload), "ring_full", sensor=2)
            assert bench.share(2) == before
        assert bench.ring.take(5)
        bench.expect_outcome(three.frame(ACK, 0, bytes(500)), "stored", sensor=2)
        assert bench.ring.take()[-1].payload == bytes(500)
        one.store(ends[0], bytes(400))


def test_a_flood_of_syns(bench: Bench) -> None:
    """Each sensor has connections of its own; who has all of his gets others when they end."""
    ours = [opened(bench, 0) for _ in range(OPEN)]
    late = Sensor(bench)
    for _ in range(100):
        late.expect(late.frame(SYN, -1), "quota_full")
    assert bench.connection(0, late.port) is None
    for _ in range(OPEN):
        opened(bench, 1)
    ours[0].expect(ours[0].frame(SYN, -1), "duplicate")

    ours[0].expect(ours[0].frame(ACK | FIN, 0), "stored", ours[0].record(0, b"", records.FIN))
    late.open()
    late.establish()
    Sensor(bench).expect(Sensor(bench).frame(SYN, -1), "quota_full")
    ours[1].expect(ours[1].frame(RST, 0), "reset", ours[1].record(0, b"", records.RESET))
    opened(bench, 0)
    assert [int(bench.share(sensor)["open"]) for sensor in range(3)] == [OPEN, OPEN, 0]


def test_what_is_refused_takes_no_connection(bench: Bench) -> None:
    """A SYN that fails on the way is not counted as open, nor one of a stranger."""
    syn = Sensor(bench).frame(SYN, -1)
    for frame in (packet.corrupt(syn, "ip"), packet.corrupt(syn, "tcp"), syn[:6] + bytes(6) + syn[12:]):
        bench.run(frame)
    assert bench.share(0)["open"] == 0
    with closing(Bench(connections=1, ring_size=mmap.PAGESIZE)) as full:
        opened(full, 0)
        other = Sensor(full, sensor=1)
        other.expect(other.frame(SYN, -1), "table_full")
        assert [int(full.share(sensor)["open"]) for sensor in range(2)] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [6_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_is_left_of_connections(count: int) -> None:
    """Opened and closed in every way: no entry stays, and what remembers the finished ones is bounded."""
    with closing(Bench(ring_size=1 << 20, connections=16, open_quota=4)) as bench:
        finished = bench.program.map_fd("finished")
        numbers = random.Random(5)
        for number in range(count):
            sensor = Sensor(bench, sensor=number % 3, isn=numbers.randrange(2**32))
            frames = [sensor.frame(SYN, -1), sensor.frame(ACK, 0), sensor.frame(ACK, 0, b"some data")]
            if numbers.random() < 0.3:
                frames.append(sensor.frame(ACK, 20, b"behind a hole"))
                frames.append(sensor.frame(RST, 9))
            else:
                frames.append(sensor.frame(ACK | FIN, 9, b"last" * numbers.randrange(2)))
            assert {bench.run(frame)[0] for frame in frames} == {3}
            if number % 100 == 0:
                bench.ring.take()
        assert bench.open_connections() == 0
        assert [int(bench.share(sensor)["open"]) for sensor in range(3)] == [0, 0, 0]
        bench.ring.take()
        most = libbpf.map_info(finished).max_entries
        assert 0 < sum(1 for _ in libbpf.keys(finished, 8)) <= most == 4096
        assert bench.last_number() == count
        for sensor_number in range(12):
            opened(bench, sensor_number % 3)
