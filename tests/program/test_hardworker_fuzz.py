"""Random and mutated packets while honest streams run: nothing breaks, and nothing else is delivered."""

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.program.bench import SEVERAL, TOPOLOGY, Bench, Sensor
from tests.program.reference import Application, Fate, Leg, Stream

from midstream.ebpf import records
from midstream.packet import Flags, Packet

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
SIZE = 32
BATCH = 50  # forged packets to each honest one
POOL = 2000  # packets with right checksums, of which others are made

OPTIONS = [
    b"",
    b"\x01" * 12,
    b"\x01\x01\x08\x0a" + bytes(8),
    b"\x08\xff\x00\x00",
    b"\x05\x0a" + bytes(10),
    bytes(40),
]


class Fuzz:
    """Makes packets. Each kind is told by what it must not lead to: to any byte in a stream of ours."""

    def __init__(self, seed: int, streams: list[Stream]) -> None:
        self._numbers = random.Random(seed)
        self._streams = streams
        self._pool: list[bytes] = []
        self._kinds: list[Callable[[], bytes]] = [
            self.noise,
            self.forged,
            self.damaged,
            self.damaged,
            self.damaged,
            self.cut,
            self.spliced,
        ]

    def packet(self) -> bytes:
        if len(self._pool) < POOL:
            self._pool.append(self.forged())
        return self._numbers.choice(self._kinds)()

    def noise(self) -> bytes:
        """Any bytes, behind addresses that let some of them in."""
        numbers = self._numbers
        frame = numbers.choice(self._pool)
        kept = numbers.choice([0, 12, 14, 15, 24, 34, 38, 46])
        return frame[:kept] + numbers.randbytes(numbers.choice([60, 100, numbers.randrange(14, 1600)]))

    def forged(self) -> bytes:
        """Sound, with right checksums, of somebody who does not see what the logger sends."""
        numbers = self._numbers
        stream = numbers.choice(self._streams)
        flags = Flags(numbers.choice([ACK, ACK, ACK | FIN, SYN, RST, RST | ACK, numbers.randrange(256)]))
        near = numbers.choice([0, 0, 1, -1, SIZE, -SIZE, 1 << 20, 1 << 24, -(1 << 24), 1 << 31])
        start = numbers.choice([0, stream.next + near, numbers.randrange(2**32), numbers.randrange(-9, 9)])
        payload = numbers.randbytes(
            numbers.choice([0, 0, 1, SIZE, 64, 65, 512, 1460, numbers.randrange(1460)])
        )
        if RST in flags:  # where the stream has been and will not be again: else it would be the sensor's own
            start = stream.next - 1 - numbers.randrange(2**31)
        port = stream.sensor.port if numbers.random() < 0.8 else numbers.randrange(65536)
        return stream.frame(
            flags,
            start,
            payload,
            ack=stream.ack + (1 << 20) + 1 + numbers.randrange(2**32 - (2 << 20) - 1),
            peer_port=port,
            tos=numbers.choice([104, 104, 104, 105, 106, 107]),
            tcp_options=numbers.choice(OPTIONS),
            ip_options=numbers.choice([b"", b"", b"", b"", b"\x01" * 8]),
        )

    def damaged(self) -> bytes:
        """Bits of a sensor's packet have changed on the way, and no checksum was made anew."""
        numbers = self._numbers
        stream = numbers.choice(self._streams)
        start = numbers.choice([stream.next, stream.next, max(0, stream.next - 64), stream.next + SIZE])
        frame = bytearray(stream.segment(start, SIZE))
        frame[numbers.randrange(14, len(frame))] ^= 1 << numbers.randrange(8)
        return bytes(frame)

    def cut(self) -> bytes:
        frame = self._numbers.choice(self._pool)
        return frame[: self._numbers.randrange(14, len(frame) + 1)]

    def spliced(self) -> bytes:
        """The head of one and the tail of another."""
        numbers = self._numbers
        one, other = numbers.choices(self._pool, k=2)
        place = numbers.randrange(14, 60)
        return one[:place] + other[place:]


@pytest.fixture(scope="module")
def fuzz_bench() -> Iterator[Bench]:
    topology = replace(SEVERAL, size=SIZE)
    with closing(
        Bench(topology, ring_size=1 << 18, connections=256, open_quota=64, ring_quota=1 << 17)
    ) as bench:
        yield bench


def run(bench: Bench, folder: Path, seed: int, count: int) -> None:
    """So many packets, most of them nobody's; the honest streams arrive whole all the same."""
    bench.clear()
    numbers = random.Random(seed)
    wire = Leg(bench, strangers=True)
    application = Application(bench, folder)
    length = SIZE * (2 * count // BATCH + 100)
    streams = [
        Stream(
            Sensor(bench, sensor=number, isn=2**32 - 9000),
            numbers.randbytes(length),
            numbers.randrange(2**32),
            destination,
        )
        for number, destination in enumerate((0, records.HERE, 2))
    ]
    by_source = {(stream.sensor.sensor, stream.sensor.port): stream for stream in streams}
    before, most = bench.counters(), bench.last_number()
    try:
        for stream in streams:
            stream.sensor.number = bench.last_number() + 1
            bench.destination = stream.destination
            assert wire.send(stream.frame(SYN, -1, ack=0)) is Fate.SENT_ON
            wire.add(stream)
            assert wire.send(stream.frame(ACK, 0)) is Fate.SENT_ON
        fuzz = Fuzz(seed, streams)
        for number in range(count):
            if number % BATCH == 0:
                stream = numbers.choice(streams)
                if numbers.random() < 0.3:
                    wire.send(stream.segment(stream.next + SIZE, SIZE), stream)
                frame = stream.segment(stream.next, SIZE)
                if wire.send(frame, stream) is not Fate.SENT_ON:  # the ring may be full
                    application.read()
                    application.commit()
                    assert wire.send(frame, stream) is Fate.SENT_ON
                if number % (BATCH * 20) == 0:
                    application.read()
                    application.commit()
                continue
            frame = fuzz.packet()
            if wire.send(frame) is Fate.SENT_ON and (hit := owner(frame, by_source)):
                hit.leave(frame, intact=False)
        application.read()
        for stream in streams:
            assert stream.open and stream.next > length // 8
            assert application.received(stream.number) == stream.data[: stream.next]
        counted = {name for _, name in bench.counters() - before}
        if count >= 20_000:
            assert counted >= set(records.OUTCOMES) - RARE, set(records.OUTCOMES) - counted
        assert bench.last_number() > most + 3
    finally:
        application.close()


RARE = {"ring_full", "table_full", "quota_full", "out_of_window", "beyond_fin", "reset", "replaced"}
"""Outcomes that these packets need not meet: they have tests of their own."""


def owner(frame: bytes, streams: dict[tuple[int, int], Stream]) -> Stream | None:
    """The stream to which a frame with data belongs. What a SYN or RST carries is no data to the logger."""
    p = Packet.parse(frame)
    if not p.payload or p.tcp.flags & (SYN | RST):
        return None
    sensor = next(number for number, host in enumerate(TOPOLOGY.sensors) if host.ip == p.ip.source)
    return streams.get((sensor, p.tcp.source_port))


def test_random_packets(fuzz_bench: Bench, tmp_path: Path) -> None:
    run(fuzz_bench, tmp_path, 1, 8_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_random_packets(fuzz_bench: Bench, tmp_path: Path) -> None:
    run(fuzz_bench, tmp_path, 2, 1_000_000)
