"""What is committed here and not at the logger stays in the ring, as long as somebody says what that is."""

import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.fake_ring import CONNECTIONS, HEADER, FakeRing, RingSource, Segment, begun, opens, used
from tests.support.hosts import configure
from tests.support.reader import later

from midstream.ebpf.records import FIN, OPEN, RECORD, RESET
from midstream.ebpf.retained import Committed, Retained, Stored, collect
from midstream.hardworker import Hardworker

SIZE = 24
STRIDE = HEADER + RECORD.itemsize + 64
RING = 1 << 16


class Site:
    """A ring, the reader that retains in it, and what it is told."""

    def __init__(self, retain: int = RING // 2) -> None:
        self.ring = FakeRing(RING)
        self.retain = retain
        self.word = word(self.ring)
        self.reader = begun(RingSource(self.ring, retain=retain), SIZE)

    def open(self, *connections: int) -> None:
        opens(self.ring, *connections)
        assert self.commit() == 0

    def store(self, connection: int, number: int) -> None:
        data = bytes([connection % 256, number % 256]) * (SIZE // 2)
        assert self.ring.put(Segment(connection, 0, 40000, number * SIZE, now(), 0, data)) is not None

    def commit(self) -> int:
        """Take all that is there; how many records are retained then."""
        self.reader.look()
        self.reader.rows()
        assert self.reader.commit()
        return self.retained

    @property
    def retained(self) -> int:
        assert self.ring.producer - self.ring.consumer == used(self.reader)
        return (self.ring.producer - self.ring.consumer) // STRIDE


def word(ring: FakeRing) -> Committed:
    def publish(generation: int) -> None:
        ring.word[:8].view("<u8")[0] = generation

    return Committed(ring.word, publish)


def now() -> int:
    return time.monotonic_ns()


@pytest.fixture
def site() -> Site:
    return Site()


def test_nothing_is_retained_where_nobody_says_what_is_committed(site: Site) -> None:
    site.open(1)
    for number in range(10):
        site.store(1, number)
        assert site.commit() == 0
    assert site.word.forfeited == 0


def test_nothing_is_retained_if_the_application_does_not_want_it() -> None:
    site = Site(retain=0)
    site.open(1)
    site.word.tell({1: 0}, known=1)
    site.store(1, 0)
    assert site.commit() == 0
    assert site.word.forfeited == 0


def test_room_is_given_back_as_far_as_the_logger_has_committed(site: Site) -> None:
    site.open(1, 2)
    site.word.tell({1: 0, 2: 0}, known=2)
    for number in range(4):
        site.store(1, number)
        site.store(2, number)
    assert site.commit() == 8
    site.word.tell({1: 2 * SIZE, 2: SIZE}, known=2)  # the second message of 2 is in the way
    assert site.retained == 8, "it looks when it commits"
    site.store(1, 4)
    assert site.commit() == 9 - 3
    site.word.tell({1: 5 * SIZE, 2: 4 * SIZE - 1}, known=2)
    site.store(1, 5)
    assert site.commit() == 10 - 7
    site.word.tell({1: 9 * SIZE, 2: 4 * SIZE}, known=2)
    site.store(1, 6)
    assert site.commit() == 0
    assert site.word.forfeited == 0


def test_the_journal_does_not_wait_for_the_logger(site: Site) -> None:
    """What is retained is committed all the same: the next reader does not get it again."""
    site.open(1)
    site.word.tell({1: 0}, known=1)
    site.store(1, 0)
    assert site.commit() == 1
    again = begun(RingSource(site.ring, retain=site.retain), SIZE)
    again.look()
    assert len(again.rows()) == 0
    assert again.commit()
    assert site.retained == 1, "it stays retained"
    site.word.tell({1: SIZE}, known=1)
    assert used(RingSource(site.ring, retain=site.retain)) == 0


def test_a_reader_that_does_not_retain_gives_back_what_the_last_one_did(site: Site) -> None:
    site.open(1)
    site.word.tell({1: 0}, known=1)
    site.store(1, 0)
    assert site.commit() == 1
    RingSource(site.ring)
    assert site.ring.consumer == site.ring.producer


def test_of_connections_that_the_daemon_knows_only_the_named_are_retained(site: Site) -> None:
    site.open(5, 6, 7, 8)
    site.word.tell({6: 0}, known=7)
    site.store(5, 0)  # it goes elsewhere, or is wholly committed
    assert site.commit() == 0
    site.store(8, 0)  # opened after the daemon looked
    site.store(6, 0)
    site.store(7, 0)
    assert site.commit() == 3
    site.word.tell({6: 0}, known=8)
    site.store(5, 1)
    assert site.commit() == 3, "the first goes"
    site.word.tell({}, known=8)
    site.store(5, 2)
    assert site.commit() == 0


def test_numbers_wrap(site: Site) -> None:
    last = 2**32 - 1
    site.open(last, 0, 1)
    site.word.tell({last: 0}, known=0)
    site.store(0, 0)
    assert site.commit() == 0
    site.store(1, 0)
    assert site.commit() == 1
    site.word.tell({}, known=1)
    site.store(last, 0)
    assert site.commit() == 0


@pytest.mark.parametrize("flags", [OPEN, FIN, RESET])
def test_events_take_no_room_for_long(site: Site, flags: int) -> None:
    """Their bytes are committed when those before them are."""
    site.open(1)
    site.word.tell({1: SIZE}, known=1)
    site.ring.put(Segment(1, 0, 40000, SIZE, now(), flags, b""))
    assert site.commit() == 0
    site.ring.put(Segment(1, 0, 40000, SIZE + 1, now(), flags, b""))
    site.word.tell({1: SIZE}, known=1)
    site.commit()
    assert site.ring.producer - site.ring.consumer == HEADER + RECORD.itemsize


def test_discarded_records_are_nobodys(site: Site) -> None:
    site.open(1)
    site.word.tell({1: SIZE}, known=1)
    for number in range(2):
        position = site.ring.reserve(RECORD.itemsize + 64)
        assert position is not None
        site.ring.commit(position, discard=True)
        site.store(1, number)
    assert site.commit() == 1


def test_a_word_that_is_too_old_holds_nothing_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.open(1)
    site.word.tell({1: 0}, known=1)
    site.store(1, 0)
    assert site.commit() == 1
    monkeypatch.setattr(time, "monotonic_ns", lambda started=time.monotonic_ns: started() - 15 * 10**9)
    site.word.renew()
    monkeypatch.undo()
    site.store(1, 1)
    assert site.commit() == 0
    assert site.word.forfeited == 2 * STRIDE


def test_a_word_is_renewed_until_the_retained_is_fetched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.open(1)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic_ns", lambda started=time.monotonic_ns: started() - 16 * 10**9)
        site.word.tell({1: 0}, known=1)
    site.word.renew()
    for number in range(3):
        site.store(1, number)
        assert site.commit() == number + 1


def test_of_a_ring_that_is_half_full_the_oldest_go(site: Site) -> None:
    site.open(1)
    site.word.tell({1: 0}, known=1)
    most = site.retain // STRIDE
    for number in range(most):
        site.store(1, number)
        assert site.commit() == number + 1
    for number in range(most, 3 * most):
        site.store(1, number)
        assert site.commit() == most
        assert site.word.forfeited == (number + 1 - most) * STRIDE
    site.word.tell({1: 3 * most * SIZE}, known=1)
    site.store(1, 3 * most)
    assert site.commit() == 1


def test_no_sensor_is_refused_for_what_is_retained(site: Site) -> None:
    """The program counts a sensor's share of the ring up to where the reader is done (ebpf/quota.h)."""
    site.open(1)
    site.word.tell({1: 0}, known=1)
    site.store(1, 0)
    assert site.commit() == 1
    assert site.ring.word.view("<u8")[2] == site.ring.producer
    assert site.reader.standing.fill == 0


def test_a_table_that_is_written_meanwhile_says_nothing(site: Site) -> None:
    """A daemon that is killed while it writes, and one that is not done yet, change nothing."""
    site.open(1)
    site.word.tell({1: 0}, known=1)
    site.store(1, 0)
    torn = Committed(site.ring.word, publish=lambda generation: None)
    torn.tell({1: SIZE}, known=1)
    assert site.commit() == 1
    site.word.tell({1: SIZE}, known=1)
    site.store(1, 1)
    assert site.commit() == 1


@given(
    st.dictionaries(st.integers(0, 2**32 - 1), st.integers(0, 2), max_size=2 * CONNECTIONS - 1),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_what_is_told_is_what_the_reader_finds(
    committed: dict[int, int], known: int, data: st.DataObject
) -> None:
    """Also of numbers that meet at one place of the table, and in a table that is full but for one place."""
    number = data.draw(st.sampled_from([*committed, known, (known + 1) % 2**32, (known + 2**31) % 2**32]))
    site = Site()
    site.open(number)
    site.word.tell(dict.fromkeys(range(50), 0), known=0)  # what lay in the other table
    site.word.tell({number: count * SIZE for number, count in committed.items()}, known)
    site.store(number, 0)
    is_later = 0 < (number - known) % 2**32 < 2**31
    assert site.commit() == (committed[number] < 1 if number in committed else is_later)


def test_a_retaining_reader_sleeps_and_is_woken(tmp_path: Path) -> None:
    """A ring in which something is retained polls readable all the time; its reader does not spin."""
    site = Site()
    site.word.tell({1: 0}, known=1)
    site.ring.put(Segment(1, 0, 40000, 0, now(), OPEN, b""))
    with Hardworker(configure(tmp_path, size=SIZE), source=site.reader) as hardworker:
        turns = hardworker.batches()
        assert len(next(turns)) == 0
        for number in range(3):
            begun = time.monotonic()
            with later(partial(site.store, 1, number), 0.05):
                assert next(turns)["offset"].tolist() == [number * SIZE]
            assert time.monotonic() - begun > 0.04
        assert hardworker.wait(0.05) is False
        for number in range(3, 6):
            begun = time.monotonic()
            with later(partial(site.store, 1, number), 0.05):
                assert hardworker.wait(5)
            assert time.monotonic() - begun > 0.04
            assert len(hardworker.read()) == 1
            assert hardworker.wait(0.01) is False
    assert site.retained > 5


# what the daemon fetches


def collected(ring: FakeRing, *positions: int) -> dict[int, Retained]:
    """positions: what is given back at each look."""
    given_back = iter([*positions, *[ring.consumer] * 2])
    return collect(lambda: next(given_back).to_bytes(8, "little"), ring.memory()[1].data)


def test_all_that_is_in_the_ring_is_found(site: Site) -> None:
    site.open(1, 2)
    site.word.tell({1: 0, 2: 0}, known=2)
    site.ring.put(Segment(1, 3, 40001, 0, 5, OPEN, b""))  # is given back
    site.ring.put(Segment(1, 3, 40001, 0, 6, 0, b"abc"))
    position = site.ring.reserve(100)
    assert position is not None
    site.ring.commit(position, discard=True)
    site.ring.put(Segment(2, 4, 40002, 7, 8, FIN, b"d"))
    site.commit()
    site.ring.put(Segment(1, 3, 40001, 3, 9, 0, b"e"))  # not read yet
    busy = site.ring.reserve(100)
    assert busy is not None
    site.ring.put(Segment(2, 4, 40002, 8, 8, RESET, b""))  # behind it
    assert collected(site.ring) == {
        1: Retained(3, 40001, [Stored(0, 6, 0, b"abc"), Stored(3, 9, 0, b"e")]),
        2: Retained(4, 40002, [Stored(7, 8, FIN, b"d")]),
    }


def test_what_is_given_back_meanwhile_is_left_out(site: Site) -> None:
    """The program may write there, into what was being copied."""
    site.open(1)
    site.word.tell({1: 0}, known=1)
    for number in range(4):
        site.store(1, number)
    start = site.ring.consumer
    found = collected(site.ring, start, start + 2 * STRIDE)
    assert [one.offset for one in found[1].records] == [2 * SIZE, 3 * SIZE]
    assert collected(site.ring, start, start + 4 * STRIDE) == {}
    assert collected(site.ring, start, start + 9 * STRIDE) == {}


def test_it_is_found_across_the_ring_s_end() -> None:
    ring = FakeRing(4096, start=5 * 4096 - 100)
    ring.put(Segment(1, 0, 40000, 0, 1, 0, bytes(range(200))))
    assert collected(ring)[1].records == [Stored(0, 1, 0, bytes(range(200)))]
