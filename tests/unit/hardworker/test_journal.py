"""The reader's journal: whenever its writer dies, the next reader finds one whole state, old or new."""

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.fake_ring import as_record

from midstream.ebpf.records import OPEN, RECORD, committed_size, journal_size
from midstream.ebpf.retained import Committed
from midstream.hardworker.journal import Journal
from midstream.hardworker.ring import Ring
from midstream.hardworker.source import Segment
from midstream.hardworker.spill import Spill
from midstream.hardworker.streams import OPEN_STREAM, Stream, Streams

CONNECTIONS, PENDING, SIZE = 5, 100, 4096
TRACEME, SINGLESTEP = 0, 9  # linux/ptrace.h


class Memory:
    """What a reader maps, shared with a child: the ring's pages and the journal."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self.consumer = shared(page)
        self.pages = shared(page + 2 * SIZE)
        self.journal = shared(journal_size(CONNECTIONS, PENDING))
        self.word = shared(committed_size(CONNECTIONS))

    def reader(self, retain: int = 0) -> Ring:
        journal = Journal(self.journal, CONNECTIONS, PENDING)
        return Ring(
            self.consumer,
            self.pages,
            journal,
            Spill({}),
            self.word,
            event=-1,
            close=lambda: None,
            retain=retain,
        )

    def store(self, segment: Segment) -> None:
        """As the program does; never more than fits before the end of the ring."""
        producer = self.pages[:8].view("<u8")
        data = as_record(segment)
        at = mmap.PAGESIZE + int(producer[0])
        self.pages[at : at + 4].view("<u4")[0] = len(data)
        self.pages[at + 8 : at + 8 + len(data)] = np.frombuffer(data, np.uint8)
        producer[0] += 8 + (len(data) + 7) // 8 * 8

    @property
    def state(self) -> tuple[object, ...]:
        """What a reader that starts now finds: position, connections, pending bytes."""
        snapshot = Journal(self.journal, CONNECTIONS, PENDING).load()
        if snapshot is None:
            return ()
        return snapshot.position, snapshot.table.tolist(), snapshot.pending


def shared(size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE), np.uint8, size)


class Unfinished(Streams):
    """Streams with some bytes of unfinished messages, whatever they are."""

    unfinished: bytes = b""

    @property
    def fresh_size(self) -> int:
        return len(self.unfinished)

    def pending(self) -> bytes:
        return self.unfinished


def opened(*rows: tuple[int, int], pending: bytes = b"") -> Unfinished:
    streams = Unfinished()
    streams.unfinished = pending
    for connection, start in rows:
        streams.open(connection, Stream(start))
    return streams


def read(ring: Ring) -> None:
    ring.look()
    while ring.next(0, Streams()):
        pass


@contextmanager
def traced(action: Callable[[], object]) -> Iterator[Iterator[None]]:
    """Run `action` in a child, one machine instruction at a time; it is killed at the latest at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    stop = libc["raise"]
    child = os.fork()
    if child == 0:
        libc.ptrace(TRACEME, 0, None, None)
        stop(signal.SIGSTOP)
        action()
        stop(signal.SIGSTOP)
        os._exit(0)

    def steps() -> Iterator[None]:
        while True:
            assert libc.ptrace(SINGLESTEP, child, None, None) == 0
            _, status = os.waitpid(child, 0)
            assert os.WIFSTOPPED(status)
            if os.WSTOPSIG(status) == signal.SIGSTOP:
                return
            yield

    try:
        _, status = os.waitpid(child, 0)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
        yield steps()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_nothing_was_ever_committed() -> None:
    assert Journal(shared(journal_size(3, 8)), 3, 8).load() is None


@given(
    commits=st.lists(
        st.tuples(
            st.dictionaries(
                st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1), min_size=0, max_size=CONNECTIONS
            ),
            st.binary(max_size=PENDING),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_last_commit_is_what_is_found(commits: list[tuple[dict[int, int], bytes]]) -> None:
    memory = Memory()
    ring = memory.reader()
    for number, (rows, pending) in enumerate(commits):
        memory.store(Segment(number, 0, 0, 0, 0, OPEN, b""))
        read(ring)
        streams = opened(*rows.items(), pending=pending)
        assert ring.commit(streams)
        found = Journal(memory.journal, CONNECTIONS, PENDING).load()
        assert found is not None
        assert found.position == memory.pages[:8].view("<u8")[0] == memory.consumer[:8].view("<u8")[0]
        assert found.table.tolist() == streams.table[: streams.count].tolist()
        assert found.table["connection"].tolist() == sorted(rows)
        assert found.pending == pending


def test_a_snapshot_is_a_copy() -> None:
    memory = Memory()
    memory.store(Segment(1, 0, 0, 0, 0, OPEN, b""))
    ring = memory.reader()
    read(ring)
    ring.commit(opened((1, 7), pending=b"abc"))
    found = Journal(memory.journal, CONNECTIONS, PENDING).load()
    assert found is not None
    memory.journal[:] = 255
    assert (found.table["next"].tolist(), found.pending) == ([7], b"abc")


def test_more_connections_than_there_is_room_for_change_nothing() -> None:
    memory = Memory()
    ring = memory.reader()
    memory.store(Segment(1, 0, 0, 0, 0, OPEN, b""))
    read(ring)
    streams = opened(*((number, 0) for number in range(CONNECTIONS + 1)))
    before = memory.journal.copy()
    assert not ring.commit(streams)
    assert (memory.journal == before).all()
    assert memory.consumer[:8].view("<u8")[0] == 0
    assert ring.commit(opened(*((number, 0) for number in range(CONNECTIONS)), pending=bytes(PENDING)))


@given(garbage=st.binary(min_size=16, max_size=200), commits=st.integers(1, 4))
def test_whatever_lies_in_the_other_copy_is_not_looked_at(garbage: bytes, commits: int) -> None:
    """A writer that died half-way leaves anything there, and nothing else."""
    memory = Memory()
    ring = memory.reader()
    for number in range(commits):
        memory.store(Segment(1, 0, 0, 0, 0, OPEN, b""))
        read(ring)
        ring.commit(opened((1, number), pending=b"pending"))
    expected = memory.state
    copy = Journal(memory.journal, CONNECTIONS, PENDING).copy_size
    start = 8 + (commits + 1) % 2 * copy
    other = memory.journal[start : start + copy]
    other[:] = np.resize(np.frombuffer(garbage, np.uint8), copy)
    assert memory.state == expected


@pytest.mark.parametrize(
    "earlier", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_killed_between_any_two_instructions_of_a_commit(earlier: int) -> None:
    memory = Memory()
    ring = memory.reader()
    memory.store(Segment(9, 0, 0, 0, 0, OPEN, b""))
    read(ring)
    ring.commit(opened((9, 0)))  # the library's symbols are resolved before instructions are counted
    memory.journal[:8] = 0  # as if never
    for number in range(earlier):
        memory.store(Segment(1, 0, 0, 0, 0, OPEN, b""))
        read(ring)
        ring.commit(opened((1, number), (2, 2 * number), pending=bytes([number]) * 40))
    memory.store(Segment(1, 0, 0, 0, 0, OPEN, b""))
    producer = int(memory.pages[:8].view("<u8")[0])
    old_consumer = int(memory.consumer[:8].view("<u8")[0])
    old = memory.state
    streams = opened((1, 1000), (3, 3000), (4, 4000), pending=b"new" * 30)
    new = producer, streams.table[: streams.count].tolist(), streams.unfinished
    read(ring)

    found: list[tuple[object, int]] = []  # what a reader finds, and what was given back
    torn = 0
    before = memory.journal.tobytes()
    with traced(lambda: ring.commit(streams)) as steps:
        for _ in steps:
            consumer = int(memory.consumer[:8].view("<u8")[0])
            moment = memory.state, consumer
            if not found or found[-1] != moment:
                found.append(moment)
            torn += moment[0] == old and memory.journal.tobytes() != before
    assert found == [(old, old_consumer), (new, old_consumer), (new, producer)]
    assert torn > 10  # states of a commit that had begun and did not count


def test_a_reader_killed_right_before_it_gave_room_back() -> None:
    """What it committed is done with, so its successor gives the room back at once: were the ring full, no
    record could come any more that would make it commit."""
    memory = Memory()
    memory.store(Segment(1, 0, 0, 0, 0, OPEN, b""))
    ring = memory.reader()
    read(ring)
    ring.commit(opened((1, 0)))
    memory.consumer[:8] = 0  # the last store of a commit
    successor = memory.reader()
    assert memory.consumer[:8].view("<u8")[0] == RECORD.itemsize + 8
    successor.look()
    assert successor.next(0, Streams()) is None
    assert successor.standing.fill == 0


def test_a_word_that_changes_while_it_is_looked_at() -> None:
    """The daemon tells the next, and is killed while it writes the one after that, into the table at hand."""
    memory = Memory()

    def publish(generation: int) -> None:
        memory.word[:8].view("<u8")[0] = generation

    def looking(committed: int) -> Callable[[], object]:
        """A look of a reader that is done with eight bytes, of which so many are committed."""
        memory.consumer[:8] = memory.pages[:8] = memory.journal[:8] = memory.word[:] = 0
        memory.store(Segment(1, 0, 0, 0, 0, 0, b"retained"))
        ring = memory.reader(retain=SIZE)
        read(ring)
        Committed(memory.word, publish).tell({1: 0}, known=1)
        ring.commit(opened((1, 8)))
        assert not memory.consumer[:8].any()
        Committed(memory.word, publish).tell({1: committed}, known=1)
        return ring._reader.give_back

    with traced(looking(8)) as steps:
        last = next(number for number, _ in enumerate(steps) if memory.consumer[:8].any())
    for moment in range(last - 60, last + 120, 6):
        with traced(looking(0)) as steps:
            for _ in islice(steps, moment):
                pass
            Committed(memory.word, publish).tell({1: 0}, known=1)
            Committed(memory.word, lambda generation: None).tell({2: 0}, known=2)
            for _ in steps:
                pass
        assert not memory.consumer[:8].any()


def test_a_row_has_the_layout_of_struct_open() -> None:
    assert OPEN_STREAM.itemsize == 32
    assert [OPEN_STREAM.fields[name][1] for name in OPEN_STREAM.names or () if OPEN_STREAM.fields] == [
        0,
        4,
        8,
        16,
        24,
    ]
