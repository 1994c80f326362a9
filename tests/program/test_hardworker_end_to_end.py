"""From the sensors' frames to the application's messages, with everything that may go wrong on the way.

Frames are lost, doubled, reordered, cut anew, corrupted, forged; the ring is small and read at any moment;
the application is killed. The real program runs in the kernel, the real reader reads its ring, and the
reference says what must come of it.
"""

import mmap
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.program.bench import SEVERAL, Bench, Sensor
from tests.program.reference import Application, Fate, Leg, Stream
from tests.support.examples import examples

from midstream.ebpf import records
from midstream.packet import Flags

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
SIZE = 48  # bytes a message: no multiple of the ring's blocks
MOST = 1460
LONGEST = 54  # messages of a stream
ISNS = [7, 2**32 - 1, 2**32 - 700, 2**31 - 900, 2**31]
CLOCKS = [1, 2**31 - 20, 2**32 - 30, 0]  # the sensor's timestamps; 0: it sends none


@pytest.fixture(scope="module")
def small_bench() -> Iterator[Bench]:
    topology = replace(SEVERAL, size=SIZE)
    with closing(Bench(topology, ring_size=2 * mmap.PAGESIZE, connections=64)) as bench:
        yield bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("application")


@dataclass(frozen=True)
class Step:
    """Something that happens. What its numbers mean depends on `kind`; see Run."""

    kind: str
    which: int  # of the streams
    start: int
    length: int
    extra: int


KINDS = {  # how often each comes
    "next": 12,
    "again": 6,
    "ahead": 3,
    "lost": 2,
    "last": 1,
    "corrupt": 3,
    "overlap": 2,
    "wrong_ack": 2,
    "old_time": 2,
    "far": 2,
    "forged": 1,
    "wrong_reset": 2,
    "wrong_syn": 1,
    "wrong_fin": 1,
    "same_syn": 1,
    "bare": 1,
    "abort": 1,
    "reopen": 1,
    "turn": 1,
    "read": 5,
    "commit": 4,
    "kill": 1,
}

lengths = st.sampled_from([1, SIZE, SIZE, SIZE, 2 * SIZE, 64, 65, 500, 512, 513, MOST]) | st.integers(1, MOST)
steps = st.builds(
    Step,
    st.sampled_from([kind for kind, often in KINDS.items() for _ in range(often)]),
    st.integers(0, 2),
    st.integers(0, 3000),
    lengths,
    st.integers(0, 2**31 - 1),
)


@dataclass
class Run:
    """Plays steps. `clock` counts them: it is the time in the sensors' timestamps."""

    bench: Bench
    application: Application
    wire: Leg
    numbers: random.Random
    streams: list[Stream] = field(default_factory=list)
    clock: int = 0
    bases: dict[int, int] = field(default_factory=dict)  # of the timestamps, by connection

    def open(self, port: int | None = None, sensor: int = 0) -> Stream:
        """A connection begins, with bytes of its own."""
        numbers = self.numbers
        data = numbers.randbytes(SIZE * numbers.randrange(LONGEST))
        isn = numbers.choice(ISNS) if port is None else numbers.randrange(2**32)
        one = Sensor(self.bench, sensor=sensor, isn=isn, port=port)
        stream = Stream(one, data, numbers.randrange(2**32), self.bench.destination)
        stream.sensor.number = self.bench.last_number() + 1
        self.bases[stream.number] = numbers.choice(CLOCKS)
        syn = stream.frame(SYN, -1, ack=0)
        if self.wire.send(syn) is not Fate.SENT_ON:  # the ring is full
            self.drain()
            assert self.wire.send(syn) is Fate.SENT_ON
        self.wire.add(stream)
        self.wire.send(self.timed(stream, ACK, 0), stream)
        return stream

    def timed(self, stream: Stream, flags: Flags, start: int, payload: bytes = b"") -> bytes:
        """A frame as the sensor sends it now."""
        base = self.bases[stream.number]
        return stream.frame(flags, start, payload, tcp_options=timestamp(base + self.clock) if base else b"")

    def drain(self) -> None:
        self.application.read()
        self.application.commit()

    def play(self, step: Step) -> None:
        self.clock += 1
        index = step.which % len(self.streams)
        getattr(self, step.kind)(self.streams[index], step, index)

    # The sensor's own

    def next(self, stream: Stream, step: Step, _: int) -> None:
        """The bytes that follow what it has sent. What is not taken is sent again sometime."""
        payload = stream.data[stream.sent : stream.sent + step.length]
        self.wire.send(self.timed(stream, ACK, stream.sent, payload), stream)
        stream.sent += len(payload)

    def lost(self, stream: Stream, step: Step, _: int) -> None:
        stream.sent = min(stream.sent + step.length, len(stream.data))

    def again(self, stream: Stream, step: Step, _: int) -> None:
        """Bytes sent before, in whatever segments."""
        start = step.start % (stream.sent + 1)
        payload = stream.data[start : min(start + step.length, stream.sent)]
        self.wire.send(self.timed(stream, ACK, start, payload), stream)

    def ahead(self, stream: Stream, step: Step, _: int) -> None:
        """Bytes that overtake others, perhaps with the end of the stream."""
        start = step.start % (len(stream.data) + 1)
        payload = stream.data[start : start + step.length]
        self.wire.send(self.timed(stream, ACK, start, payload), stream)

    def last(self, stream: Stream, step: Step, _: int) -> None:
        start = max(0, len(stream.data) - step.length * (step.extra % 2))
        self.wire.send(self.timed(stream, ACK | FIN, start, stream.data[start:]), stream)

    def bare(self, stream: Stream, step: Step, _: int) -> None:
        self.wire.send(self.timed(stream, ACK, step.start % (stream.sent + 1)), stream)

    def same_syn(self, stream: Stream, step: Step, _: int) -> None:
        if stream.open:  # else it would open another
            assert self.wire.send(stream.frame(SYN, -1, ack=0), stream) is Fate.SENT_ON

    def abort(self, stream: Stream, step: Step, _: int) -> None:
        """The sensor resets the connection, seldom."""
        if step.extra % 4 == 0:
            self.wire.send(self.timed(stream, RST, stream.next), stream)

    def reopen(self, stream: Stream, step: Step, index: int) -> None:
        """From the same port, once the stream has ended."""
        if not stream.open:
            self.streams[index] = self.open(stream.sensor.port, stream.sensor.sensor)

    def turn(self, _: Stream, step: Step, __: int) -> None:
        """Connections go elsewhere that open from now on."""
        self.bench.destination = (0, 1, 2, records.HERE)[step.extra % 4]

    # What the wire does, and strangers

    def corrupt(self, stream: Stream, step: Step, _: int) -> None:
        start = step.start % (len(stream.data) + 1)
        frame = bytearray(self.timed(stream, ACK, start, stream.data[start : start + step.length]))
        frame[14 + step.extra % (len(frame) - 14)] ^= 1 << step.extra % 8
        self.unnoticed(bytes(frame))

    def overlap(self, stream: Stream, step: Step, _: int) -> None:
        """The first write wins: what is held already comes with other bytes, beside what is new."""
        start = max(0, stream.next - step.start % 1000)
        false = bytes(value ^ 0xFF for value in stream.data[start : stream.next])
        payload = (false + stream.data[stream.next :])[: step.length]
        self.wire.send(self.timed(stream, ACK, start, payload), stream)

    def wrong_ack(self, stream: Stream, step: Step, _: int) -> None:
        """Forged, by somebody who does not see what the logger sends."""
        if not stream.open:
            return
        ack = stream.ack + (1 << 20) + 1 + step.extra % (2**32 - (2 << 20) - 1)
        flags = ACK | FIN if step.extra % 3 == 0 else ACK
        frame = stream.frame(flags, stream.next + step.start % 100, b"forged", ack=ack)
        assert self.unnoticed(frame) is Fate.DROPPED

    def old_time(self, stream: Stream, step: Step, _: int) -> None:
        """From another time, when the sequence numbers were the same."""
        if not stream.open or not (now := int(stream.sensor.state["timestamp"])):
            return
        then = (now - 1 - step.extra % (2**31 - 1)) % 2**32 or now - 1
        if then:
            start = stream.next + step.start % 100
            frame = stream.frame(ACK, start, b"forged", tcp_options=timestamp(then))
            assert self.unnoticed(frame) is Fate.DROPPED

    def far(self, stream: Stream, step: Step, _: int) -> None:
        """Outside of every window."""
        away = (1 << 24) + 6000 + step.extra % (2**31 - (2 << 24))
        start = stream.next + (away if step.start % 2 else -away)
        assert self.unnoticed(stream.frame(ACK, start, b"forged")) is not Fate.SENT_ON

    def forged(self, stream: Stream, step: Step, _: int) -> None:
        frame = stream.frame(ACK, stream.next, b"forged")
        assert self.unnoticed(frame[:6] + step.extra.to_bytes(6) + frame[12:]) is Fate.DROPPED

    def wrong_reset(self, stream: Stream, step: Step, _: int) -> None:
        self.unnoticed(stream.frame(RST, stream.next + 1 + step.extra))

    def wrong_syn(self, stream: Stream, step: Step, _: int) -> None:
        if stream.open:
            assert self.unnoticed(stream.frame(SYN, stream.next + (1 << 25) + step.extra)) is Fate.SENT_ON

    def wrong_fin(self, stream: Stream, step: Step, _: int) -> None:
        if stream.open and stream.next:
            assert self.unnoticed(stream.frame(ACK | FIN, step.start % stream.next)) is Fate.DROPPED

    def unnoticed(self, frame: bytes) -> Fate:
        """Nothing of it comes into the ring. Its fate."""
        before = [(len(stream.held), stream.open) for stream in self.wire.streams.values()]
        fate = self.wire.send(frame)
        assert before == [(len(stream.held), stream.open) for stream in self.wire.streams.values()]
        return fate

    # The application

    def read(self, *_: object) -> None:
        self.application.read()
        for stream in self.streams:
            received = self.application.received(stream.number)
            assert received == stream.data[: len(received)]
            assert len(received) == stream.next // SIZE * SIZE

    def commit(self, *_: object) -> None:
        self.application.commit()

    def kill(self, *_: object) -> None:
        self.application.kill()

    # And in the end

    def complete(self, stream: Stream) -> None:
        """The sensor sends again until its peer has all, as TCP does."""
        for start in range(0, len(stream.data), 500):
            frame = self.timed(stream, ACK, start, stream.data[start : start + 500])
            for _ in range(3):
                self.clock += 1
                if self.wire.send(frame, stream) is Fate.SENT_ON:
                    break
                self.drain()
        for _ in range(3):
            if self.wire.send(self.timed(stream, ACK | FIN, len(stream.data)), stream) is Fate.SENT_ON:
                break
            self.drain()
        self.drain()
        assert not stream.open
        assert set(range(len(stream.data))) <= stream.passed, "its destination misses what was sent again"


def timestamp(value: int) -> bytes:
    return b"\x01\x01\x08\x0a" + (value % 2**32).to_bytes(4) + bytes(4)


def check(bench: Bench, folder: Path, seed: int, history: list[Step]) -> None:
    bench.clear()
    application = Application(bench, folder)
    try:
        run = Run(bench, application, Leg(bench), random.Random(seed))
        run.streams = [run.open(sensor=number) for number in range(3)]
        for step in history:
            run.play(step)
        aborted = [stream for stream in run.wire.streams.values() if not stream.open]
        for stream in run.streams:
            if stream.open:
                run.complete(stream)
        run.drain()
        for stream in run.wire.streams.values():
            whole = stream.next if stream in aborted else len(stream.data)
            assert application.received(stream.number) == stream.data[: whole // SIZE * SIZE]
        told = {int(end["number"]): end for end in bench.ended()}
        assert set(told) == set(run.wire.streams), "each end is told"
        for number, stream in run.wire.streams.items():
            end = told[number]
            assert end["how"] == (records.FIN if stream.complete else records.RESET)
            assert (end["held"], end["destination"]) == (stream.next, stream.destination)
            assert (end["first"], end["port"]) == ((stream.sensor.isn + 1) % 2**32, stream.sensor.port)
        assert application.hardworker.connections == 0
        assert bench.open_connections() == 0
        assert [int(bench.share(sensor)["open"]) for sensor in range(3)] == [0, 0, 0]
    finally:
        application.close()


@settings(max_examples=examples(80), suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16), history=st.lists(steps, max_size=80))
def test_each_byte_once_and_in_order(
    small_bench: Bench, folder: Path, seed: int, history: list[Step]
) -> None:
    check(small_bench, folder, seed, history)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_long_histories(small_bench: Bench, folder: Path) -> None:
    """Plain random ones, which cost less than hypothesis's: longer, and more of them."""
    kinds, often = list(KINDS), list(KINDS.values())
    for seed in range(2000):
        numbers = random.Random(seed)
        history = [
            Step(
                numbers.choices(kinds, often)[0],
                numbers.randrange(3),
                numbers.randrange(3001),
                numbers.choice([1, SIZE, SIZE, SIZE, 64, 512, numbers.randint(1, MOST)]),
                numbers.randrange(2**31),
            )
            for _ in range(200)
        ]
        try:
            check(small_bench, folder, seed, history)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
