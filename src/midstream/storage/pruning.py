"""Making room: the oldest messages go, whole, in transactions so short that the logger hardly waits.

`pruned` of a connection says how many went, so that nobody takes them for lost. The file of SQLite does not
shrink: the logger uses the room again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, column, delete, func, inspect, select, table, text, update
from sqlalchemy.exc import SQLAlchemyError

from midstream.errors import StoreError
from midstream.storage import opening, schema, telling
from midstream.storage.marks import Kept, RetentionMark, RetentionMarks
from midstream.storage.opening import failed, open_engine, stored_version
from midstream.storage.passed import KERNEL, Clocks

ROWS = 2000  # that a statement removes
HOLD = 0.04  # seconds after which a transaction ends
TURN = 10_000  # messages, more than the logger stores at a time, that go in one that has to be exclusive
LONGEST = 0.4  # seconds of such a one at most
PAUSE = 0.01  # seconds between two of them at least, else as long as one took: the logger has its turn
SAVE = 10.0  # seconds after which it is written down how old the messages are
BEHIND = 16  # a part of keep_bytes by which it may be exceeded before the logger has to wait for it
PIECES = 64  # of keep_bytes
SPANS = 64  # of keep_ns
FUTURE = 60 * 10**9  # ns by which a message may be later than the clock


@dataclass(slots=True)
class Removed:
    """What went, or would go: `before_ns` is the time of the oldest messages that stay."""

    messages: int = 0
    bytes: int = 0  # of payload
    connections: int = 0  # that lost messages
    before_ns: int | None = None


class Pruner:
    """Keeps a database within `keep_ns`, by the time that is counted (passed.py), and `keep_bytes`, by a look
    now and then. 0: all is kept. told() says what a person should know."""

    def __init__(
        self,
        url: str,
        *,
        keep_ns: int,
        keep_bytes: int,
        told: Callable[[str], None],
        clocks: Clocks = KERNEL,
    ) -> None:
        self._url, self._keep_ns, self._keep_bytes, self._told = url, keep_ns, keep_bytes, told
        endless = 1 << 62
        self._marks = RetentionMarks(clocks, (keep_bytes or endless) // PIECES, (keep_ns or endless) // SPANS)
        self._save_at = self._forget_at = 0.0
        self._removed = False  # something, since what was told of it was

    def look(self) -> Removed:
        """Remove what has to go now. Raises StoreError."""
        removed = Removed()
        with _opened(self._url, read_only=False) as eraser:
            eraser.weighs = False
            with eraser.engine.connect() as database:
                now = self._marks.look(database, eraser.version)
            if told := self._marks.passed.told():
                self._told(told)
            if time.monotonic() >= self._save_at:
                with eraser.writing() as database:
                    self._marks.save(database)
                self._save_at = time.monotonic() + SAVE
            if self._keep_ns:
                cutoff = now - self._keep_ns
                old = {
                    key: mark
                    for key, kept in self._marks.kept.items()
                    for mark in kept.marks
                    if mark.counted_ns <= cutoff
                }
                eraser.remove_pieces(self._marks, old, removed)
            if self._keep_bytes:
                _remove_oldest(eraser, self._marks, self._keep_bytes, removed)
            self._removed = self._removed or bool(removed.messages)
            if self._removed and time.monotonic() >= self._forget_at:
                eraser.forget_told()
                self._removed, self._forget_at = False, time.monotonic() + SAVE
        return removed


def prune(
    url: str,
    *,
    keep_ns: int | None,
    keep_bytes: int | None,
    now_ns: int | None = None,
    dry_run: bool = False,
) -> Removed:
    """Remove what is older than `keep_ns` by this host's clock, and then the oldest messages until the stored
    streams have at most `keep_bytes`. None: keep all. It removes up to a 64th of each connection too much.

    StoreError if the database is not there, is of version 1, or cannot be written, and for `keep_ns` if its
    messages are from the future.
    """
    removed = Removed()
    with _opened(url, read_only=dry_run) as eraser:
        marks = RetentionMarks(KERNEL, (keep_bytes or 0) // PIECES, 0)
        with eraser.engine.connect() as database:
            marks.look(database, eraser.version)
        if keep_ns is not None:
            now = time.time_ns() if now_ns is None else now_ns
            _refuse_future(marks, now, eraser.name)
            removed.before_ns = now - keep_ns
            for kept in list(marks.kept.values()):
                eraser.remove_before(marks, kept, now - keep_ns, removed)
        if keep_bytes is not None:
            _remove_oldest(eraser, marks, keep_bytes, removed)
        if removed.messages and not dry_run:
            eraser.forget_told()
    return removed


def _refuse_future(marks: RetentionMarks, now: int, name: str) -> None:
    latest = max((mark.received_ns for kept in marks.kept.values() for mark in kept.marks), default=0)
    if latest > now + FUTURE:
        raise StoreError(
            f"{name}: its newest message is {(latest - now) / 1e9:,.0f} s later than this host's clock: one "
            "of them is wrong, so no message's age is known. What to do: set the clock; to make room all the "
            "same, use --keep-size"
        )


def _remove_oldest(eraser: "_Eraser", marks: RetentionMarks, keep_bytes: int, removed: Removed) -> None:
    """By when they were first seen, and by the clock where that was at once."""
    total = sum(kept.size for kept in marks.kept.values())
    if total <= keep_bytes:
        return
    eraser.exclusive = total > keep_bytes + keep_bytes // BEHIND
    pieces = sorted(
        (
            (mark.counted_ns, mark.received_ns, kept.id, mark)
            for kept in marks.kept.values()
            for mark in kept.marks
        ),
        key=lambda piece: piece[:3],
    )
    going: dict[int, RetentionMark] = {}
    for _, received, key, mark in pieces:
        if total <= keep_bytes:
            break
        total -= mark.end - (going[key].end if key in going else marks.kept[key].start)
        removed.before_ns = max(removed.before_ns or 0, received + 1)
        going[key] = mark
    eraser.remove_pieces(marks, going, removed)


class _Eraser:
    """Removes messages from a database. exclusive: there are too many, so that the logger and this take turns
    as long as each needs. weighs: say how many bytes they had."""

    def __init__(self, engine: Engine, name: str, dry_run: bool) -> None:
        self.engine, self.name = engine, name
        self.exclusive = False
        self._dry_run = dry_run
        self.weighs = True
        with engine.connect() as database:
            self.version = stored_version(database, name)
            if self.version < schema.NOTES_PRUNED:
                raise StoreError(
                    f"{name}: its tables have version 1, which cannot note what was removed. "
                    "What to do: start the logger once, which brings them up to date"
                )
            self._tables = set(inspect(database).get_table_names())
            # Those for a hardworker's words name streams since there are any.
            self._was_told = self.version >= schema.NAMES_STREAMS
        self._touched: set[int] = set()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction."""
        with self.engine.connect() as database:
            if self.engine.dialect.name == "sqlite":
                database.exec_driver_sql("PRAGMA synchronous = NORMAL")  # the logger's next commit syncs
                opening.begin_writing(database, opening.LOCK_TIMEOUT)
            elif self.exclusive and self.engine.dialect.name == "postgresql":
                database.execute(text("LOCK TABLE messages IN SHARE ROW EXCLUSIVE MODE"))
            yield database
            database.commit()

    def forget_told(self) -> None:
        """What a hardworker has told of connections of which nothing is left."""
        if self._was_told:
            with self.writing() as database:
                telling.forget(database)

    def remove_pieces(
        self, marks: RetentionMarks, last: Mapping[int, RetentionMark], removed: Removed
    ) -> None:
        """Everything up to a mark of each connection; of an open one the last message stays: there the logger
        goes on."""
        known = [(marks.kept[key], mark) for key, mark in last.items()]
        jobs = [(kept, mark.sequence - (kept.open and mark is kept.marks[-1])) for kept, mark in known]
        self._remove(jobs, removed)
        for kept, mark in known:
            marks.removed(kept, mark)

    def remove_before(self, marks: RetentionMarks, kept: Kept, cutoff: int, removed: Removed) -> None:
        """The messages in front of the first that came at the cutoff or later, by the clock."""
        messages = schema.messages
        query = select(func.min(messages.c.sequence)).where(
            messages.c.connection_id == kept.id, messages.c.received_ns >= cutoff
        )
        with self.engine.connect() as database:
            first = database.execute(query).scalar()
        if first is None:
            if kept.marks:
                self.remove_pieces(marks, {kept.id: kept.marks[-1]}, removed)
            return
        self._remove([(kept, first - 1)], removed)
        for mark in [mark for mark in kept.marks if mark.sequence < first]:
            marks.removed(kept, mark)

    def _remove(self, jobs: Iterable[tuple[Kept, int]], removed: Removed) -> None:
        """The messages of each up to a sequence, many in a transaction, which is short all the same."""
        steps = (
            (kept, begin, min(begin + ROWS, last + 1))
            for kept, last in jobs
            for begin in range(kept.first, last + 1, ROWS)
        )
        following = next(steps, None)
        while following is not None:
            with self.engine.connect() if self._dry_run else self.writing() as database:
                began, done = time.monotonic(), 0
                while following is not None:
                    kept, begin, below = following
                    if self.weighs:
                        removed.bytes += self._size(database, kept, begin, below)
                    count = self._rows(database, kept, begin, below)
                    removed.messages += count
                    done += count
                    if count and kept.id not in self._touched:
                        self._touched.add(kept.id)
                        removed.connections += 1
                    following = next(steps, None)
                    if time.monotonic() - began > (LONGEST if self.exclusive and done < TURN else HOLD):
                        break
            if not self._dry_run:
                time.sleep(PAUSE if self.exclusive else max(PAUSE, time.monotonic() - began))

    def _rows(self, database: Connection, kept: Kept, begin: int, below: int) -> int:
        """Remove them, or count them."""
        if not self._dry_run:
            return self._delete(database, kept, below)
        messages = schema.messages
        among = and_(messages.c.connection_id == kept.id, messages.c.sequence.between(begin, below - 1))
        return int(database.execute(select(func.count()).where(among)).scalar_one())

    def _size(self, database: Connection, kept: Kept, begin: int, below: int) -> int:
        messages = schema.messages
        among = and_(messages.c.connection_id == kept.id, messages.c.sequence.between(begin, below - 1))
        size = select(func.coalesce(func.sum(func.length(messages.c.payload)), 0)).where(among)
        return int(database.execute(size).scalar_one())

    def _delete(self, database: Connection, kept: Kept, below: int) -> int:
        """Note it first: another database may have taken the place of the one that was looked at."""
        known = schema.connections
        noted = database.execute(
            update(known)
            .where(known.c.id == kept.id, known.c.token.is_not_distinct_from(kept.token))
            .values(pruned=below)
        )
        if noted.rowcount != 1:
            raise StoreError(
                f"{self.name}: connection {kept.id} is another one than a moment ago: was the database "
                "replaced? Nothing of it is removed now"
            )
        called = schema.readings_table(kept.stream, self.version)
        if called in self._tables:
            readings = table(called, column("connection_id"), column("sequence"))
            database.execute(
                delete(readings).where(readings.c.connection_id == kept.id, readings.c.sequence < below)
            )
        messages = schema.messages
        gone = delete(messages).where(messages.c.connection_id == kept.id, messages.c.sequence < below)
        return database.execute(gone).rowcount


@contextmanager
def _opened(url: str, *, read_only: bool) -> Iterator[_Eraser]:
    engine, name = open_engine(url, read_only=read_only)
    try:
        yield _Eraser(engine, name, read_only)
    except SQLAlchemyError as error:
        raise failed(name, error) from error
    finally:
        engine.dispose()
