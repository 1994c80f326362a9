"""The ring, mapped into this process and read without a system call."""

import mmap
import select
import time
from collections.abc import Callable
from typing import Self, get_args

import numpy as np

from midstream.config import DATA
from midstream.ebpf import records, ring_server
from midstream.ebpf.hashmap import HashMap
from midstream.ebpf.records import RECORD
from midstream.errors import KernelError
from midstream.framing import Framing
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.messages import Format, Message, Totals, batch_dtype, joined
from midstream.hardworker.source import Beginning, Cycle, Standing, Status
from midstream.hardworker.spill import Spill
from midstream.hardworker.views import Columns, View
from midstream.hardworker.watch import Watch
from midstream.network import MAX_SENSORS

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
    the kernel maps them, or as a test lays them out. `journal`, for so many `connections`, and `spill` say
    what the last reader committed, and where reading resumes. `word`: what the daemon says that the logger
    has committed, for which at most `retain` bytes of the ring are retained. `event` becomes readable when
    something is stored. `close` lets go. `patience`: bytes of the ring that unfinished messages may hold
    before they are copied out. `beginnings` are the program's notes, per sensor, and `watch` tells whether
    the ring is still in use.
    """

    def __init__(
        self,
        consumer: np.ndarray,
        pages: np.ndarray,
        journal: np.ndarray,
        connections: int,
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
        self._producer = pages.data[:8].cast("Q")  # of all ways to read eight bytes the shortest
        self._stream = DATA
        self._rows: np.dtype | None = None  # if cycles give these,
        self._views: dict[int, np.ndarray] = {}  # of which
        self._connections, self._spill = connections, spill
        self._event, self._let_go = event, close
        self._beginnings = np.zeros(0, records.BEGINNINGS) if beginnings is None else beginnings
        self._events: select.epoll | None = None  # for `fileno`,
        self._cycle_events: select.epoll | None = None  # and for cycles without a period
        self._watch = watch
        self._reader = RingReader(
            consumer,
            pages,
            journal,
            word,
            copy_size=records.journal_copy_size(connections),
            connections=connections,
            patience=patience,
            retain=retain,
            timer=watch.timer if watch else 0,
        )
        self.message: Callable[[], Message | None] = self._reader.message
        """The next message; its payload is copied."""
        self._reader.restore(spill.load(self._reader.unfinished()))
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
            # All at once: else each page is a fault when its first message comes.
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            pages = mmap.mmap(held.ring, page + 2 * size, flags, mmap.PROT_READ, offset=page)
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
            np.frombuffer(memory, np.uint8, length),
            connections,
            Spill(HashMap(held.unfinished)),
            np.frombuffer(word, np.uint8, told),
            held.ring,
            close,
            patience,
            retain,
            np.frombuffer(begun, records.BEGINNINGS, held.sensors),
            watch,
        )

    def begin(self, form: Format, cadence: Cadence, attention: int) -> None:
        """Say what messages are and when to look; see Source."""
        event, self._stream = 0, form.stream
        self._none = np.empty(0, batch_dtype(form.size if form.framing == "fixed" else 1))
        if not cadence.period:
            self._cycle_events = self._epoll()
            self._cycle_events.register(attention, select.EPOLLIN)
            event = self._cycle_events.fileno()
        self._reader.begin(
            framing=get_args(Framing).index(form.framing),
            size=form.size,
            message=Message,
            addresses=form.addresses,
            stream=form.stream,
            stop=attention,
            event=event,
            period=round(cadence.period * 1e9),
            follow=round(cadence.follow * 1e9),
        )

    def prepare(self, view: View | None) -> Cycle:
        """A cycle, which is a single call of ring.c; see Source."""
        if view is None:
            return Cycle(self._reader.rest, self._found, self._status)
        columns = view if isinstance(view, Columns) else None
        self._reader.prepare(
            plan=columns.plan if columns else _NO_COLUMNS,
            values=columns.usual if columns else [],
            kept=view,
        )
        self._rows, self._views = None, {}
        if not columns:
            self._rows = view.dtype
            self._show(0, view.dtype)
        return Cycle(self._reader.cycle, self._found, self._status)

    def _status(self) -> Status:
        return Status(self._reader.status)

    def _found(self) -> np.ndarray | None:
        """What the last cycle found; where that did not fit the view of rows, the next ones do."""
        reader = self._reader
        count = reader.found
        if count == _NOTHING:
            return None
        if not count:
            return self._none
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

    def look(self) -> bool:
        """What has been stored until now is what `rows` and `message` give; see Source."""
        if self._events:
            self._events.poll(0)  # `fileno` tells of what is stored from now on
        self._reader.look()
        if self._watch and time.monotonic() >= self._watch.due:
            self._tend(self._watch)
        return self._stored != self._reader.position

    def _tend(self, watch: Watch) -> None:
        """Raise DetachedError if the ring is no longer written, and has been read to its end."""
        watch.rest()
        reader, stored = self._reader, self._stored
        reader.give_back()
        if stored == reader.seen == reader.position:
            watch.check(stored)
        reader.seen = stored

    def rows(self) -> np.ndarray:
        """A view of the ring as far as messages lie in it one a record and in order; behind that they are put
        together."""
        reader = self._reader
        position, dtype = reader.position, batch_dtype(reader.size)
        count = reader.regular()
        batch = self._messages(position, count, dtype) if count else self._none
        if reader.position == reader.end:
            return batch
        rows = np.empty(reader.most_rows(), dtype)
        return joined(batch, rows[: reader.rows(rows.view(np.uint8))])

    def commit(self) -> bool:
        """Remember what has been read and give it back to the program; views of it are no longer valid.

        False, and nothing done, if the journal has no room for so many connections. Raises KernelError if
        there is no room for unfinished messages; then nothing is done either.
        """
        reader = self._reader
        if not reader.uncommitted:
            return True
        if not reader.commit():
            if reader.connections > self._connections:
                return False
            for piece in reader.crowding():
                self._spill.keep(reader.position, piece)
            reader.keep_crowding()
            reader.commit()
        if self._spill.in_use:
            self._spill.forget(reader.unfinished())
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
        self._reader.abandon()
        for events in (self._events, self._cycle_events):
            if events:
                events.close()
        self._let_go()

    @property
    def _stored(self) -> int:
        """The position of the program's next record."""
        return self._producer[0]

    @property
    def standing(self) -> Standing:
        """fill: the part that the reader is not done with."""
        reader = self._reader
        return Standing(
            bool(reader.uncommitted),
            reader.newest,
            (self._stored - reader.committed) / self.size,
            self._watch.timer if self._watch else -1,
            reader.connections,
            Totals(*reader.totals()),
            self._heard,
        )

    def _heard(self) -> np.ndarray:
        """Of the sensors, what has not been read yet included."""
        times = np.zeros(MAX_SENSORS, "<u8")
        self._reader.heard(times)
        return times

    def beginnings(self) -> list[Beginning]:
        """What the program has noted until now."""
        since = time.time_ns() - time.monotonic_ns()
        return [
            Beginning(sensor, int(one["port"]), int(one["first"]), int(one["opened"]) + since, self._stream)
            for sensor, noted in enumerate(self._beginnings)
            for one in noted["of"]
            if one["opened"]
        ]


def _stride(dtype: np.dtype) -> int:
    """From a record with a message of this dtype to the next: it has room for whole blocks of payload."""
    return _HEADER + dtype.itemsize + -(dtype.itemsize - RECORD.itemsize) % _BLOCK
