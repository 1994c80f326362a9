"""The ring, mapped into this process and read without a system call."""

import ctypes
import mmap
import os
import select
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np

from midstream.ebpf import compiler, records, ring_server
from midstream.ebpf.hashmap import HashMap
from midstream.ebpf.records import RECORD
from midstream.errors import KernelError
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.journal import Journal, Snapshot
from midstream.hardworker.messages import batch_dtype
from midstream.hardworker.source import Beginning, Cycle, Segment, Standing, Status
from midstream.hardworker.spill import Spill
from midstream.hardworker.streams import Streams
from midstream.hardworker.views import Columns, View
from midstream.hardworker.watch import Watch

_HEADER = 8  # before each record: length, busy and discard bits, page offset
_LOOK = (1 << 64) - 1  # as `end` in ring.c
_BLOCK = 64  # a record has room for whole blocks of payload
_VIEWS = 1024  # of the whole ring, kept for cycles
_STORED = select.EPOLLIN | select.EPOLLET
_HEAD = struct.Struct("<QQIIHHHH")  # ebpf/records.py: RECORD, unpacked faster than NumPy does


# The words of struct reader in ring.c, by their places: Python reads and writes them in one memory, which
# costs less than the fields of a ctypes.Structure.
(
    _PRODUCER,
    _CONSUMER,
    _DATA,
    _MASK,
    _POSITION,
    _END,
    _COMMITTED,
    _RELEASED,
    _NEWEST,
    _STREAMS,
    _JOURNAL,
    _COPY_SIZE,
    _WORD,
    _TABLE_SIZE,
    _RETAIN,
    _HEARD,
    _PERIOD,
    _FOLLOW,
    _STOP,
    _EVENT,
    _SIZE,
    _MOST,
    _SPILLED,
    _START,
    _FOUND,
    _PHASE,
    _COLUMNS,
    _COLUMNS_COUNT,
    _USUAL,
    _TIMER,
    _SEEN,
    _STATUS,
    _WORDS,
) = range(33)
_NOTHING = (1 << 64) - 1  # found


class Ring:
    """The Source of records, in the order in which the program stored them.

    `consumer` is the ring's first page, `pages` the producer's page and then the data, twice in a row: as
    the kernel maps them, or as a test lays them out. `journal` and `spill` say what the last reader
    committed, and where reading resumes. `word`: what the daemon says that the logger has committed, for
    which at most `retain` bytes of the ring are retained. `event` becomes readable when something is stored.
    `close` lets go. `patience`: bytes of the ring that a large unfinished message may hold before it is
    copied out. `beginnings` are the program's notes, per sensor, and `watch` tells whether the ring is still
    in use.
    """

    def __init__(
        self,
        consumer: np.ndarray,
        pages: np.ndarray,
        journal: Journal,
        spill: Spill,
        word: np.ndarray,
        event: int,
        close: Callable[[], None],
        patience: int = 0,
        retain: int = 0,
        beginnings: np.ndarray | None = None,
        watch: Watch | None = None,
    ) -> None:
        page = mmap.PAGESIZE
        self.size = (len(pages) - page) // 2
        self._consumer, self._pages = consumer, pages
        self._bytes = pages.data
        base = pages.ctypes.data
        memory = np.zeros(_WORDS, np.uint64)
        self._reader = memory.ctypes.data
        self._state = memory.data
        self._library = _library()
        self._regular = self._library.midstream_regular
        self._rows: np.dtype | None = None  # if cycles give these,
        self._views: dict[int, np.ndarray] = {}  # of which
        # What a cycle gives is the second; while it sleeps, nothing of the others may go.
        kept = (memory, consumer, pages, journal.memory, word)
        self._prepared: list[object] = [self._reader, None, kept, None]
        self._cycle = _cycle(self._prepared)
        self._journal, self._spill = journal, spill
        self._event, self._let_go, self._patience = event, close, patience
        self._beginnings = np.zeros(0, records.BEGINNINGS) if beginnings is None else beginnings
        self._events: select.epoll | None = None  # for `fileno`,
        self._cycle_events: select.epoll | None = None  # and for cycles without a period
        self._watch = watch
        self._snapshot = journal.load()
        pieces = spill.load(self._snapshot)
        if self._snapshot:
            self._snapshot = replace(self._snapshot, kept=pieces)
        released = int(consumer[:8].view("<u8")[0])
        position = self._snapshot.position if self._snapshot else released
        state = self._state
        state[_PRODUCER], state[_CONSUMER], state[_DATA] = base, consumer.ctypes.data, base + page
        state[_MASK] = self.size - 1
        state[_POSITION] = state[_END] = state[_COMMITTED] = position
        state[_RELEASED], state[_RETAIN] = released, retain
        state[_WORD] = word.ctypes.data
        state[_TABLE_SIZE] = (len(word) - records.COMMITTED_HEAD.itemsize) // 2
        state[_MOST], state[_SPILLED] = journal.connections, spill.in_use
        state[_JOURNAL], state[_COPY_SIZE] = journal.memory.ctypes.data, journal.copy_size
        state[_FOUND] = _NOTHING
        state[_TIMER], state[_SEEN] = watch.timer if watch else 0, self._stored
        # A reader killed in `commit` may have left this undone.
        self._library.midstream_give_back(self._reader)

    @classmethod
    def map(
        cls, held: ring_server.RingDescriptors, connections: int, patience: int = 0, retain: int = 0
    ) -> Self:
        """Map a BPF ring buffer and its journal; needs no privileges.

        Closing the ring closes `held`; views that the application still has keep the mapping alive. Raises
        KernelError if the descriptors are of other things, or cannot be mapped.
        """
        page, size = mmap.PAGESIZE, held.size
        length, told = records.journal_size(connections), records.committed_size(connections)
        try:
            consumer = mmap.mmap(held.ring, page)
            pages = mmap.mmap(held.ring, page + 2 * size, prot=mmap.PROT_READ, offset=page)
            memory = mmap.mmap(held.journal, -(-length // page) * page)
            noted = held.sensors * records.BEGINNINGS.itemsize
            begun = mmap.mmap(held.beginnings, -(-noted // page) * page, prot=mmap.PROT_READ)
            word = mmap.mmap(held.committed, -(-told // page) * page)
        except (OSError, ValueError) as error:
            raise KernelError(
                f"the ring cannot be mapped ({error}); is it pinned by this midstream?"
            ) from error
        watch = Watch(held)

        def close() -> None:
            watch.close()
            held.close()

        return cls(
            np.frombuffer(consumer, np.uint8),
            np.frombuffer(pages, np.uint8),
            Journal(np.frombuffer(memory, np.uint8, length), connections, records.JOURNAL_PENDING),
            Spill(HashMap(held.unfinished)),
            np.frombuffer(word, np.uint8, told),
            held.ring,
            close,
            patience,
            retain,
            np.frombuffer(begun, records.BEGINNINGS, held.sensors),
            watch,
        )

    def prepare(self, view: View, size: int, cadence: Cadence, attention: int, streams: Streams) -> Cycle:
        """A cycle, which is a single call of ring.c; see Source."""
        state = self._state
        state[_SIZE], state[_STOP] = size, attention
        state[_PERIOD], state[_FOLLOW] = round(cadence.period * 1e9), round(cadence.follow * 1e9)
        state[_FOUND] = _NOTHING
        if not cadence.period:
            if self._cycle_events:
                self._cycle_events.close()
            self._cycle_events = self._epoll()
            self._cycle_events.register(attention, select.EPOLLIN)
            state[_EVENT] = self._cycle_events.fileno()
        self._share(streams)
        self._prepared[3] = view, streams
        if isinstance(view, Columns):
            state[_COLUMNS], state[_COLUMNS_COUNT] = view.plan.ctypes.data, len(view.plan)
            state[_USUAL] = len(view.usual)
            self._prepared[1], self._rows = view.usual, None
        else:
            state[_COLUMNS_COUNT] = 0
            self._rows, self._views = view.dtype, {}
            self._show(0, view.dtype)
        return self._cycle

    def last_batch(self) -> np.ndarray | None:
        """What the last cycle found; where that did not fit the view of rows, the next ones do."""
        state = self._state
        count = state[_FOUND]
        if count == _NOTHING:
            return None
        if self._rows is not None:
            self._show(state[_START] & state[_MASK], self._rows)
        return self._messages(state[_START], count, batch_dtype(state[_SIZE]))

    def _show(self, start: int, dtype: np.dtype) -> None:
        """Let cycles give slices of a view of the whole data, in which a row begins at `start`.

        Records of one size keep their places until the ring has gone round.
        """
        stride = _stride(dtype)
        phase = start % stride
        view = self._views.get(phase)
        if view is None:
            if len(self._views) == _VIEWS:
                self._views.clear()
            count = (len(self._pages) - mmap.PAGESIZE - phase - _HEADER - dtype.itemsize) // stride + 1
            view = self._views[phase] = self._messages(phase, max(0, count), dtype)
        self._state[_PHASE], self._prepared[1] = phase, view

    def _messages(self, position: int, count: int, dtype: np.dtype) -> np.ndarray:
        """A view of so many records from a position on."""
        start = mmap.PAGESIZE + (position & (self.size - 1)) + _HEADER
        return np.ndarray(count, dtype, self._pages, start, (_stride(dtype),))

    def look(self) -> None:
        """What has been stored until now is what `next` gives; see Source."""
        if self._events:
            self._events.poll(0)  # `fileno` tells of what is stored from now on
        self._state[_END] = _LOOK
        if self._watch and time.monotonic() >= self._watch.due:
            self._tend(self._watch)

    def _tend(self, watch: Watch) -> None:
        """Raise DetachedError if the ring is no longer written, and has been read to its end."""
        watch.rest()
        self._library.midstream_give_back(self._reader)
        state, stored = self._state, self._stored
        if stored == state[_SEEN] == state[_POSITION]:
            watch.check(stored)
        state[_SEEN] = stored

    def next(self, size: int, streams: Streams) -> np.ndarray | Segment | None:
        """The messages of `size` bytes that come next, one a record and in order: a view of the ring, valid
        until it is released. Else the next record, copied; None if there is none yet."""
        state = self._state
        position = state[_POSITION]
        if size:
            self._share(streams)
            if count := self._regular(self._reader, size):
                return self._messages(position, count, batch_dtype(size))
        if state[_POSITION] == state[_END] or not self._library.midstream_next(self._reader):
            return None
        position = state[_POSITION]
        start = mmap.PAGESIZE + (position & (self.size - 1)) + _HEADER
        offset, time, connection, length, sensor, port, flags, _ = _HEAD.unpack_from(self._bytes, start)
        payload = start + _HEAD.size
        self._library.midstream_skip(self._reader)
        data = bytes(self._bytes[payload : payload + length])
        return Segment(connection, sensor, port, offset, time, flags, data)

    def _share(self, streams: Streams) -> None:
        """Tell ring.c which connections are open."""
        self._state[_STREAMS] = streams.address

    def restore(self) -> Snapshot | None:
        """What an earlier reader committed."""
        return self._snapshot

    def commit(self, streams: Streams) -> bool:
        """Remember what has been read and give it back to the program; views of it are no longer valid.

        False, and nothing done, while a large message is unfinished and the ring has room for more of it; or
        if the journal has no room for so many connections. Raises KernelError if there is no room for
        unfinished messages; then nothing is done either.
        """
        state = self._state
        if state[_POSITION] == state[_COMMITTED]:
            return True
        if streams.count > self._journal.connections:
            return False
        if streams.has_fresh and streams.fresh_size > self._journal.pending:
            if self.used <= self._patience:
                return False
            for piece in streams.fresh():
                self._spill.keep(state[_POSITION], piece)
            streams.keep()
        pending = streams.pending()
        self._share(streams)
        self._library.midstream_commit(self._reader, pending, len(pending))
        self._spill.forget(streams)
        state[_SPILLED] = self._spill.in_use
        return True

    def fileno(self) -> int:
        """A descriptor that polls readable when something was stored after the last look."""
        if self._events is None:
            self._events = self._epoll()
            self._events.poll(0)
            if self._stored != self._state[_POSITION]:
                self._events.modify(self._event, _STORED)
        return self._events.fileno()

    def _epoll(self) -> select.epoll:
        """Edge-triggered: a ring polls readable as long as anything in it is not given back."""
        events = select.epoll()
        events.register(self._event, _STORED)
        return events

    def close(self) -> None:
        """Let go of the ring."""
        for events in (self._events, self._cycle_events):
            if events:
                events.close()
        self._let_go()

    @property
    def used(self) -> int:
        """Bytes in use: what the reader is not done with, and what it retains."""
        return self._stored - self._state[_RELEASED]

    @property
    def _stored(self) -> int:
        """The position of the program's next record."""
        return int(self._pages[:8].view("<u8")[0])

    @property
    def standing(self) -> Standing:
        """fill: the part that the reader is not done with."""
        state = self._state
        return Standing(
            Status(state[_STATUS]),
            state[_POSITION] != state[_COMMITTED],
            state[_NEWEST],
            (self._stored - state[_COMMITTED]) / self.size,
            self._watch.timer if self._watch else -1,
        )

    def beginnings(self) -> list[Beginning]:
        """What the program has noted until now."""
        since = time.time_ns() - time.monotonic_ns()
        return [
            Beginning(sensor, int(one["port"]), int(one["first"]), int(one["opened"]) + since)
            for sensor, noted in enumerate(self._beginnings)
            for one in noted["of"]
            if one["opened"]
        ]


@cache
def _compiled() -> str:
    return os.fspath(compiler.compile_library(Path(__file__).with_name("ring.c")))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(_compiled())
    reader, number = ctypes.c_void_p, ctypes.c_uint32
    library.midstream_regular.argtypes = [reader, number]
    library.midstream_regular.restype = ctypes.c_uint64
    library.midstream_next.argtypes = [reader]
    library.midstream_skip.argtypes = [reader]
    library.midstream_skip.restype = None
    library.midstream_commit.argtypes = [reader, ctypes.c_char_p, number]
    library.midstream_commit.restype = None
    library.midstream_give_back.argtypes = [reader]
    library.midstream_give_back.restype = None
    return library


def _cycle(prepared: list[object]) -> Cycle:
    """A cycle of ring.c. PyDLL: what makes Python's objects holds Python's lock."""
    make = ctypes.PyDLL(_compiled()).midstream_cycles
    make.argtypes, make.restype = [ctypes.py_object], ctypes.py_object
    cycle: Cycle = make(prepared)
    return cycle


def _stride(dtype: np.dtype) -> int:
    """From a record with a message of this dtype to the next: it has room for whole blocks of payload."""
    return _HEADER + dtype.itemsize + -(dtype.itemsize - RECORD.itemsize) % _BLOCK
