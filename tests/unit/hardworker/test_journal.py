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
from tests.support.fake_ring import Segment, as_record, begun

from midstream.ebpf.records import (
    JOURNAL_GENERATION,
    OPEN,
    RECORD,
    RESET,
    committed_size,
    journal_copy_size,
    journal_size,
)
from midstream.ebpf.retained import Committed
from midstream.hardworker.ring import Ring
from midstream.hardworker.spill import Spill

CONNECTIONS, SIZE, MESSAGE = 5, 1 << 14, 8
TRACEME, SINGLESTEP = 0, 9  # linux/ptrace.h


class Memory:
    """What a reader maps, shared with a child: the ring's pages and the journal."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self.consumer = shared(page)
        self.pages = shared(page + 2 * SIZE)
        self.journal = shared(journal_size(CONNECTIONS))
        self.word = shared(committed_size(CONNECTIONS))

    def reader(self, retain: int = 0) -> Ring:
        return begun(
            Ring(
                self.consumer,
                self.pages,
                self.journal,
                CONNECTIONS,
                Spill({}),
                self.word,
                event=-1,
                close=lambda: None,
                patience=SIZE,
                retain=retain,
            ),
            MESSAGE,
        )

    def store(self, segment: Segment) -> None:
        """As the program does; never more than fits before the end of the ring."""
        producer = self.pages[:8].view("<u8")
        data = as_record(segment)
        at = mmap.PAGESIZE + int(producer[0])
        self.pages[at : at + 4].view("<u4")[0] = len(data)
        self.pages[at + 8 : at + 8 + len(data)] = np.frombuffer(data, np.uint8)
        producer[0] += 8 + (len(data) + 7) // 8 * 8

    def open(self, *connections: int) -> None:
        for connection in connections:
            self.store(Segment(connection, 0, 0, 0, 0, OPEN, b""))

    def send(self, connection: int, offset: int, data: bytes) -> None:
        self.store(Segment(connection, 0, 0, offset, 0, 0, data))

    @property
    def produced(self) -> int:
        return int(self.pages[:8].view("<u8")[0])

    @property
    def given_back(self) -> int:
        return int(self.consumer[:8].view("<u8")[0])

    @property
    def state(self) -> tuple[object, ...]:
        """What a reader that starts now finds: where it reads on, and its connections."""
        consumer = self.consumer.copy()  # it gives back what its predecessor had no time for
        reader = self.reader()._reader
        self.consumer[:] = consumer
        return reader.position, reader.connections, reader.unfinished()


def shared(size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE), np.uint8, size)


def read(ring: Ring) -> list[bytes]:
    """The messages that are there now."""
    ring.look()
    return [bytes(row["payload"]) for row in ring.rows()]


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
    memory = Memory()
    memory.open(1)
    assert memory.state == (0, 0, {})


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "send", "end", "read", "commit"]), st.integers(1, 9), st.integers(1, 20)
        ),
        max_size=60,
    )
)
def test_what_was_not_committed_comes_again_and_nothing_else(steps: list[tuple[str, int, int]]) -> None:
    """A reader is killed after each step; what it committed counts."""
    memory = Memory()
    sent: dict[int, int] = {}  # of the connections that are open
    ended: set[int] = set()
    given, committed = 0, 0  # bytes, of all
    ring = memory.reader()
    for what, connection, length in steps:
        if what == "open" and connection not in sent and connection not in ended and len(sent) < CONNECTIONS:
            memory.open(connection)
            sent[connection] = 0
        elif what == "send" and connection in sent:
            memory.send(connection, sent[connection], bytes(length))
            sent[connection] += length
        elif what == "end" and sent.get(connection, 1) % MESSAGE == 0:
            memory.store(Segment(connection, 0, 0, sent.pop(connection), 0, RESET, b""))
            ended.add(connection)
        elif what == "read":
            given += len(b"".join(read(ring)))
        elif what == "commit":
            assert ring.commit()
            committed = given
            before = memory.state
            ring = memory.reader()
            assert memory.state == before
            given = committed
    ring = memory.reader()
    rest = len(b"".join(read(ring)))
    whole = sum(count // MESSAGE * MESSAGE for count in sent.values())
    assert ring.standing.connections == len(sent)
    assert committed + rest >= whole
    assert ring.commit()
    assert not read(memory.reader())


def test_more_connections_than_there_is_room_for_change_nothing() -> None:
    memory = Memory()
    ring = memory.reader()
    memory.open(*range(CONNECTIONS + 1))
    read(ring)
    before = memory.journal.copy()
    assert not ring.commit()
    assert (memory.journal == before).all()
    assert memory.given_back == 0
    memory.store(Segment(3, 0, 0, 0, 0, RESET, b""))
    read(ring)
    assert ring.commit()
    assert memory.given_back == memory.produced


@given(garbage=st.binary(min_size=16, max_size=200), commits=st.integers(1, 4))
def test_whatever_lies_in_the_other_copy_is_not_looked_at(garbage: bytes, commits: int) -> None:
    """A writer that died half-way leaves anything there, and nothing else."""
    memory = Memory()
    ring = memory.reader()
    memory.open(1)
    for number in range(commits):
        memory.send(1, number, b"x")
        read(ring)
        ring.commit()
    expected = memory.state
    copy = journal_copy_size(CONNECTIONS)
    start = JOURNAL_GENERATION + (commits + 1) % 2 * copy
    other = memory.journal[start : start + copy]
    other[:] = np.resize(np.frombuffer(garbage, np.uint8), copy)
    assert memory.state == expected


@pytest.mark.parametrize(
    "earlier", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_killed_between_any_two_instructions_of_a_commit(earlier: int) -> None:
    memory = Memory()
    ring = memory.reader()
    memory.open(1, 2)
    read(ring)
    ring.commit()  # the library's symbols are resolved before instructions are counted
    for number in range(earlier):
        memory.send(1, number, b"x")
        read(ring)
        ring.commit()
    memory.open(3, 4)
    memory.send(2, 0, bytes(MESSAGE + 1))
    old, old_consumer = memory.state, memory.given_back
    assert read(ring) == [bytes(MESSAGE)]
    needed = memory.produced if not earlier else old[0]

    found: list[tuple[object, int]] = []  # what a reader finds, and what was given back
    torn = 0
    before = memory.journal.tobytes()
    with traced(ring.commit) as steps:
        for _ in steps:
            moment = memory.state, memory.given_back
            if not found or found[-1] != moment:
                found.append(moment)
            torn += moment[0] == old and memory.journal.tobytes() != before
    new = memory.state
    assert new != old and new[1] == 4
    last = memory.given_back
    assert found == [
        (old, old_consumer),
        (new, old_consumer),
        *([(new, last)] if last != old_consumer else []),
    ]
    assert old_consumer < last or needed == old_consumer
    assert torn > 10  # states of a commit that had begun and did not count


def test_a_reader_killed_right_before_it_gave_room_back() -> None:
    """What it committed is done with, so its successor gives the room back at once: were the ring full, no
    record could come any more that would make it commit."""
    memory = Memory()
    memory.open(1)
    ring = memory.reader()
    read(ring)
    ring.commit()
    memory.consumer[:8] = 0  # the last store of a commit
    successor = memory.reader()
    assert memory.given_back == RECORD.itemsize + 8
    assert not read(successor)
    assert successor.standing.fill == 0


@pytest.mark.slow
def test_a_word_that_changes_while_it_is_looked_at() -> None:
    """The daemon tells the next, and is killed while it writes the one after that, into the table at hand."""
    memory = Memory()

    def publish(generation: int) -> None:
        memory.word[:8].view("<u8")[0] = generation

    def looking(committed: int) -> Callable[[], object]:
        """A look of a reader that is done with eight bytes, of which so many are committed."""
        memory.consumer[:8] = memory.pages[:8] = memory.journal[:8] = memory.word[:] = 0
        memory.send(1, 0, b"retained")
        ring = memory.reader(retain=SIZE)
        read(ring)
        Committed(memory.word, publish).tell({1: 0}, known=1)
        ring.commit()
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
