"""How old messages are, and how much they are, without looking at each: marks in each connection.

A mark says that everything up to a message had been stored when so much time was counted (passed.py). Marks
are kept in the database, in tables of their own, so that the next process goes on; what has none when it is
first seen counts as new. A piece, what lies between two marks, is removed as a whole.
"""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    Row,
    String,
    Table,
    delete,
    func,
    insert,
    inspect,
    select,
)

from midstream.storage import schema
from midstream.storage.passed import Clocks, Passed
from midstream.storage.store import FRAME

SAMPLES = 64  # pieces of a connection that was stored before it was first looked at
OVERLAP = 1000  # ids that may be committed later than higher ones

_metadata = MetaData()
_clock = Table(
    "retention_clock",
    _metadata,
    Column("boot", String(36), nullable=False),
    Column("running_ns", BigInteger, nullable=False),
    Column("counted_ns", BigInteger, nullable=False),
    Column("wall_ns", BigInteger, nullable=False),
)
_marks = Table(
    "retention_marks",
    _metadata,
    Column("connection_id", BigInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("counted_ns", BigInteger, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("stream_end", BigInteger, nullable=False),
)


@dataclass(slots=True)
class RetentionMark:
    """sequence: of the last message in front of it, where its frame ends in the stream, and the latest time
    of reception of its piece, by the clock."""

    sequence: int
    counted_ns: int
    received_ns: int
    end: int
    begun_ns: int = 0  # when the first of its piece was seen
    saved: bool = False


@dataclass(slots=True)
class Kept:
    """What there is of a connection: the messages from `first` on, which begin at `start` in the stream."""

    id: int
    token: str | None
    stream: str
    frame: int
    open: bool = True
    first: int = 0
    start: int = 0
    marks: list[RetentionMark] = field(default_factory=list)
    sampled: bool = False

    @property
    def size(self) -> int:
        return self.marks[-1].end - self.start if self.marks else 0


class RetentionMarks:
    """The marks of a database, brought up to date by `look`. piece_bytes, piece_ns: of a piece, about."""

    def __init__(self, clocks: Clocks, piece_bytes: int, piece_ns: int) -> None:
        self._clocks = clocks
        self._piece_bytes, self._piece_ns = piece_bytes, piece_ns
        self._saved_as = -1  # what the database says was counted when it was last saved
        self._gone: list[tuple[int, int]] = []
        self._done: set[int] = set()  # connections that have ended, and of which nothing is left
        self._highest = 0
        self._version = schema.VERSION
        self.passed = Passed.begin(clocks)
        self.kept: dict[int, Kept] = {}

    def look(self, database: Connection, version: int) -> int:
        """See what has come. version: of the tables. Returns how much time is counted now."""
        self._version = version
        self._load(database)
        now = self.passed.now()
        self._find_new(database)
        watched = [kept for kept in self.kept.values() if kept.open]
        still_open = self._still_open(database, [kept.id for kept in watched])
        for kept in watched:
            self._extend(database, kept, now)
            kept.open = kept.id in still_open  # what had ended before does not grow any more
            if not kept.open and not kept.marks:
                self._finish(kept)
        return now

    def save(self, database: Connection) -> None:
        """Write down what was counted, and the newest mark of each connection."""
        _metadata.create_all(database)
        counted = self.passed.now()
        for key, sequence in self._gone:
            database.execute(
                delete(_marks).where(_marks.c.connection_id == key, _marks.c.sequence == sequence)
            )
        self._gone.clear()
        new = [
            (kept, kept.marks[-1]) for kept in self.kept.values() if kept.marks and not kept.marks[-1].saved
        ]
        rows = [
            {
                "connection_id": kept.id,
                "sequence": mark.sequence,
                "counted_ns": mark.counted_ns,
                "received_ns": mark.received_ns,
                "stream_end": mark.end,
            }
            for kept, mark in new
        ]
        if rows:
            database.execute(insert(_marks), rows)
        for _, mark in new:
            mark.saved = True
        passed = self.passed
        database.execute(delete(_clock))
        database.execute(
            insert(_clock).values(
                boot=passed.boot, running_ns=passed.running_ns, counted_ns=counted, wall_ns=passed.wall_ns
            )
        )
        self._saved_as = counted

    def removed(self, kept: Kept, mark: RetentionMark) -> None:
        """The messages up to this mark are gone, but for the last one of a connection that is open."""
        last = kept.open and mark is kept.marks[-1]
        while kept.marks and kept.marks[0].sequence <= mark.sequence - last:
            self._lose(kept, kept.marks.pop(0))
        kept.first, kept.start = mark.sequence + 1 - last, mark.end
        if not kept.marks:
            self._finish(kept)

    def _finish(self, kept: Kept) -> None:
        del self.kept[kept.id]
        self._done.add(kept.id)

    def _lose(self, kept: Kept, mark: RetentionMark) -> None:
        if mark.saved:
            self._gone.append((kept.id, mark.sequence))

    def _load(self, database: Connection) -> None:
        """Begin with what the database says, unless it is what was saved: it may be another one now."""
        there = inspect(database).has_table(_clock.name)
        row = database.execute(select(_clock)).first() if there else None
        if (row.counted_ns if row else -1) == self._saved_as:
            return
        self.kept, self._gone, self._done, self._highest = {}, [], set(), 0
        self.passed, self._saved_as = Passed.begin(self._clocks), -1
        if row is None:
            return
        self.passed = Passed(self._clocks, row.boot, row.running_ns, row.counted_ns, row.wall_ns)
        self._saved_as = row.counted_ns
        self._find_new(database)
        for row in database.execute(select(_marks).order_by(_marks.c.connection_id, _marks.c.sequence)):
            if (kept := self.kept.get(row.connection_id)) is None:
                self._gone.append((row.connection_id, row.sequence))
                continue
            mark = RetentionMark(
                row.sequence, row.counted_ns, row.received_ns, row.stream_end, row.counted_ns, True
            )
            kept.marks.append(mark)

    def _find_new(self, database: Connection) -> None:
        table = schema.connections
        known = table.c.id, table.c.token, table.c.framing, schema.stream_of(self._version)
        for row in database.execute(select(*known).where(table.c.id > self._highest - OVERLAP)).all():
            self._highest = max(self._highest, row.id)
            if row.id not in self.kept and row.id not in self._done:
                self.kept[row.id] = Kept(row.id, row.token, row.stream, FRAME[row.framing or "fixed"])
        self._done = {key for key in self._done if key > self._highest - OVERLAP}

    def _still_open(self, database: Connection, keys: list[int]) -> set[int]:
        table = schema.connections
        found: set[int] = set()
        for start in range(0, len(keys), 500):
            some = table.c.id.in_(keys[start : start + 500])
            found.update(
                database.execute(select(table.c.id).where(some, table.c.closed_ns.is_(None))).scalars()
            )
        return found

    def _extend(self, database: Connection, kept: Kept, now: int) -> None:
        """Put a mark behind what has come, or move the last one there while its piece is small."""
        last = database.execute(_ends(kept.id).order_by(schema.messages.c.sequence.desc()).limit(1)).first()
        if last is None:
            return
        if not kept.sampled:
            self._sample(database, kept, now, last)
            return
        before = kept.marks[-1]
        if last.sequence <= before.sequence:
            return
        start = kept.marks[-2].end if len(kept.marks) > 1 else kept.start
        mark = _mark(last, kept.frame, now)
        if mark.end - start <= self._piece_bytes and now - before.begun_ns <= self._piece_ns:
            mark.begun_ns, mark.received_ns = before.begun_ns, max(before.received_ns, mark.received_ns)
            self._lose(kept, kept.marks.pop())
            kept.marks.append(mark)
        else:
            self._cut(database, kept, now, before.sequence + 1, last.sequence, mark.end - before.end)

    def _sample(self, database: Connection, kept: Kept, now: int, last: Row[Any]) -> None:
        """Marks in what is there already when it is first seen, behind those that were saved."""
        messages = schema.messages
        kept.sampled = True
        first = database.execute(_ends(kept.id).order_by(messages.c.sequence).limit(1)).one()
        kept.first, kept.start = first.sequence, first.stream_offset or 0
        for old in [mark for mark in kept.marks if mark.sequence < first.sequence]:
            self._lose(kept, old)
            kept.marks.remove(old)
        begin, start = kept.first, kept.start
        if kept.marks:
            begin, start = kept.marks[-1].sequence + 1, kept.marks[-1].end
        self._cut(database, kept, now, begin, last.sequence, _mark(last, kept.frame, now).end - start)

    def _cut(self, database: Connection, kept: Kept, now: int, begin: int, last: int, size: int) -> None:
        """Marks for the messages from `begin` to `last`, which have so many bytes: a piece each."""
        messages = schema.messages
        pieces = min(1 + size // max(1, self._piece_bytes), SAMPLES)
        step = max(1, -(-(last + 1 - begin) // pieces))
        for sequence in (*range(begin + step - 1, last, step), last):
            query = _ends(kept.id).where(messages.c.sequence <= sequence)
            found = database.execute(query.order_by(messages.c.sequence.desc()).limit(1)).one()
            mark = _mark(found, kept.frame, now)
            if kept.marks:
                mark.received_ns = max(kept.marks[-1].received_ns, mark.received_ns)
            if not kept.marks or kept.marks[-1].sequence < mark.sequence:
                kept.marks.append(mark)


def _ends(key: int) -> Any:
    messages = schema.messages
    return select(
        messages.c.sequence,
        messages.c.received_ns,
        messages.c.stream_offset,
        func.length(messages.c.payload).label("size"),
    ).where(messages.c.connection_id == key)


def _mark(row: Row[Any], frame: int, now: int) -> RetentionMark:
    end = 0 if row.stream_offset is None else row.stream_offset + row.size + frame
    return RetentionMark(row.sequence, now, row.received_ns, end, now)
