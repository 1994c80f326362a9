"""Random histories of a connection against plain models of what is held, here and in the logger's kernel.

The model keeps the bytes in a dictionary and the rules in words; the program keeps ranges. Every transmission
of a segment has other bytes, so it shows which one was stored.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.program.bench import XDP_DROP, XDP_TX, Bench, Sensor, sent_on
from tests.program.ring import Record
from tests.support.examples import examples

from midstream.daemon.reassembly import Stream
from midstream.ebpf import records
from midstream.packet import Flags

WINDOW = 1 << 20
RANGES = 8
SPAN = 240  # bytes in which segments meet one another


@dataclass(frozen=True)
class Segment:
    start: int
    length: int
    fin: bool


@dataclass
class Model:
    """What is held of a stream. take() tells the outcome: what is stored, in order or not, is in the ring."""

    before: int  # so many bytes were held when the history began
    held: dict[int, int] = field(default_factory=dict)
    end: int | None = None  # of the stream, where it is known

    @property
    def next(self) -> int:
        return next(position for position in count() if position not in self.held)

    @property
    def finished(self) -> bool:
        return self.end == self.next

    def take(self, start: int, payload: bytes, fin: bool) -> str:
        end, first_missing = start + len(payload), self.next
        if self.finished:
            return "beyond_fin" if payload and end > first_missing else "duplicate"
        if self._contradicts(end, fin):
            return "beyond_fin"
        tells_end = fin and self.end is None
        if end <= first_missing and not tells_end:
            return "duplicate"
        if end - first_missing > WINDOW or start < -self.before:
            return "out_of_window"

        new_start = max(start, first_missing)
        new = payload[new_start - start :]
        if new_start > first_missing and any(position in self.held for position in range(new_start, end)):
            return "out_of_window"
        if all(position in self.held for position in range(new_start, end)):
            if not tells_end:
                return "duplicate"
            self.end = end
            return "stored" if end == first_missing else "out_of_order"
        held = self.held | dict(zip(range(new_start, end), new, strict=True))  # what fills the hole wins
        if new_start > first_missing and self._ranges(held, first_missing) > RANGES:
            return "out_of_window"
        self.held = held
        if tells_end:
            self.end = end
        return "stored" if new_start == first_missing else "out_of_order"

    def _contradicts(self, end: int, fin: bool) -> bool:
        if self.end is not None:
            return end != self.end if fin else end > self.end
        return fin and any(position >= end for position in self.held)

    @staticmethod
    def _ranges(held: dict[int, int], first_missing: int) -> int:
        return sum(position > first_missing and position - 1 not in held for position in held)


def segments() -> st.SearchStrategy[list[Segment]]:
    starts = st.integers(-3, SPAN) | st.integers(WINDOW - 30, WINDOW + 30)
    # Mostly short, so that there are many holes; a FIN is rare, because it ends the history.
    one = st.builds(
        Segment, starts, st.integers(0, 12) | st.integers(0, 120), st.integers(0, 30).map(lambda n: n == 30)
    )
    return st.lists(one, min_size=1, max_size=60)


def in_steps() -> st.SearchStrategy[list[Segment]]:
    """A whole stream in segments, sent in an order that is wrong here and there, and partly sent again."""
    whole = [Segment(start, 5, start == SPAN - 5) for start in range(0, SPAN, 5)]
    swaps = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 12)), max_size=30)

    def disturb(moves: list[tuple[int, int]]) -> list[Segment]:
        order = list(whole)
        for position, by in moves:
            order.insert(min(position + by, len(order)), order[position])
            if by % 3:
                order.pop(position)
        return order + whole

    return swaps.map(disturb)


places = st.sampled_from([1000, 2**32 - 1, 2**32 - SPAN // 2, 2**31 - 100])


@settings(max_examples=examples(100))
@given(
    history=segments() | in_steps(),
    isn=places,
    base=st.sampled_from([0, 0, 2**32 - 100, 3 << 40]),
    destination=st.sampled_from([0, records.HERE]),
    turns=st.sets(st.integers(0, 59)),
)
def test_holds_what_the_model_holds(
    session_bench: Bench, history: list[Segment], isn: int, base: int, destination: int, turns: set[int]
) -> None:
    """turns: before which packets it is decided anew where connections go that open then."""
    bench = session_bench
    bench.destination = destination
    sensor = Sensor(bench, isn=isn)
    sensor.open(base)
    model = Model(base)
    before = bench.counters()
    expected: dict[str, int] = {}
    delivered: dict[int, int] = {}

    for number, (frame, outcome, record) in enumerate(played(sensor, model, history)):
        if number in turns:
            bench.destination = 0 if bench.destination else records.HERE
        verdict, output = bench.run(frame)
        expected[outcome] = expected.get(outcome, 0) + 1
        dropped = outcome in records.DROPPED
        went = (XDP_DROP, frame) if dropped else sent_on(frame, bench.topology, destination)
        assert (verdict, output) == went, outcome

        stored = bench.ring.take()
        if outcome in ("stored", "out_of_order"):
            assert stored == [record]
        else:
            assert not stored, outcome
        deliver(stored, base, delivered)

    bench.destination = 0
    assert delivered == model.held
    assert bench.counters() - before == {(0, outcome): n for outcome, n in expected.items()}
    state = bench.connection(0, sensor.port)
    assert (state is None) == model.finished
    if state is not None:
        assert state["next"] == base + model.next
        assert (
            state["early_ranges"]
            == model._ranges(model.held, model.next)
            == sum(state["out_of_order"][:, 1] > 0)
        )


def played(sensor: Sensor, model: Model, history: list[Segment]) -> Iterator[tuple[bytes, str, Record]]:
    """Each packet, what the model makes of it, and its record if it is stored."""
    for version, segment in enumerate(history):
        if not segment.length and not segment.fin:
            continue  # a bare acknowledgement
        payload = bytes((position * 7 + version * 101) % 256 for position in range(segment.length))
        flags = Flags.ACK | (Flags.FIN if segment.fin else Flags.PSH)
        frame = sensor.frame(flags, segment.start, payload)
        record = sensor.record(segment.start, payload, records.FIN if segment.fin else 0)
        yield frame, model.take(segment.start, payload, segment.fin), record


def deliver(stored: list[Record], base: int, delivered: dict[int, int]) -> None:
    """As a reader does: what is in order it takes once, and then even if other bytes wait behind the hole."""
    for record in stored:
        start = record.offset - base
        following = next(position for position in count() if position not in delivered)
        for position, value in enumerate(record.payload, start):
            if position >= following:
                assert start <= following or position not in delivered
                delivered[position] = value


@dataclass
class Kernel:
    """What the logger's Linux makes of what reaches it (tcp_data_queue and tcp_data_queue_ofo). Behind a hole
    it keeps segments as they came, and joins neighbours if it can: `joins`."""

    joins: bool
    data: bytearray = field(default_factory=bytearray)
    early: list[tuple[int, bytes]] = field(default_factory=list)

    def receive(self, start: int, payload: bytes) -> None:
        following, end = len(self.data), start + len(payload)
        if end <= following:
            return
        if start > following:
            self._keep(start, payload)
            return
        self.data += payload[following - start :]
        while self.early and self.early[0][0] <= len(self.data):
            start, payload = self.early.pop(0)
            self.data += payload[len(self.data) - start :]

    def _keep(self, start: int, payload: bytes) -> None:
        early = self.early
        place = bisect_right(early, start, key=lambda segment: segment[0])
        if place:
            before, held = early[place - 1]
            if start + len(payload) <= before + len(held):
                return  # all of it is there
            if start == before or (self.joins and start == before + len(held)):
                place -= 1
                del early[place]
                start, payload = (start, payload) if start == before else (before, held + payload)
        early.insert(place, (start, payload))
        covered = place + 1
        while covered < len(early) and early[covered][0] + len(early[covered][1]) <= start + len(payload):
            covered += 1
        del early[place + 1 : covered]


@settings(max_examples=40)
@given(history=segments() | in_steps(), isn=places, joins=st.booleans())
def test_the_application_has_the_bytes_that_the_logger_has(
    session_bench: Bench, history: list[Segment], isn: int, joins: bool
) -> None:
    """Each transmission of a segment has other bytes, as a faulty sensor sends them, and nothing is lost
    between hardworker and logger: what was acknowledged is the same at both."""
    bench = session_bench
    sensor = Sensor(bench, isn=isn)
    sensor.open()
    kernel, reader, delivered = Kernel(joins), Stream(), bytearray()
    whole = [Segment(start, 5, False) for start in range(0, SPAN + 120, 5)]  # in the end every hole is filled
    for frame, _, record in played(sensor, Model(0), history + whole):
        if bench.run(frame)[0] == XDP_TX:
            kernel.receive(record.offset, record.payload)
        for stored in bench.ring.take():
            delivered += reader.push(stored.offset, stored.payload)
        assert delivered == kernel.data


def test_a_segment_upon_another_behind_a_hole(bench: Bench) -> None:
    """A and then B around it with other bytes, then the hole."""
    sensor = Sensor(bench)
    sensor.open()
    kernel, reader, delivered = Kernel(joins=True), Stream(), bytearray()
    for start, end, value in ((1500, 2000, b"A"), (1000, 2300, b"B"), (0, 1000, b"C"), (1000, 2300, b"B")):
        payload = value * (end - start)
        if bench.run(sensor.frame(Flags.ACK, start, payload))[0] == XDP_TX:
            kernel.receive(start, payload)
        for stored in bench.ring.take():
            delivered += reader.push(stored.offset, stored.payload)
    assert delivered == kernel.data == b"C" * 1000 + b"B" * 1300
