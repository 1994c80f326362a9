"""Byte streams put in order again: the reader's half of what TCP calls reassembly.

The program stores every segment with its offset, also one behind a hole, and it may store a byte twice
where segments overlap. Here each byte is delivered once and in order. Of two versions of a byte the one is
delivered that Linux's TCP keeps: the one that came in order, whatever waits behind the hole that it fills.
All work is linear in what arrives, however small its pieces are.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Self

import numpy as np

from midstream.framing import Decoder
from midstream.hardworker.early import PIECE, EarlyRun

OPEN_STREAM = np.dtype(
    [("connection", "<u4"), ("aligned", "<u4"), ("next", "<u8"), ("sequence", "<u8"), ("end", "<u8")]
)
"""struct open of ring.h: an open connection, as the look at a whole batch and the journal need it."""

_ALIGNED, _BROKEN, _NO_END = 1, 2, (1 << 64) - 1
_end_of = attrgetter("end")

Piece = tuple[int, int, bytes]
"""Connection, offset in its stream, and bytes that belong to no message delivered."""


class Stream:
    """One connection's bytes.

    `push` returns what has come in order. Bytes behind a hole wait in `early`: at most as many, in as many
    runs, as the program lets through (EARLY_WINDOW and EARLY_RANGES in connection.h, 1 MiB and 8).
    """

    __slots__ = ("_early", "_kept", "broken", "carry", "decoder", "end", "next", "sequence")

    def __init__(self, start: int = 0, decoder: Decoder | None = None) -> None:
        self.next = start  # the offset of the first byte that has not come in order
        self.end: int | None = None  # where the stream ends, once known
        self.carry = bytearray()  # fixed framing: the delivered part of a message that is not whole yet
        self.decoder = decoder  # other framings: it keeps that part itself
        self.sequence = 0  # other framings: of the next message
        self.broken = False  # the bytes do not follow the framing
        self._early: list[EarlyRun] = []  # sorted; they neither overlap nor touch
        self._kept = start  # bytes before this offset need not be remembered again

    @property
    def has_early(self) -> bool:
        """Are there bytes behind a hole?"""
        return bool(self._early)

    @property
    def finished(self) -> bool:
        """Has every byte up to the stream's end been delivered?

        A stream joined in the middle may end before the message at which it would have begun here.
        """
        return self.end is not None and self.next >= self.end

    @property
    def start(self) -> int:
        """The offset of the first byte that belongs to no message delivered."""
        if self.broken:
            return self.next
        return self.next - (self.decoder.pending if self.decoder else len(self.carry))

    @property
    def fresh_size(self) -> int:
        """At most so many bytes do the fresh pieces have, each with its place in the journal."""
        held = self.next - max(self.start, self._kept)
        return sum(run.fresh_size for run in self._early) + (held + PIECE.size if held > 0 else 0)

    def fresh(self) -> Iterator[tuple[int, bytes]]:
        """The bytes, and their offsets, that belong to no message delivered and were not kept: `push` takes
        them back."""
        count = self.next - max(self.start, self._kept)
        if count > 0:
            held = self.decoder.newest(count) if self.decoder else bytes(self.carry[-count:])
            yield self.next - count, held
        for run in self._early:
            yield from run.fresh_pieces()

    def keep(self) -> None:
        """What is fresh now has been kept."""
        self._kept = self.next
        for run in self._early:
            run.keep()

    def push(self, offset: int, data: bytes) -> bytes:
        """Take a segment; return the bytes that are now next in order, maybe none."""
        end = offset + len(data)
        if offset > self.next:
            for start, stop in self._missing(offset, end):
                self._wait(EarlyRun(start, data[start - offset : stop - offset]))
            return b""
        if end <= self.next:
            return b""
        ready = data[self.next - offset :]
        self.next = end
        return b"".join([ready, *self._reached()])

    def take_back(self, kept: Sequence[tuple[int, bytes]], fresh: Sequence[tuple[int, bytes]]) -> bytes:
        """What an earlier reader had kept, in the order in which it came, and what was fresh; the bytes that
        are next in order. Of two versions the later is right: what came in order after what it replaced."""
        for pieces, is_kept in ((fresh, False), (kept, True)):
            for offset, data in reversed(pieces):
                for start, stop in self._missing(max(offset, self.next), offset + len(data)):
                    run = EarlyRun(start, data[start - offset : stop - offset])
                    if is_kept:
                        run.keep()
                    self._wait(run)
        ready = b"".join(self._reached())
        self._kept = min([self.next, *(offset for offset, _ in fresh)])
        return ready

    def _reached(self) -> list[bytes]:
        """What waited, and is now next in order."""
        ready: list[bytes] = []
        reached = 0
        while reached < len(self._early) and self._early[reached].start <= self.next:
            run = self._early[reached]
            ready += run.behind(self.next)
            self.next = max(self.next, run.end)
            reached += 1
        del self._early[:reached]
        return ready

    def _missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range, behind the hole, that do not wait already."""
        gaps: list[tuple[int, int]] = []
        place = bisect_left(self._early, start, key=_end_of)
        while start < end:
            if place == len(self._early):
                return [*gaps, (start, end)]
            run = self._early[place]
            if start < run.start:
                gaps.append((start, min(end, run.start)))
            start = max(start, run.end)
            place += 1
        return gaps

    def _wait(self, run: EarlyRun) -> None:
        """Put a run between the others, which it does not overlap, and join it with those that it touches."""
        early = self._early
        place = bisect_left(early, run.start, key=_end_of)
        if place < len(early) and early[place].end == run.start:
            run = early.pop(place).joined(run)
        if place < len(early) and early[place].start == run.end:
            run = run.joined(early.pop(place))
        early.insert(place, run)


class Streams:
    """The open connections by number, and beside them the table in which ring.c looks.

    The table is the authority on `next` while a stream is aligned, for ring.c moves it: `checkout` brings a
    stream up to date before it is pushed to, and `checkin` writes it back. In the journal the table and the
    `pending` bytes, with the pieces that were kept elsewhere (spill.py), say all that is needed to go on:
    `restore` reads them.
    """

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}
        self._unaligned: dict[int, Stream] = {}
        self.table = np.zeros(64, OPEN_STREAM)
        self.count = 0
        self._shared = np.zeros(3, "<u8")  # struct streams of ring.h: table, count, delivered
        self.address = self._shared.ctypes.data
        self._share()

    @classmethod
    def restore(
        cls,
        table: np.ndarray,
        pending: bytes,
        kept: Iterable[Piece],
        new_decoder: Callable[[], Decoder | None],
    ) -> Self:
        """The streams that a reader had when it committed."""
        streams = cls()
        for row in table:
            stream = Stream(int(row["next"]), new_decoder())
            stream.sequence = int(row["sequence"])
            stream.end = None if row["end"] == _NO_END else int(row["end"])
            stream.broken = row["aligned"] == _BROKEN
            streams.open(int(row["connection"]), stream)
        of_kept, of_fresh = _by_connection(kept), _by_connection(_unpacked(pending))
        for connection, stream in streams._streams.items():
            data = stream.take_back(of_kept[connection], of_fresh[connection])
            if stream.decoder and not stream.broken:
                stream.decoder.feed(data)
            elif not stream.broken:
                stream.carry += data
            streams.checkin(connection, stream)
        return streams

    @property
    def has_fresh(self) -> bool:
        """May `fresh_size` be more than 0?"""
        return bool(self._unaligned)

    @property
    def fresh_size(self) -> int:
        """At most so many bytes has `pending`."""
        return sum(stream.fresh_size for stream in self._unaligned.values())

    def fresh(self) -> Iterator[Piece]:
        """The bytes of unfinished messages that were not kept."""
        for connection, stream in self._unaligned.items():
            for offset, piece in stream.fresh():
                yield connection, offset, piece

    def keep(self) -> None:
        """What is fresh now has been kept where `restore` gets it from."""
        for stream in self._unaligned.values():
            stream.keep()

    def pending(self) -> bytes:
        """What is fresh, for `restore`."""
        if not self._unaligned:
            return b""
        return b"".join(
            PIECE.pack(connection, len(piece), offset) + piece for connection, offset, piece in self.fresh()
        )

    def start(self, connection: int) -> int | None:
        """The offset of a connection's first byte that belongs to no message delivered; None if it is not
        open."""
        return int(self.table["next"][self._row(connection)]) if connection in self._streams else None

    def __len__(self) -> int:
        return self.count

    def open(self, connection: int, stream: Stream) -> None:
        """Add a connection. Its number is new."""
        if self.count == len(self.table):
            self.table = np.concatenate([self.table, np.zeros(self.count, OPEN_STREAM)])
        row = self._row(connection)
        self.table[row + 1 : self.count + 1] = self.table[row : self.count].copy()
        self._streams[connection] = stream
        self.count += 1
        self._share()
        self.table[row]["connection"] = connection
        self.checkin(connection, stream)

    def checkout(self, connection: int) -> Stream | None:
        """The stream of a connection, up to date; None if it is not open."""
        stream = self._streams.get(connection)
        if stream is not None and connection not in self._unaligned:
            stream.next = int(self.table["next"][self._row(connection)])
        return stream

    def checkin(self, connection: int, stream: Stream) -> None:
        """Write a stream's new state into the table."""
        # Where the end is known, reaching it has to be noticed, which ring.c does not.
        start = stream.start
        aligned = start == stream.next and not stream.has_early and stream.end is None and not stream.broken
        if aligned:
            self._unaligned.pop(connection, None)
        else:
            self._unaligned[connection] = stream
        self.table[self._row(connection)] = (
            connection,
            _BROKEN if stream.broken else aligned,
            start,
            stream.sequence,
            _NO_END if stream.end is None else stream.end,
        )

    def close(self, connection: int) -> None:
        """Forget a connection."""
        del self._streams[connection]
        self._unaligned.pop(connection, None)
        row = self._row(connection)
        self.table[row : self.count - 1] = self.table[row + 1 : self.count].copy()
        self.count -= 1
        self._share()

    @property
    def delivered(self) -> int:
        """How many messages ring.c has found on these streams."""
        return int(self._shared[2])

    def _share(self) -> None:
        self._shared[:2] = self.table.ctypes.data, self.count

    def _row(self, connection: int) -> int:
        return int(np.searchsorted(self.table["connection"][: self.count], connection))


def _by_connection(pieces: Iterable[Piece]) -> defaultdict[int, list[tuple[int, bytes]]]:
    found: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for connection, offset, piece in pieces:
        found[connection].append((offset, piece))
    return found


def _unpacked(pending: bytes) -> Iterator[Piece]:
    position = 0
    while position < len(pending):
        connection, length, offset = PIECE.unpack_from(pending, position)
        position += PIECE.size + length
        yield connection, offset, pending[position - length : position]
