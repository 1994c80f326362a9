"""Bytes are delivered once and in order, whatever the segments; ring.c's table agrees with the streams."""

import bisect
import copy
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from midstream.hardworker.streams import Piece, Stream, Streams

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


def test_the_end_is_reached_only_when_every_byte_is_delivered() -> None:
    stream = Stream()
    assert not stream.finished
    stream.end = 8
    stream.push(4, b"tail")
    assert not stream.finished
    assert stream.push(0, b"head") == b"headtail"
    assert stream.finished


def test_a_stream_that_ends_before_its_first_message_here_is_finished() -> None:
    # Joined in the middle of the last message: the next one would start behind the end.
    stream = Stream(1024)
    stream.end = 1000
    assert stream.finished


class Table(RuleBasedStateMachine):
    """The table of open connections against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = Streams()
        self.model: dict[int, tuple[Stream, int, bool]] = {}  # stream, next, aligned
        self.kept: list[Piece] = []

    @rule(numbers=st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=100), start=st.integers(0, 2**63))
    def open(self, numbers: list[int], start: int) -> None:
        for number in numbers:
            if number not in self.model:
                stream = Stream(start)
                self.streams.open(number, stream)
                self.model[number] = (stream, start, True)

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model)))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), state=st.sampled_from(["aligned", "carry", "early", "end"]))
    def check_out_and_in(self, data: st.DataObject, state: str) -> None:
        number = self.pick(data)
        stream = self.streams.checkout(number)
        assert stream is self.model[number][0]
        assert stream.next == self.model[number][1]
        delivered = stream.push(stream.next, b"12")
        stream.carry = bytearray(delivered[-1:] if state == "carry" else b"")
        stream.end = stream.next + 9 if state == "end" else None
        if state == "early":
            stream.push(stream.next + 1, b"4")
        self.streams.checkin(number, stream)
        # An end that is known has to be noticed when it is reached, which ring.c does not.
        aligned = state == "aligned" and not stream.has_early
        self.model[number] = (stream, stream.next, aligned)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def moved_by_the_look_at_a_batch(self, data: st.DataObject) -> None:
        number = self.pick(data)
        stream, following, aligned = self.model[number]
        if aligned:
            row = np.flatnonzero(self.streams.table["connection"][: self.streams.count] == number)[0]
            self.streams.table["next"][row] += 1024
            self.model[number] = (stream, following + 1024, aligned)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        number = self.pick(data)
        self.streams.close(number)
        self.kept = [piece for piece in self.kept if piece[0] != number]
        del self.model[number]
        assert self.streams.checkout(number) is None

    @invariant()
    def agrees(self) -> None:
        assert len(self.streams) == self.streams.count == len(self.model)
        table = self.streams.table[: self.streams.count]
        assert table[["connection", "aligned", "next"]].tolist() == [
            (number, aligned, following - len(stream.carry))
            for number, (stream, following, aligned) in sorted(self.model.items())
        ]
        assert all(self.streams.checkout(number) is self.model[number][0] for number in self.model)

    @invariant()
    def can_be_restored(self) -> None:
        table, pending = self.streams.table[: self.streams.count], self.streams.pending()
        assert len(pending) <= self.streams.fresh_size
        restored = Streams.restore(table, pending, self.kept, lambda: None)
        assert restored.table[: restored.count].tolist() == table.tolist()
        assert len(restored.pending()) <= len(pending)  # what was kept behind a hole may be in order now
        for number in self.model:
            old, new = self.streams.checkout(number), restored.checkout(number)
            assert old is not None and new is not None
            assert (new.next, new.end, new.carry) == (old.next, old.end, old.carry)
            assert new.push(old.next, bytes(4)) == copy.deepcopy(old).push(old.next, bytes(4))

    @rule()
    def keep(self) -> None:
        self.kept += self.streams.fresh()
        self.streams.keep()
        assert self.streams.fresh_size == 0
        assert not self.streams.pending()


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=30)


def test_the_table_grows_beyond_its_first_rows() -> None:
    streams = Streams()
    numbers = [number * 7919 % 100_003 for number in range(1, 1000)]
    kept: list[int] = []
    for number in numbers:
        streams.open(number, Stream(number))
        bisect.insort(kept, number)
    for number in numbers[::3]:
        streams.close(number)
        kept.remove(number)
    assert streams.table["connection"][: streams.count].tolist() == kept
    assert streams.table["next"][: streams.count].tolist() == kept
