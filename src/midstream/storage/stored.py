"""What the logger has stored, as its readers see it, whatever database it is in.

Readers hold nothing there and can change nothing: a reader that is slow, or follows for days, is not in the
logger's way.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from midstream.closing import Closing
from midstream.config import DATA
from midstream.storage.run import Run
from midstream.storage.store import FRAME
from midstream.told import ArrivalTimes, Forgotten, HeldConnection, Knowledge, Pending

if TYPE_CHECKING:
    from midstream.fields import Layout

MAX_ROWS = 4096  # messages in a piece
MAX_BYTES = 8 << 20  # of their payload: a message is taken whole, so one that is longer exceeds it

Source = tuple[str, str]
"""Whose messages: the stream's name, and the sensor's address."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredConnection:
    """A sensor's connection. closed_ns is None while it is open, or if the logger never saw its end (then it
    is `lost`); so is `size`, the bytes of its stream. Messages with a sequence below `pruned` were removed on
    purpose. token: the logger's name for it. first: TCP's sequence number of the stream's first byte, if
    it is known. spooled: it came by the hardworker's spool. stream: the kind of its messages."""

    id: int
    sensor: str
    port: int
    opened_ns: int
    closed_ns: int | None
    size: int | None
    digest: str | None
    reset: bool
    reason: str
    unfinished: bytes
    framing: str
    layout: "Layout | None"
    pruned: int
    token: str = ""
    lost: bool = False
    first: int | None = None
    spooled: bool = False
    stream: str = DATA

    @property
    def state(self) -> str:
        """open, closed (by the sensor's FIN), reset, or lost."""
        if self.closed_ns is None:
            return "lost" if self.lost else "open"
        return "reset" if self.reset else "closed"


def source_of(what: "StoredConnection | HeldConnection | Pending | Forgotten") -> Source:
    """Whose messages something has, or tells of. Two streams of one sensor have nothing in common."""
    return what.stream, what.sensor


def named(source: Source) -> str:
    """Whose messages, for a person: imu/10.83.0.11; of the stream `data`, which may be the only one there is,
    the sensor alone."""
    stream, sensor = source
    return sensor if stream == DATA else f"{stream}/{sensor}"


def told_open(connections: list[StoredConnection]) -> list[StoredConnection]:
    """The same, the oldest first, those marked as lost that have no end and are not open any more.

    Their logger is known to have ended, by its own machine or by a later boot of it; or the same port of the
    same sensor has opened another connection of the stream since.
    """
    ended: dict[str, bool] = {}  # by the name of the run
    boots: dict[str, str] = {}  # the newest of each machine
    ports: set[tuple[Source, int]] = set()
    told = []
    for connection in reversed(connections):
        name, run = connection.token.partition(".")[0], Run.parse(connection.token)
        place = source_of(connection), connection.port
        lost = place in ports
        ports.add(place)
        if run is not None:
            lost = lost or boots.setdefault(run.machine, run.boot) != run.boot
        if connection.closed_ns is None and not lost and run is not None:
            if name not in ended:
                ended[name] = run.ended
            lost = ended[name]
        told.append(replace(connection, lost=True) if lost and connection.closed_ns is None else connection)
    return told[::-1]


class Arrival(NamedTuple):
    """When the last byte of a message came to the hardworker, since 1970 by its clock; how long after that
    the logger received it, the difference of the clocks taken out; and how much that may be wrong."""

    time_ns: int
    delay_ns: int
    error_ns: int


class StoredMessage(NamedTuple):
    """A message of a connection. received_ns: since 1970. offset and crc: None where an older logger did not
    write them down. arrival: None where no hardworker has told it (yet)."""

    connection: StoredConnection
    sequence: int
    received_ns: int
    payload: bytes
    offset: int | None
    crc: int | None
    arrival: Arrival | None = None

    @property
    def end(self) -> int | None:
        """Where in the stream its frame ends."""
        return (
            None if self.offset is None else self.offset + len(self.payload) + FRAME[self.connection.framing]
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """What there is of a connection: how many messages, the first and the last of them."""

    messages: int
    first: int
    last: int
    first_ns: int
    last_ns: int
    start: int | None  # where in the stream the frame of the first begins, and where that of the last ends
    end: int | None


class Log(Closing, Protocol):
    """A database of the logger's, for reading. Everything raises StoreError if it cannot be read.

    A log is used by one thread at a time.
    """

    name: str  # its URL, without a password

    def connections(self) -> list[StoredConnection]:
        """All connections, the oldest first."""

    def extents(self, *, gaps: bool = True) -> dict[int, Extent]:
        """What there is of each connection that has messages, by its id. gaps: False: as if there were none,
        which is cheaper where messages have to be counted."""

    def last_sequences(self) -> dict[int, int]:
        """The sequence of each connection's last message, by its id; cheaper than `extents`."""

    def first_since(self, connection: StoredConnection, since_ns: int, /) -> int:
        """Where to begin: no message with a lower sequence was received at `since_ns` or later.

        It may be far too early: where only reading the messages tells, it is the first one.
        """

    def piece(
        self, connection: StoredConnection, start: int, stop: int, max_bytes: int = MAX_BYTES
    ) -> tuple[list[StoredMessage], int]:
        """The next messages of a connection from sequence `start`, below `stop`; and where to go on.

        At most MAX_ROWS; none follows when there are `max_bytes` or MAX_BYTES of payload.
        """

    def pruned(self, connection: StoredConnection) -> int:
        """How many messages of a connection were removed on purpose until now: it may have become more."""

    def told(self) -> Knowledge:
        """What hardworkers have told the logger. Read it before `extents`: what it speaks of came earlier."""

    def arrivals(
        self, connection: StoredConnection, start: int, end: int, since_ns: int, /
    ) -> list[ArrivalTimes]:
        """What hardworkers have told of when these bytes of a connection came, whose `first` is known. The
        logger received none of them before since_ns."""

    def faults(self) -> list[str]:
        """What is wrong with the database as a whole; nothing if it is sound."""

    def readings_table(self, connection: StoredConnection, /) -> str | None:
        """Which table has, or should have, the typed columns of a connection's messages. None: this database
        has none."""

    def readings(
        self, connection: StoredConnection, names: list[str], first: int, last: int, /
    ) -> dict[int, tuple[Any, ...]]:
        """The typed columns of messages `first` to `last`, by sequence."""
