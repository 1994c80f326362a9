"""A BPF ring buffer in memory, written as the kernel does (kernel/bpf/ringbuf.c), and a source made of it."""

import mmap
import os
import weakref
from typing import NamedTuple

import numpy as np
from tests.support.hosts import topology

from midstream.ebpf.records import OPEN, RECORD, committed_size, journal_size
from midstream.framing import Framing
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.messages import Format, SensorAddresses
from midstream.hardworker.ring import Ring
from midstream.hardworker.spill import Spill
from midstream.hardworker.watch import Watch

BUSY, DISCARDED = 1 << 31, 1 << 30
HEADER, BLOCK = 8, 64
CONNECTIONS = 64


class Segment(NamedTuple):
    """Some bytes of a stream, or an event of a connection, or both: what struct record says of it."""

    connection: int
    sensor: int
    port: int
    offset: int
    time: int
    flags: int
    data: bytes


class FakeRing:
    """The producer's side. Positions only grow, from `start`. Every byte is written to both copies of the
    data, which stand for one memory mapped twice. `patience`: bytes of it that unfinished messages may
    hold, by default half."""

    def __init__(self, size: int = 4096, start: int = 0, patience: int | None = None) -> None:
        self.size, self.patience = size, size // 2 if patience is None else patience
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # what epoll tells of a ring
        self.close = weakref.finalize(self, os.close, self.event)
        self._consumer = np.zeros(mmap.PAGESIZE, np.uint8)
        self._pages = np.zeros(mmap.PAGESIZE + 2 * size, np.uint8)
        self._journal = np.zeros(journal_size(CONNECTIONS), np.uint8)
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

    def memory(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, Spill, np.ndarray, int]:
        """The ring as user space maps it, the producer's pages read-only; where the last reader was; what the
        logger has committed; what epoll tells."""
        pages = self._pages.view()
        pages.flags.writeable = False
        journal, spill = self._journal, Spill(self.unfinished)
        return self._consumer, pages, journal, CONNECTIONS, spill, self.word, self.event

    def reader(self, size: int, framing: Framing = "fixed") -> Ring:
        """A reader that nobody wakes."""
        return begun(Ring(*self.memory(), close=lambda: None, patience=self.patience), size, framing)

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
        super().__init__(
            *ring.memory(), self._count_close, patience=ring.patience, retain=retain, watch=watch
        )

    def _count_close(self) -> None:
        self.closed += 1


def begun(ring: Ring, size: int, framing: Framing = "fixed") -> Ring:
    """A ring whose messages have this form; it never sleeps."""
    ring.begin(Format(framing, size, SensorAddresses(topology)), Cadence(1.0), attention=-1)
    return ring


def used(ring: Ring) -> int:
    """Bytes in use: what the reader is not done with, and what it retains."""
    return ring._stored - ring._reader.released


def opens(ring: FakeRing, *connections: int) -> None:
    """They begin."""
    for connection in connections:
        assert ring.put(Segment(connection, 0, 40000, 0, 1, OPEN, b"")) is not None


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
