"""A BPF ring buffer in memory, written as the kernel does (kernel/bpf/ringbuf.c), and a source made of it."""

import mmap
import os
import weakref

import numpy as np

from midstream.ebpf.records import RECORD, committed_size, journal_size
from midstream.hardworker.journal import Journal
from midstream.hardworker.ring import Ring
from midstream.hardworker.source import Segment
from midstream.hardworker.spill import Spill
from midstream.hardworker.watch import Watch

BUSY, DISCARDED = 1 << 31, 1 << 30
HEADER, BLOCK = 8, 64
CONNECTIONS, PENDING = 64, 1 << 17


class FakeRing:
    """The producer's side. Positions only grow, from `start`. Every byte is written to both copies of the
    data, which stand for one memory mapped twice. `pending`: bytes of unfinished messages for which the
    reader's journal has room."""

    def __init__(self, size: int = 4096, start: int = 0, pending: int = PENDING) -> None:
        self.size, self.pending = size, pending
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # what epoll tells of a ring
        self.close = weakref.finalize(self, os.close, self.event)
        self._consumer = np.zeros(mmap.PAGESIZE, np.uint8)
        self._pages = np.zeros(mmap.PAGESIZE + 2 * size, np.uint8)
        self._journal = np.zeros(journal_size(CONNECTIONS, pending), np.uint8)
        self.word = np.zeros(committed_size(CONNECTIONS), np.uint8)
        self.unfinished: dict[bytes, bytes] = {}
        self._positions = (self._consumer[:8].view("<u8"), self._pages[:8].view("<u8"))
        for position in self._positions:
            position[0] = start

    @property
    def consumer(self) -> int:
        return int(self._positions[0][0])

    @property
    def producer(self) -> int:
        return int(self._positions[1][0])

    @property
    def data(self) -> np.ndarray:
        """The reader's mapping of the data, for np.shares_memory."""
        return self._pages[mmap.PAGESIZE :]

    def memory(self) -> tuple[np.ndarray, np.ndarray, Journal, Spill, np.ndarray, int]:
        """The ring as user space maps it, the producer's pages read-only; where the last reader was; what the
        logger has committed; what epoll tells."""
        pages = self._pages.view()
        pages.flags.writeable = False
        journal = Journal(self._journal, CONNECTIONS, self.pending)
        return self._consumer, pages, journal, Spill(self.unfinished), self.word, self.event

    def reader(self) -> Ring:
        """A reader that nobody wakes."""
        return Ring(*self.memory(), close=lambda: None)

    def reserve(self, length: int) -> int | None:
        """Room for a record of `length` bytes; None if the ring is full. Returns its position."""
        position = self.producer
        end = position + ((HEADER + length + 7) & ~7)
        if end - self.consumer > self.size - 1:
            return None
        self._write(position, (length | BUSY).to_bytes(4, "little") + b"\xff\xff\xff\xff")
        self._positions[1][0] = end
        return position

    def fill(self, position: int, data: bytes) -> None:
        """Write into a reserved record."""
        self._write(position + HEADER, data)

    def commit(self, position: int, *, discard: bool = False) -> None:
        """Submit or discard a record, and wake its reader."""
        header = int.from_bytes(self.data[position % self.size :][:4].tobytes(), "little")
        header = header & ~BUSY | (DISCARDED if discard else 0)
        self._write(position, header.to_bytes(4, "little"))
        os.eventfd_write(self.event, 1)

    def put(self, segment: Segment, capacity: int | None = None) -> int | None:
        """Store a segment as one record with room for `capacity` bytes, by default whole blocks; None if the
        ring is full."""
        if capacity is None:
            capacity = blocks(len(segment.data))
        position = self.reserve(RECORD.itemsize + capacity)
        if position is not None:
            self.fill(position, as_record(segment))
            self.commit(position)
        return position

    def _write(self, position: int, data: bytes) -> None:
        at = (position + np.arange(len(data))) % self.size
        self.data[at] = self.data[at + self.size] = np.frombuffer(data, np.uint8)


class RingSource(Ring):
    """A Source of a FakeRing, in which something is retained as far as `poll` is concerned: it always polls
    readable."""

    def __init__(self, ring: FakeRing, watch: Watch | None = None, retain: int = 0) -> None:
        self.ring = ring
        self.closed = 0
        super().__init__(*ring.memory(), self._count_close, retain=retain, watch=watch)

    def _count_close(self) -> None:
        self.closed += 1


def blocks(length: int) -> int:
    """The room for `length` bytes of payload."""
    return -(-length // BLOCK) * BLOCK


def as_record(segment: Segment) -> bytes:
    """struct record and its payload."""
    head = np.zeros(1, RECORD)
    head[0] = (
        segment.offset,
        segment.time,
        segment.connection,
        len(segment.data),
        segment.sensor,
        segment.port,
        segment.flags,
        0,
    )
    return head.tobytes() + segment.data
