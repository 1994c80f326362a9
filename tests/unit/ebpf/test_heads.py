"""What a look now and then sees of a ring: each record once, in order, and nothing that was overwritten."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.fake_ring import FakeRing, Segment

from midstream.ebpf import heads
from midstream.ebpf.heads import RingHeads
from midstream.ebpf.records import LARGEST_RECORD

SIZE = 1 << 15


class Looker:
    """`number`: the kernel's, of the ring."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: int = 0) -> None:
        self.ring, self.number, self.stored = FakeRing(SIZE, start), 1, 0
        monkeypatch.setattr(heads, "mapped", self._mapped)
        self._heads = RingHeads(Path("pins"))

    @contextmanager
    def _mapped(self, _folder: Path) -> Iterator[tuple[memoryview, memoryview, int]]:
        consumer, pages = self.ring.memory()[:2]
        yield memoryview(consumer.data), memoryview(pages.data), self.number

    def store(self, length: int) -> int | None:
        """A record whose offset is its number; its place, None if the ring is full."""
        place = self.ring.put(Segment(7, 0, 40000, self.stored, 10 * self.stored, 0, bytes(length)))
        self.stored += place is not None
        return place

    def give_back(self) -> None:
        self.ring._positions[0][0] = self.ring.producer

    def look(self) -> list[int]:
        return [int(each["offset"]) for each in self._heads.read()]


@pytest.fixture
def looker(monkeypatch: pytest.MonkeyPatch) -> Looker:
    return Looker(monkeypatch)


lengths = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 130), st.sampled_from("....xb")), min_size=1, max_size=12
)


@given(lengths, st.integers(0, 1 << 40))
def test_each_record_once_and_in_order(runs: list[tuple[int, int, str]], start: int) -> None:
    """Runs of records of one length, some discarded (x), and a look after each, at some while a record is not
    whole yet (b)."""
    with pytest.MonkeyPatch.context() as patch:
        looker = Looker(patch, start // 8 * 8)
        seen: list[int] = []
        for length, count, kind in runs:
            for _ in range(count):
                if looker.store(length) is None:
                    seen += looker.look()
                    looker.give_back()
                    looker.store(length)
            if kind != "." and (place := looker.ring.reserve(length)) is not None:
                if kind == "b":
                    seen += looker.look()
                    seen += looker.look()
                    assert len(seen) == looker.stored
                looker.ring.commit(place, discard=True)
            seen += looker.look()
        assert seen == list(range(looker.stored))


def test_what_was_given_back_is_seen_all_the_same(looker: Looker) -> None:
    looker.store(64)
    assert looker.look() == [0]
    looker.store(64)
    looker.give_back()
    assert looker.look() == [1]


def test_what_was_overwritten_is_left_out(looker: Looker) -> None:
    assert looker.look() == []
    while looker.ring.producer < SIZE - LARGEST_RECORD + 256:
        looker.store(1000)
        looker.give_back()
    assert looker.look() == [], "the first of them may be gone"
    looker.store(1000)
    assert looker.look() == [looker.stored - 1]


def test_what_is_overwritten_while_it_is_read(looker: Looker, monkeypatch: pytest.MonkeyPatch) -> None:
    looker.look()
    looker.store(1000)
    chain = heads.chain

    def slow(pages: mmap.mmap, start: int, end: int) -> object:
        found = chain(pages, start, end)
        while looker.ring.producer < SIZE:
            looker.give_back()
            looker.store(1000)
        return found

    monkeypatch.setattr(heads, "chain", slow)
    assert looker.look() == []


def test_another_ring_is_seen_from_its_start(looker: Looker) -> None:
    looker.store(8)
    looker.store(8)
    assert looker.look() == [0, 1]
    looker.ring, looker.number = FakeRing(SIZE), 2
    for _ in range(5):
        looker.store(8)
    assert looker.look() == [2, 3, 4, 5, 6]
