"""The room that the spool may take: when it is used up the oldest messages go, or nothing more comes in.

What goes is counted in the same transaction: `forgotten` has a row for each stream of a sensor, a hole with
a name.
SQLite numbers the rows of `messages` in the order in which they were stored, so the oldest are the first.
The file does not shrink: SQLite uses its free pages again.
"""

import ctypes
import errno
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, text, update

from midstream.closing import Closing
from midstream.config import Config
from midstream.storage.schema import connections, forgotten
from midstream.storage.store import Unavailable

ROW = 64  # bytes of a message's row and of its index besides the payload, about
CONNECTION = 256  # bytes of a connection's row and of its index, about
BLOCK = 512  # bytes, of st_blocks
LOG = 16 << 20  # bytes that SQLite's log (the file with -wal) takes at most, about
AHEAD = 4 << 20  # bytes of the file itself that are reserved at a time
MARGIN = 16  # pages for what leads to the rows

_OLDEST = text("SELECT rowid, connection_id, sequence, received_ns, length(payload) FROM messages ORDER BY 1")
_OF = text(
    "SELECT sensor, coalesce(stream, 'data'), CASE WHEN closed_ns IS NULL THEN "
    "(SELECT max(sequence) FROM messages WHERE connection_id = :id) END FROM connections WHERE id = :id"
)
_FORGET_CONNECTIONS = text(
    "DELETE FROM connections WHERE id IN (SELECT id FROM connections WHERE closed_ns IS NOT NULL "
    "AND NOT EXISTS (SELECT 1 FROM messages WHERE connection_id = connections.id) ORDER BY id LIMIT :count)"
)
_FORGET = text(
    "DELETE FROM messages WHERE rowid <= :last AND rowid NOT IN (SELECT value FROM json_each(:kept))"
)

_KEEP_SIZE = 1  # linux/falloc.h
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

log = logging.getLogger("midstream.logger")


@dataclass(slots=True)
class _Hole:
    """What one stream of a sensor loses."""

    first_ns: int
    last_ns: int
    messages: int = 0
    bytes: int = 0

    def add(self, received_ns: int, size: int) -> None:
        self.first_ns, self.last_ns = min(self.first_ns, received_ns), max(self.last_ns, received_ns)
        self.messages += 1
        self.bytes += size


class Reserve(Closing):
    """Blocks that the spool at `path` has before it needs them: others may fill the disk meanwhile.

    They lie behind the file's end, where SQLite does not see them. Make it before SQLite opens the file, and
    close it afterwards: its descriptor's end is that of all locks of this process (fcntl_locking(2)).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._reserves = True  # does this kind of disk?
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def growth(self, size: int, needed: int, free: int, most: int) -> int:
        """By how much a file of `size` bytes may grow and leave `free` bytes free; it wants `needed` now, and
        `most` at last.
        """
        disk = os.statvfs(self._path.parent if self._file is None else self._file)
        spare = disk.f_bavail * disk.f_frsize - free
        if self._file is None or not self._reserves:
            return max(0, spare)
        with suppress(OSError):
            if os.stat(self._log).st_blocks * BLOCK < LOG and spare > LOG:
                log = os.open(self._log, os.O_RDWR | os.O_CLOEXEC)
                _allocate(log, LOG)
                os.close(log)
                spare -= LOG
        ahead = os.fstat(self._file).st_blocks * BLOCK - size
        wanted = min(max(needed, AHEAD), most)
        if ahead < needed <= wanted < spare:
            if _allocate(self._file, size + wanted):
                return wanted
            if ctypes.get_errno() == errno.EOPNOTSUPP:
                self._reserves = False
                return spare
        return max(0, ahead)


class Room(Closing):
    """At most `[hardworker] spool_size`, and so much that `spool_free` stays free on the disk of `path`."""

    def __init__(self, config: Config, path: Path) -> None:
        hardworker = config.hardworker
        self._size, self._free = hardworker.spool_size, hardworker.spool_free
        self._forgets = hardworker.spool_full == "forget"
        self._disk = Reserve(path)
        self._told = False

    def close(self) -> None:
        self._disk.close()

    def make(self, database: Connection, sizes: Iterable[int]) -> int:
        """Room for payloads of these sizes. Returns how many messages were forgotten for it.

        Raises Unavailable if the spool is to wait. It takes them if there is nothing to forget: what comes is
        worth more than a limit.
        """
        page, pages, unused = (
            database.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("page_size", "page_count", "freelist_count")
        )
        needed = sum(_stored(size, page) for size in sizes)
        growth = self._disk.growth(pages * page, needed, self._free, self._size - pages * page)
        room = min(self._size - (pages + MARGIN - unused) * page, unused * page + growth)
        if needed <= room:
            self._told = False
            return 0
        if not self._forgets:
            raise Unavailable(
                "the spool is full. What to do: raise hardworker.spool_size, or make room on its disk; with "
                'hardworker.spool_full = "forget" it forgets its oldest messages instead'
            )
        return self._forget(database, needed - room, page)

    def _forget(self, database: Connection, lacking: int, page: int) -> int:
        """The oldest messages go, and if there are none, the oldest connections of which none is left.

        Of an open connection the last message stays: there the logger goes on.
        """
        known: dict[int, tuple[str, str, int | None]] = {}  # sensor, stream, and the sequence that stays
        pruned: dict[int, int] = {}
        holes: dict[tuple[str, str], _Hole] = {}
        kept: list[int] = []
        last = 0
        oldest = database.execution_options(stream_results=True, max_row_buffer=256).execute(_OLDEST)
        for last, key, sequence, received_ns, size in oldest:
            if key not in known:
                whose, of, stays = database.execute(_OF, {"id": key}).one()
                known[key] = whose, of, stays
            sensor, stream, stays = known[key]
            if sequence == stays:
                kept.append(last)
                continue
            pruned[key] = sequence + 1
            holes.setdefault((sensor, stream), _Hole(received_ns, received_ns)).add(received_ns, size)
            lacking -= _stored(size, page)
            if lacking <= 0:
                break
        oldest.close()
        database.execute(_FORGET, {"last": last, "kept": str(kept)})
        for key, below in pruned.items():
            database.execute(update(connections).where(connections.c.id == key).values(pruned=below))
        if lacking > 0:
            database.execute(_FORGET_CONNECTIONS, {"count": 1 + lacking // CONNECTION})
        for (sensor, stream), hole in holes.items():
            _note(database, sensor, stream, hole)
        if holes and not self._told:
            self._told = True
            log.warning(
                "logger: the spool is full and forgets its oldest messages. What to do: raise "
                "hardworker.spool_size, make room on its disk, or see that the logger comes back"
            )
        return sum(hole.messages for hole in holes.values())


def _allocate(file: int, size: int) -> bool:
    """Have blocks for so many bytes, whatever the size of the file. False, and errno, if that cannot be."""
    return bool(_fallocate(file, _KEEP_SIZE, 0, size) == 0)


def _note(database: Connection, sensor: str, stream: str, hole: _Hole) -> None:
    """It follows what this stream of the sensor lost before, if that is still here."""
    table = forgotten.c
    of_stream = table.sensor == sensor, table.stream == stream
    newest = select(func.max(table.first_ns)).where(*of_stream).scalar_subquery()
    noted = database.execute(
        update(forgotten)
        .where(*of_stream, table.first_ns == newest)
        .values(last_ns=hole.last_ns, messages=table.messages + hole.messages, bytes=table.bytes + hole.bytes)
    )
    if not noted.rowcount:
        database.execute(
            insert(forgotten).values(
                sensor=sensor,
                first_ns=hole.first_ns,
                last_ns=hole.last_ns,
                messages=hole.messages,
                bytes=hole.bytes,
                stream=stream,
            )
        )


def _stored(size: int, page: int) -> int:
    """Bytes that a message takes in the file, about: its part of a page, or pages of its own."""
    size += ROW
    return page // (page // size) if size < page else -(-size // page) * page
