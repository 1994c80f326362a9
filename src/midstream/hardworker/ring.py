"""The ring, mapped into this process and read without a system call."""

import mmap
import select
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import numpy as np

from midstream.ebpf import records, ring_server
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

try:
    from midstream.hardworker._ring import RingReader
except ImportError as error:
    raise ImportError(
        "this installation of midstream has no module that reads rings: it needs Linux on x86-64 or aarch64. "
        f"In a copy of the sources `make setup` makes it ({error})"
    ) from error

_HEADER = 8  # before each record: length, busy and discard bits, page offset
_NOTHING = (1 << 64) - 1  # as `found` in ring.h
_BLOCK = 64  # a record has room for whole blocks of payload
_VIEWS = 1024  # of the whole ring, kept for cycles
_STORED = select.EPOLLIN | select.EPOLLET
_NO_COLUMNS = np.zeros((0, 4), "<u8")


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
        self._pages = pages
        self._rows: np.dtype | None = None  # if cycles give these,
        self._views: dict[int, np.ndarray] = {}  # of which
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
        self._reader = RingReader(
            consumer,
            pages,
            journal.memory,
            word,
            copy_size=journal.copy_size,
            connections=journal.connections,
            retain=retain,
            position=self._snapshot.position if self._snapshot else int(consumer[:8].view("<u8")[0]),
            timer=watch.timer if watch else 0,
        )
        self._reader.spilled = spill.in_use
        # A reader killed in `commit` may have left this undone.
        self._reader.give_back()

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
        event = 0
        if not cadence.period:
            if self._cycle_events:
                self._cycle_events.close()
            self._cycle_events = self._epoll()
            self._cycle_events.register(attention, select.EPOLLIN)
            event = self._cycle_events.fileno()
        columns = view if isinstance(view, Columns) else None
        self._reader.streams = streams.address
        self._reader.prepare(
            size=size,
            stop=attention,
            event=event,
            period=round(cadence.period * 1e9),
            follow=round(cadence.follow * 1e9),
            plan=columns.plan if columns else _NO_COLUMNS,
            values=columns.usual if columns else [],
            kept=(view, streams),
        )
        self._rows, self._views = None, {}
        if not columns:
            self._rows = view.dtype
            self._show(0, view.dtype)
        return self._reader.cycle

    def last_batch(self) -> np.ndarray | None:
        """What the last cycle found; where that did not fit the view of rows, the next ones do."""
        reader = self._reader
        count = reader.found
        if count == _NOTHING:
            return None
        if self._rows is not None:
            self._show(reader.start & (self.size - 1), self._rows)
        return self._messages(reader.start, count, batch_dtype(reader.size))

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
        self._reader.show(phase, view)

    def _messages(self, position: int, count: int, dtype: np.dtype) -> np.ndarray:
        """A view of so many records from a position on."""
        start = mmap.PAGESIZE + (position & (self.size - 1)) + _HEADER
        return np.ndarray(count, dtype, self._pages, start, (_stride(dtype),))

    def look(self) -> None:
        """What has been stored until now is what `next` gives; see Source."""
        if self._events:
            self._events.poll(0)  # `fileno` tells of what is stored from now on
        self._reader.look()
        if self._watch and time.monotonic() >= self._watch.due:
            self._tend(self._watch)

    def _tend(self, watch: Watch) -> None:
        """Raise DetachedError if the ring is no longer written, and has been read to its end."""
        watch.rest()
        reader, stored = self._reader, self._stored
        reader.give_back()
        if stored == reader.seen == reader.position:
            watch.check(stored)
        reader.seen = stored

    def next(self, size: int, streams: Streams) -> np.ndarray | Segment | None:
        """The messages of `size` bytes that come next, one a record and in order: a view of the ring, valid
        until it is released. Else the next record, copied; None if there is none yet."""
        reader = self._reader
        position = reader.position
        if size:
            reader.streams = streams.address
            if count := reader.regular(size):
                return self._messages(position, count, batch_dtype(size))
        segment = reader.next()
        return segment and Segment(*segment)

    def restore(self) -> Snapshot | None:
        """What an earlier reader committed."""
        return self._snapshot

    def commit(self, streams: Streams) -> bool:
        """Remember what has been read and give it back to the program; views of it are no longer valid.

        False, and nothing done, while a large message is unfinished and the ring has room for more of it; or
        if the journal has no room for so many connections. Raises KernelError if there is no room for
        unfinished messages; then nothing is done either.
        """
        reader = self._reader
        if reader.position == reader.committed:
            return True
        if streams.count > self._journal.connections:
            return False
        if streams.has_fresh and streams.fresh_size > self._journal.pending:
            if self.used <= self._patience:
                return False
            for piece in streams.fresh():
                self._spill.keep(reader.position, piece)
            streams.keep()
        reader.streams = streams.address
        reader.commit(streams.pending())
        self._spill.forget(streams)
        reader.spilled = self._spill.in_use
        return True

    def fileno(self) -> int:
        """A descriptor that polls readable when something was stored after the last look."""
        if self._events is None:
            self._events = self._epoll()
            self._events.poll(0)
            if self._stored != self._reader.position:
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
        return self._stored - self._reader.released

    @property
    def _stored(self) -> int:
        """The position of the program's next record."""
        return int(self._pages[:8].view("<u8")[0])

    @property
    def standing(self) -> Standing:
        """fill: the part that the reader is not done with."""
        reader = self._reader
        return Standing(
            Status(reader.status),
            reader.position != reader.committed,
            reader.newest,
            (self._stored - reader.committed) / self.size,
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


def _stride(dtype: np.dtype) -> int:
    """From a record with a message of this dtype to the next: it has room for whole blocks of payload."""
    return _HEADER + dtype.itemsize + -(dtype.itemsize - RECORD.itemsize) % _BLOCK
