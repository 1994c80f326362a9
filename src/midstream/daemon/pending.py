"""What waits in the hardworker's spool, connection by connection, for the log to call it pending.

Read with the driver alone, which is all that a daemon needs of a database, and only when the file has
changed. For each connection two look-ups in an index say it, however much is there.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from midstream.config import DATA
from midstream.told import UNKNOWN, HeldConnection, Pending

MOST = 4096  # connections that are told
_PATIENCE = 0.1  # seconds to wait for the spool's own transaction

_QUERY = """
SELECT sensor, port, coalesce(first, ?), opened_ns, head.stream_offset,
       tail.stream_offset + length(tail.payload)
         + CASE framing WHEN 'length' THEN 4 WHEN 'line' THEN 1 ELSE 0 END,
       tail.sequence + 1 - head.sequence, head.received_ns, {stream}
FROM connections
JOIN messages AS head ON head.connection_id = id
  AND head.sequence = (SELECT min(sequence) FROM messages WHERE connection_id = id)
JOIN messages AS tail ON tail.connection_id = id
  AND tail.sequence = (SELECT max(sequence) FROM messages WHERE connection_id = id)
ORDER BY id LIMIT ?
"""
_CLOSED = """
SELECT {stream}, sensor, port, coalesce(first, ?), closed_ns IS NOT NULL FROM connections ORDER BY id LIMIT ?
"""
_NAMES_STREAMS = "SELECT count(*) FROM pragma_table_info('connections') WHERE name = 'stream'"

_Name = tuple[str, str, int, int]  # stream, sensor, port, first


class SpoolFile:
    """The spool's database at a path; it need not be there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None
        self.pending: list[Pending] = []
        self._closed: dict[_Name, bool] = {}
        self.fault = ""  # why it could not be read just now

    def look(self) -> list[Pending]:
        """What waits there now; what was known before where it cannot be read just now."""
        seen = [_state(self._path), _state(self._path.with_name(f"{self._path.name}-wal"))]
        if seen != self._seen:
            try:
                self.pending, self._closed = self._read() if seen[0] else ([], {})
                self._seen, self.fault = seen, ""
            except sqlite3.Error as error:  # its logger makes its tables, or holds it
                self.fault = f"{self._path}: cannot be read just now ({error})"
                self._closed = {}
        return self.pending

    def has_all(self, stream: HeldConnection) -> bool | None:
        """Has the file all that its logger will store of a connection that has ended? None if it says
        nothing of it: it does not know it yet, has given it away, or cannot be read."""
        return self._closed.get((stream.stream, stream.sensor, stream.port, stream.first))

    def _read(self) -> tuple[list[Pending], dict[_Name, bool]]:
        address = f"file:{quote(str(self._path))}?mode=ro"
        with closing(sqlite3.connect(address, _PATIENCE, uri=True)) as database:
            (has_names,) = database.execute(_NAMES_STREAMS).fetchone()  # not where an older logger has stored
            stream = f"coalesce(stream, '{DATA}')" if has_names else f"'{DATA}'"
            pending = [
                Pending(*row) for row in database.execute(_QUERY.format(stream=stream), (UNKNOWN, MOST))
            ]
            rows = database.execute(_CLOSED.format(stream=stream), (UNKNOWN, MOST)).fetchall()
        return pending, {(stream, *name): bool(closed) for stream, *name, closed in rows}


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
