"""Answers a hardworker's replay: what the logger stored before the hardworker's ring began.

The hardworker names a stream ("data" if it names none) and, per sensor, the connections that the ring of that
stream had first, as it knows them when it asks.
When all that came before is committed the logger says {"seen": true}, and the hardworker names them again:
whatever has reached the logger by then has passed the ring, and is known there. Then come the messages.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from midstream.config import DATA, Config
from midstream.errors import NetworkError
from midstream.line import Head, Line
from midstream.page import Row, pack
from midstream.storage.databases import open_log
from midstream.storage.stored import Log, StoredConnection

PAGE_BYTES = 1 << 20
QUIET = 0.3  # seconds without a new row, more than a commit takes, after which all of it is stored
LONGEST = 10.0  # seconds to wait for that
REQUEST_BYTES = 1 << 20  # of a question: it names at most 4096 sensors
ANSWERS = 4  # at a time: a connection to the database each


class FirstConnection(NamedTuple):
    """One of the first connections of a sensor that a ring had. first: as StoredConnection has it. opened_ns:
    by the hardworker's clock."""

    port: int
    first: int
    opened_ns: int


Beginnings = Mapping[str, frozenset[FirstConnection]]
"""Of each sensor that is asked for, by its address."""


class Replaying:
    """Answers questions, a few at a time."""

    def __init__(self, config: Config) -> None:
        self._url = config.database_url
        self._quiet = max(QUIET, 2 * config.logger.batch_interval)
        self._answering = threading.Semaphore(ANSWERS)

    def answer(self, line: Line, asked: Head) -> None:
        since, asked_before = asked.get("since"), _beginnings(asked)
        stream = asked.get("stream", DATA)  # a version before streams has not named it
        if not isinstance(since, int):
            raise NetworkError("no question of a replay")
        with self._answering, open_log(self._url) as log:
            self._settle(log, stream, asked_before)
            known, last = _of_stream(log, stream), log.last_sequences()
            line.send({"seen": True})
            for connection in before(known, _beginnings(line.receive(REQUEST_BYTES)[0])):
                if connection.id in last:
                    _send(line, log, connection, last[connection.id], since)
        line.send({"end": True})

    def _settle(self, log: Log, stream: object, beginnings: Beginnings) -> None:
        """Return when nothing of those connections is still being stored."""
        give_up = time.monotonic() + LONGEST
        found: dict[int, int] | None = None
        since = time.monotonic()
        while time.monotonic() < min(since + self._quiet, give_up):
            asked = {connection.id for connection in before(_of_stream(log, stream), beginnings)}
            now = {key: last for key, last in log.last_sequences().items() if key in asked}
            if now != found:
                found, since = now, time.monotonic()
            time.sleep(self._quiet / 4)


def _of_stream(log: Log, stream: object) -> list[StoredConnection]:
    return [connection for connection in log.connections() if connection.stream == stream]


def before(known: Iterable[StoredConnection], beginnings: Beginnings) -> list[StoredConnection]:
    """The connections of a stream that its ring did not have, in the order of `known`.

    The logger numbers its own connections in the order in which they came: those in front of the first that
    the ring had, too, are meant. Where it has none of these, or a connection came by the spool and so has a
    number of later, the time decides at which it opened.
    """
    known = list(known)
    firsts: dict[str, int] = {}
    shared: set[int] = set()
    for connection in known:
        named = {(begun.port, begun.first) for begun in beginnings.get(connection.sensor, ())}
        if (connection.port, connection.first) in named:
            shared.add(connection.id)
            if not connection.spooled:
                earliest = firsts.get(connection.sensor, connection.id)
                firsts[connection.sensor] = min(earliest, connection.id)

    def is_before(connection: StoredConnection) -> bool:
        if connection.sensor not in beginnings or connection.id in shared:
            return False
        if connection.sensor in firsts and not connection.spooled:
            return connection.id < firsts[connection.sensor]
        times = [begun.opened_ns for begun in beginnings[connection.sensor]]
        return not times or connection.opened_ns < min(times)

    return [connection for connection in known if is_before(connection)]


def _beginnings(asked: Head) -> Beginnings:
    try:
        return {
            str(sensor): frozenset(FirstConnection(*map(int, each)) for each in named)
            for sensor, named in asked["beginnings"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NetworkError("no question of a replay") from error


def _send(line: Line, log: Log, connection: StoredConnection, last: int, since: int) -> None:
    for page in _pages(log, connection, last, since):
        head = {
            "connection": connection.id,
            "sensor": connection.sensor,
            "port": connection.port,
            "opened_ns": connection.opened_ns,
            "messages": len(page),
        }
        line.send(head, pack(page))


def _pages(log: Log, connection: StoredConnection, last: int, since: int) -> Iterator[list[Row]]:
    """A page is read at once: nothing stays open in the database while the hardworker takes its time."""
    following = log.first_since(connection, since)
    while following <= last:
        found, following = log.piece(connection, following, last + 1, PAGE_BYTES)
        page = [
            Row(each.sequence, each.offset, each.received_ns, each.crc, each.payload)
            for each in found
            if each.received_ns >= since
        ]
        if page:
            yield page
