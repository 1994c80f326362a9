"""The hardworker's program at its limits: full ring, full table, every size, most sensors, two CPUs."""

import mmap
import random
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
from tests.program.bench import TOPOLOGY, UNMARKED, XDP_TX, Bench, Sensor
from tests.program.ring import HEAD, Record

from midstream import packet
from midstream.ebpf import libbpf, records, sizing
from midstream.network import MAX_SENSORS, Host
from midstream.packet import Flags

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
PAGE = mmap.PAGESIZE
EMPTY = HEAD + records.RECORD.itemsize  # bytes of a record without payload
FRAME_LIMIT = PAGE - 576  # bytes a frame that BPF_PROG_TEST_RUN keeps in one page, as a driver does


@pytest.fixture(scope="module")
def small_bench() -> Iterator[Bench]:
    """A ring of one page, and room for three connections."""
    with closing(Bench(ring_size=PAGE, connections=3)) as bench:
        yield bench


@pytest.fixture
def small(small_bench: Bench) -> Iterator[Bench]:
    """Empty at the start of each test."""
    yield small_bench
    small_bench.ring.take()
    for row, host in enumerate(TOPOLOGY.sensors):
        for key in list(libbpf.keys(small_bench.program.map_fd("connections"), 8)):
            port = int.from_bytes(key[4:6])
            state = small_bench.connection(row, port)
            if key[:4] == host.ip.packed and state is not None:
                sensor = Sensor(small_bench, sensor=row, isn=int(state["first"]) - 1, port=port)
                small_bench.run(sensor.frame(RST, int(state["next"])))
    small_bench.ring.take()


def fill(bench: Bench, sensor: Sensor) -> list[Record]:
    """Store data of this connection until not even a record without payload has room."""
    free = bench.ring.size - 8  # the kernel never lets the positions meet
    position, stored = 0, []
    for size in (TOPOLOGY.size, 512, 64):
        while free >= EMPTY + size:
            payload = random.Random(position).randbytes(size)
            bench.expect_outcome(sensor.frame(ACK, position, payload), "stored")
            stored.append(sensor.record(position, payload))
            free -= EMPTY + size
            position += size
    assert 0 <= free < EMPTY
    return stored


def test_full_ring(small: Bench) -> None:
    """Dropped before it is forwarded, and the state unmoved: what is sent again later is taken whole."""
    sensor, other = Sensor(small), Sensor(small)
    sensor.open()
    stored = fill(small, sensor)
    end = stored[-1].offset + len(stored[-1].payload)
    before = small.connection(0, sensor.port)

    refused: list[tuple[Flags, int, bytes]] = [
        (ACK, end, b"next"),
        (ACK, end, bytes(TOPOLOGY.size)),
        (ACK, end, bytes(TOPOLOGY.mtu - 40)),
        (ACK, end + 10, b"behind a hole"),
        (ACK | FIN, end, b"last"),
        (ACK | FIN, end, b""),
        (RST, end, b""),
    ]
    for flags, position, payload in refused:
        small.expect_outcome(sensor.frame(flags, position, payload), "ring_full")
        assert small.connection(0, sensor.port) == before
    small.expect_outcome(other.frame(SYN, -1), "ring_full")
    assert small.connection(0, other.port) is None
    # What needs no room goes on: the sensor learns what the logger has.
    for flags, position, outcome in (
        (ACK, end, "pure_ack"),
        (SYN, -1, "duplicate"),
        (SYN, 5, "syn_ignored"),
        (RST, 5, "reset_ignored"),
    ):
        small.expect_outcome(sensor.frame(flags, position), outcome)

    assert small.ring.take() == stored
    sensor.expect(sensor.frame(ACK, end, b"next"), "stored", sensor.record(end, b"next"))
    sensor.expect(sensor.frame(ACK, 0, stored[0].payload), "duplicate")
    other.open()


def test_ring_goes_round(small: Bench) -> None:
    """Many times around the page, with records across its end."""
    sensor = Sensor(small)
    sensor.open()
    position = 0
    for turn in range(200):
        payload = random.Random(turn).randbytes(1 + turn * 37 % 1460)
        sensor.expect(sensor.frame(ACK, position, payload), "stored", sensor.record(position, payload))
        position += len(payload)


def test_what_is_not_stored_takes_no_room_for_long(small: Bench) -> None:
    """A duplicate of early data, and data with a wrong checksum, reserve a record and discard it: the reader
    passes over it."""
    sensor = Sensor(small)
    sensor.open()
    sensor.expect(sensor.frame(ACK, 8, b"once"), "out_of_order", sensor.record(8, b"once"))
    for _ in range(1000):
        sensor.expect(sensor.frame(ACK, 8, b"once"), "out_of_window")
        sensor.expect(packet.corrupt(sensor.frame(ACK, 0, b"bad"), "tcp"), "bad_checksum")
    sensor.expect(sensor.frame(ACK, 0, b"in front"), "stored", sensor.record(0, b"in front"))


def test_what_was_held_before_takes_no_room(small: Bench) -> None:
    """Data in order that comes again is known without a record, so a full ring does not stop it."""
    sensor = Sensor(small)
    sensor.open()
    stored = fill(small, sensor)
    for _ in range(1000):
        small.expect_outcome(sensor.frame(ACK, 0, stored[0].payload), "duplicate")
    assert small.ring.take() == stored


def test_full_table(small: Bench) -> None:
    """One connection too many is refused until another ends; the open ones do not notice."""
    sensors = [Sensor(small, isn=isn) for isn in (10, 20, 30)]
    for sensor in sensors:
        sensor.open()
        sensor.establish()
    late = Sensor(small)
    for _ in range(3):
        late.expect(late.frame(SYN, -1), "table_full")
    late.expect(late.frame(ACK, 0, b"x"), "no_connection")
    for sensor in sensors:
        sensor.expect(sensor.frame(ACK, 0, b"y"), "stored", sensor.record(0, b"y"))
    sensors[1].expect(sensors[1].frame(ACK | FIN, 1), "stored", sensors[1].record(1, b"", records.FIN))
    late.open()
    late.expect(late.frame(ACK, 0, b"z"), "stored", late.record(0, b"z"))
    sensors[0].expect(sensors[0].frame(RST, 1), "reset", sensors[0].record(1, b"", records.RESET))
    Sensor(small).open()


@pytest.mark.parametrize(
    ("mtu", "size"),
    [
        (1500, 1),
        (1500, 64),
        (1500, 65),
        (1500, 513),
        (1500, 1460),
        (1500, 1461),
        (576, 536),
        (3498, 3458),
        (3498, 1 << 20),
    ],
)
def test_sizes(mtu: int, size: int) -> None:
    """Every length is stored whole, in the smallest record that holds it; what exceeds the MTU is refused."""
    most = mtu - 40
    lengths = {1, 2, 63, 64, 65, 511, 512, 513, 1460, size - 1, size, size + 1, most - 1, most}
    with closing(Bench(replace(TOPOLOGY, mtu=mtu, size=size))) as bench:
        sensor = Sensor(bench, isn=2**32 - 1000)
        sensor.open()
        position = 0
        for length in sorted(length for length in lengths if 1 <= length <= most):
            payload = random.Random(length).randbytes(length)
            (record,) = sensor.expect(
                sensor.frame(ACK, position, payload), "stored", sensor.record(position, payload)
            )
            rooms = [room for room in (64, 512, blocks(most)) if room >= length]
            assert record.room == (blocks(size) if length == size else rooms[0])
            if length == size:
                assert sizing.ring_room(size, mtu) == EMPTY + record.room
            position += length
        sensor.expect(sensor.frame(ACK, position, bytes(most + 1)), "oversized")
        for length in (most, 1):
            payload = bytes(length)
            assert len(sensor.frame(ACK, position, payload)) <= FRAME_LIMIT
            sensor.expect(sensor.frame(ACK, position, payload), "stored", sensor.record(position, payload))
            position += length


def test_the_last_byte_of_the_longest_segment(bench: Bench) -> None:
    """Of the longest segment just one byte is new: it is stored whole, for the reader to cut."""
    sensor = Sensor(bench)
    sensor.open()
    payload = random.Random(0).randbytes(1461)
    sensor.expect(sensor.frame(ACK, 0, payload[:1460]), "stored", sensor.record(0, payload[:1460]))
    sensor.expect(sensor.frame(ACK, 1, payload[1:]), "stored", sensor.record(1, payload[1:]))


def blocks(length: int) -> int:
    """The room that a record of a class of lengths has: whole blocks."""
    return -(-length // 64) * 64


def test_most_sensors() -> None:
    """4096 sensors, in no order: each is found under its number, and nobody between them."""
    numbers = random.Random(4096)
    ips = numbers.sample(range(0x0A000000, 0x0A000000 + 4 * MAX_SENSORS, 2), MAX_SENSORS)
    hosts = tuple(Host(IPv4Address(ip), f"06:00:{ip.to_bytes(4).hex(':')}") for ip in ips)
    some = {
        0,
        1,
        MAX_SENSORS - 1,
        ips.index(min(ips)),
        ips.index(max(ips)),
        *numbers.sample(range(MAX_SENSORS), 300),
    }
    with closing(Bench(replace(TOPOLOGY, sensors=hosts), ring_size=1 << 16)) as bench:
        syn = Sensor(bench).frame(SYN, -1)
        for number, sensor in enumerate(sorted(some), start=1):
            # Not expect(), which would read every sensor's counters each time.
            frame = Sensor(bench, sensor=sensor, port=2000).frame(SYN, -1)
            verdict, _ = bench.run(frame)
            assert (verdict, bench.ring.take()) == (3, [Record(0, b"", records.OPEN, sensor, 2000, number)])
            neighbour = frame[:26] + (ips[sensor] + 1).to_bytes(4) + frame[30:]
            assert bench.run(neighbour) == (2, neighbour)
        assert not bench.ring.take()
        counted = bench.counters()
        assert counted == {(n, "opened"): 1 for n in some} | {(MAX_SENSORS, "stranger"): len(some)}
        assert bench.run(syn)[0] == 3


@pytest.mark.parametrize("wakeup", [True, False])
def test_wakeup(wakeup: bool) -> None:
    """Who waits is woken by each record, a discarded one too; who reads at a period of his own by none."""
    with closing(Bench(wakeup=wakeup)) as bench, select.epoll() as waiting:
        sensor = Sensor(bench)
        frames: list[tuple[bytes, str]] = [
            (sensor.frame(SYN, -1), "opened"),
            (sensor.frame(ACK, 0, b"data"), "stored"),
            (sensor.frame(ACK, 10, b"data"), "out_of_order"),
            (sensor.frame(ACK, 10, b"data"), "out_of_window"),
            (packet.corrupt(sensor.frame(ACK, 4, b"data"), "ip"), "bad_checksum"),
            (sensor.frame(ACK, 1 << 21, b"data"), "out_of_window"),
            (sensor.frame(RST, 4), "reset"),
        ]
        fd = bench.program.map_fd("ring")
        waiting.register(fd, select.EPOLLIN | select.EPOLLET)
        for frame, outcome in frames:
            bench.expect_outcome(frame, outcome)
            woken = waiting.poll(5 if wakeup else 0.05)
            assert woken == ([(fd, select.EPOLLIN)] if wakeup else []), outcome
            bench.ring.take()


@pytest.mark.parametrize("ending", [True, False], ids=["finished", "open"])
def test_two_cpus(bench: Bench, ending: bool) -> None:
    """The same packets on two CPUs at once: each byte is claimed by one of them only."""
    sensor = Sensor(bench, isn=2**32 - 5000)
    sensor.open()
    data = random.Random(2).randbytes(100_000)
    cuts = [*range(0, len(data), 500), len(data)]
    segments = [
        sensor.frame(ACK | FIN if ending and end == len(data) else ACK, start, data[start:end])
        for start, end in pairwise(cuts)
    ]
    before = bench.counters()
    forwarded: list[int] = []
    errors: list[BaseException] = []
    start_together = threading.Barrier(2)

    def send(seed: int) -> None:
        try:
            start_together.wait(10)
            order = random.Random(seed)
            # Each to the end: in order, but for neighbours exchanged now and then.
            for position in range(0, len(segments), 2):
                pair = segments[position : position + 2]
                for frame in pair if order.random() < 0.7 else pair[::-1]:
                    forwarded.append(bench.run(frame)[0])  # noqa: PERF401 (another thread appends too)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    stored = bench.ring.take()
    counted = bench.counters() - before
    # What both have behind a hole at once is stored by the one, and refused to the other.
    assert forwarded.count(XDP_TX) == 2 * len(segments) - counted[0, "out_of_window"]
    assert len(forwarded) == 2 * len(segments)
    assert counted.total() == len(forwarded)
    assert counted[0, "stored"] + counted[0, "out_of_order"] == len(stored)
    times = [0] * len(data)
    for record in stored:
        assert record.payload == data[record.offset : record.offset + len(record.payload)]
        for position in range(record.offset, record.offset + len(record.payload)):
            times[position] += 1
    assert set(times) == {1}
    assert sum(bool(record.flags & records.FIN) for record in stored) == ending
    assert (bench.connection(0, sensor.port) is None) == ending
    sensor.expect(sensor.frame(ACK, 80, b"no port", port=80), UNMARKED)


def test_counters_of_a_sensor_are_its_own(bench: Bench) -> None:
    senders: list[Callable[[], None]] = []
    before = bench.counters()
    for number in (2, 0, 1):
        sensor = Sensor(bench, sensor=number)
        senders.append(sensor.open)
    for send in senders:
        send()
    assert bench.counters() - before == {(number, "opened"): 1 for number in range(3)}
