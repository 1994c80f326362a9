"""Is everything there, once, and as it was stored?

Of each connection: sequences without holes, frames that follow one another in the stream, the checksum of
each row, the stream's end, its SHA-256 where the logger knows it, the typed columns, and numbers that are
missing between one connection of a sensor and the next. A hole of messages that were removed to make room
is none. Where the hardworker has told what it held, account.py says what the log lacks, and why: that is
no fault of what is stored.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from midstream.errors import StoreError
from midstream.framing import PREFIX
from midstream.log.account import Account, Accounts, accounts
from midstream.log.messages import nobody
from midstream.log.selection import EVERYTHING, Selection
from midstream.storage.store import FRAME, checksum
from midstream.storage.stored import Extent, Log, StoredConnection, StoredMessage

MAX_FAULTS = 10  # that are told of a connection; the others are counted


@dataclass(slots=True)
class LogVerdict:
    """What was found of a connection; of the database as a whole where there is none. account: what it lacks
    of what was held; None if nobody has told of it."""

    connection: StoredConnection | None
    account: Account | None = None
    messages: int = 0
    bytes: int = 0  # of payload
    gaps: int = 0  # messages that are missing
    digest: str = (
        "none"  # "right", "wrong", or "none": the logger knows none, or part of the stream was removed
    )
    sha256: str | None = None  # of the stream as it is stored; None if it has not ended, or part is not there
    faults: list[str] = field(default_factory=list)
    more: int = 0  # faults that are not told

    @property
    def right(self) -> bool:
        return not self.faults

    def fault(self, text: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(text)
        else:
            self.more += 1


def verify(
    log: Log,
    connections: list[StoredConnection],
    looked_at: Callable[[int], object] = nobody,
    selection: Selection = EVERYTHING,
) -> Iterator[LogVerdict]:
    """A verdict for each of the connections, and for the database before them if it is damaged itself; after
    them for what was held, and has no connection in the log, of the selection."""
    verdict = LogVerdict(None)
    extents: dict[int, Extent] | None = None
    try:
        for fault in log.faults():
            verdict.fault(fault)
    except StoreError as error:
        verdict.fault(str(error))
    try:
        told = log.told()
        extents = log.extents()
    except StoreError as error:
        verdict.fault(str(error))
    if verdict.faults:
        yield verdict
    if extents is None:
        return
    found = Accounts(False, [], {}, {})
    with suppress(StoreError):  # which reading the connection tells
        found = accounts(log, told, log.connections(), extents)
    for connection in connections:
        verdict = LogVerdict(connection, found.by_id.get(connection.id))
        if hole := found.holes.get(connection.id):
            verdict.gaps += hole.messages
            verdict.fault(str(hole))
        try:
            _Check(log, verdict, connection, looked_at).run(extents.get(connection.id))
        except StoreError as error:
            verdict.fault(f"cannot be read after {verdict.messages:,} messages: {error}")
        yield verdict
    for account in found.elsewhere(selection):
        yield LogVerdict(None, account)


class _Check:
    """Goes through the messages of a connection."""

    def __init__(
        self,
        log: Log,
        verdict: LogVerdict,
        connection: StoredConnection,
        looked_at: Callable[[int], object],
    ) -> None:
        self._log = log
        self._verdict = verdict
        self._connection = connection
        self._looked_at = looked_at
        self._frame = FRAME[connection.framing]
        self._stream = hashlib.sha256()
        self._whole = True  # every byte of the stream so far went into _stream
        self._sequence = connection.pruned
        self._offset: int | None = 0 if not connection.pruned else None  # where the next frame must begin

    def run(self, extent: Extent | None) -> None:
        position, stop = 0, extent.last + 1 if extent else 0
        while position < stop:
            messages, following = self._log.piece(self._connection, position, stop)
            self._looked_at(len(messages))
            for message in messages:
                self._check(message)
            if messages:
                self._check_readings(messages)
            position = following
        self._check_end()

    def _check(self, message: StoredMessage) -> None:
        verdict, sequence = self._verdict, message.sequence
        verdict.messages += 1
        verdict.bytes += len(message.payload)
        if sequence < self._connection.pruned:
            verdict.fault(f"message {sequence}: there, and noted as removed")
        elif sequence < self._sequence:
            verdict.fault(f"message {sequence}: there twice")
            self._whole, self._offset = False, None
        elif sequence > self._sequence:
            self._skip(message)
        self._sequence = max(self._sequence, sequence + 1)
        frame = len(message.payload) + self._frame
        if message.offset is None or message.crc is None:  # version 1 did not write them down
            self._offset = None if self._offset is None else self._offset + frame
        else:
            expected = checksum(sequence, message.offset, message.received_ns, message.payload)
            if expected != message.crc:
                verdict.fault(f"message {sequence}: changed after it was stored (its checksum is wrong)")
            if self._offset is not None and message.offset != self._offset:
                what = "missing in front of" if message.offset > self._offset else "stored twice with"
                verdict.fault(f"message {sequence}: {abs(message.offset - self._offset)} bytes {what} it")
                self._whole = False
            self._offset = message.offset + frame
        if self._connection.framing == "length":
            self._stream.update(len(message.payload).to_bytes(PREFIX, "big"))
        self._stream.update(message.payload)
        if self._connection.framing == "line":
            self._stream.update(b"\n")

    def _skip(self, message: StoredMessage) -> None:
        """Messages are not there: were they removed to make room since this began, or does the account say
        where they are?"""
        verdict, sequence = self._verdict, message.sequence
        removed = 0 if verdict.more else self._log.pruned(self._connection)
        if removed < sequence:
            missing = max(self._sequence, removed)
            verdict.gaps += sequence - missing
            start = self._offset if removed <= self._sequence else None
            if not self._is_explained(start, message.offset):
                verdict.fault(f"messages {missing} to {sequence - 1}: missing")
        self._whole, self._offset = False, None

    def _is_explained(self, start: int | None, end: int | None) -> bool:
        account = self._verdict.account
        return account is not None and start is not None and end is not None and account.explains(start, end)

    def _check_end(self) -> None:
        connection, verdict = self._connection, self._verdict
        if connection.closed_ns is None:
            return
        end = None if self._offset is None else self._offset + len(connection.unfinished)
        if connection.size is not None and end is not None and end != connection.size:
            if self._log.pruned(connection) > self._sequence:
                return  # the rest was removed to make room since this began
            if self._is_explained(self._offset, connection.size - len(connection.unfinished)):
                self._whole = False
            else:
                verdict.fault(f"its stream had {connection.size} bytes, and {end} are stored")
        if connection.pruned or not self._whole:
            return
        self._stream.update(connection.unfinished)
        verdict.sha256 = self._stream.hexdigest()
        if connection.digest:
            verdict.digest = "right" if verdict.sha256 == connection.digest else "wrong"
            if verdict.digest == "wrong":
                verdict.fault("the SHA-256 of its stream is another than when it was received")

    def _check_readings(self, messages: list[StoredMessage]) -> None:
        """The typed columns say what the messages say."""
        layout, called = self._connection.layout, self._log.readings_table(self._connection)
        if layout is None or called is None:
            return
        names = [each.name for each in layout.columns]
        fitting = [message for message in messages if len(message.payload) == layout.size]
        values = layout.values(message.payload for message in fitting)
        expected = {message.sequence: row for message, row in zip(fitting, values, strict=True)}
        stored = self._log.readings(self._connection, names, messages[0].sequence, messages[-1].sequence)
        for sequence, row in expected.items():
            if sequence not in stored:
                self._verdict.fault(f"message {sequence}: not in the table {called}")
            elif not all(map(_same, row, stored[sequence])):
                self._verdict.fault(f"message {sequence}: the table {called} says something else")


def _same(mine: object, stored: object) -> bool:
    if isinstance(mine, float) and isinstance(stored, float):
        return mine == stored or math.isclose(mine, stored, rel_tol=1e-15)
    return mine == (bytes(stored) if isinstance(stored, memoryview) else stored)
