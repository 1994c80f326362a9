"""Bytes are delivered once and in order, whatever the segments: in the daemon, and to the application."""

from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fake_ring import FakeRing, Segment, opens

from midstream.daemon.reassembly import Stream
from midstream.ebpf.records import RESET

HIGH = 5 << 32  # offsets have 64 bits


class Plain:
    """What a stream must do, said as plainly as possible, a byte an offset: the first version stays, but what
    comes in order replaces what waited behind the hole."""

    def __init__(self, start: int) -> None:
        self.start = self.next = start
        self.held: dict[int, int] = {}

    def push(self, offset: int, data: bytes) -> bytes:
        for position, byte in enumerate(data, offset):
            if offset <= self.next <= position:
                self.held[position] = byte
            elif position >= self.start:
                self.held.setdefault(position, byte)
        begin = self.next
        while self.next in self.held:
            self.next += 1
        return bytes(self.held[position] for position in range(begin, self.next))


segments = st.lists(st.tuples(st.integers(0, 30), st.binary(min_size=1, max_size=12)), max_size=30)


@settings(max_examples=300)
@given(segments, st.sampled_from([0, 7, HIGH]))
def test_each_offset_once_and_in_order(segments: list[tuple[int, bytes]], start: int) -> None:
    stream, plain = Stream(start), Plain(start)
    base = max(0, start - 20)  # some segments begin before the stream does here
    for offset, data in segments:
        assert stream.push(base + offset, data) == plain.push(base + offset, data)
        assert stream.next == plain.next
        assert stream.has_early == any(position >= stream.next for position in plain.held)


@given(st.binary(min_size=1, max_size=400), st.randoms(use_true_random=False))
def test_any_order_gives_the_whole_stream(data: bytes, random: Random) -> None:
    cuts = sorted({0, len(data), *(random.randrange(len(data)) for _ in range(8))})
    pieces = [(start, data[start:end]) for start, end in pairwise(cuts)]
    pieces += random.sample(pieces, len(pieces) // 2)
    random.shuffle(pieces)
    stream = Stream()
    assert b"".join(stream.push(*piece) for piece in pieces) == data
    assert not stream.has_early


@settings(max_examples=300)
@given(segments, st.sampled_from([0, 100, 1 << 20]))
def test_the_applications_reader_does_the_same(segments: list[tuple[int, bytes]], patience: int) -> None:
    """Messages of one byte, read and committed after each segment, by a reader that is killed then."""
    ring, plain, received = FakeRing(1 << 14, patience=patience), Plain(0), b""
    opens(ring, 1)
    for offset, data in segments:
        ring.put(Segment(1, 0, 40001, offset, 1, 0, data))
        reader = ring.reader(1)
        reader.look()
        rows = reader.rows()
        assert rows["payload"].tobytes() == plain.push(offset, data)
        assert rows["offset"].tolist() == list(range(len(received), plain.next))
        received += rows["payload"].tobytes()
        assert reader.commit()
        held = any(position >= plain.next for position in plain.held)
        assert bool(reader._reader.unfinished()) == held
        assert held or ring.consumer == ring.producer


def test_the_table_grows_beyond_its_first_rows() -> None:
    """And connections end in any order."""
    ring = FakeRing(1 << 18)
    reader = ring.reader(3)
    numbers = [number * 7919 % 100_003 for number in range(1, 1000)]
    opens(ring, *numbers)
    for number in numbers[::3]:
        ring.put(Segment(number, 0, 1, 0, 1, RESET, b""))
    reader.look()
    assert not len(reader.rows())
    kept = [number for place, number in enumerate(numbers) if place % 3]
    assert reader.standing.connections == len(kept)
    for number in numbers:
        ring.put(Segment(number, 0, 1, 0, 1, 0, b"abc"))
    reader.look()
    assert reader.rows()["connection"].tolist() == kept
    assert reader.standing.totals.skipped == 3 * (len(numbers) - len(kept))
