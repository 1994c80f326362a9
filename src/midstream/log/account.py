"""Does the log have all that the hardworker held? What it lacks, connection by connection, and why.

A byte that was held, and is not in the log, is pending: in the hardworker's spool, or still coming from
the logger's own kernel. Or it came again: a sensor sends what was not acknowledged once more on its next
connection, and numbered messages tell that these are the same. Or it is gone: forgotten by a full spool,
or a hole. Connections that no hardworker has told of are not judged.
Two streams of a sensor are as two sensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from midstream.log.continuity import Hole, Numbering
from midstream.log.selection import EVERYTHING, Selection
from midstream.log.spans import Span, Spans
from midstream.storage.store import FRAME
from midstream.storage.stored import Extent, Log, Source, StoredConnection, source_of
from midstream.told import OPEN, UNKNOWN, UNTOLD, HeldConnection, Knowledge, Pending

Kind = Literal["again", "coming", "pending", "forgotten", "hole"]
Verdict = Literal["complete", "pending", "forgotten", "hole"]

_VERDICTS: dict[Kind, Verdict] = {
    "again": "complete",
    "coming": "pending",
    "pending": "pending",
    "forgotten": "forgotten",
    "hole": "hole",
}
WORST: tuple[Verdict, ...] = ("hole", "forgotten", "pending", "complete")
_COMES, _GONE = ("coming", "pending"), ("forgotten", "hole")
SAME = 60 * 10**9  # ns: what opened so much earlier or later is another connection, if no number tells
_WORDS: dict[Kind, str] = {
    "again": "not stored with it, and stored when the sensor sent them again",
    "coming": "on their way from the logger's kernel to its database",
    "pending": "pending in the hardworker's spool",
    "forgotten": "forgotten by the full spool",
    "hole": "missing: a hole",
}


@dataclass(frozen=True, slots=True)
class Lack:
    """Bytes `start` to `end` of a connection's stream were held, and are not stored. messages: how many whole
    ones, None where their size is not fixed."""

    kind: Kind
    start: int
    end: int
    messages: int | None

    def __str__(self) -> str:
        what = f"bytes {self.start:,} to {self.end - 1:,}"
        if self.messages is not None:
            what = f"{self.messages:,} messages, {what},"
        return f"{what} are {_WORDS[self.kind]}"


@dataclass(slots=True)
class Account:
    """What was held of a connection, where it is stored, if at all, and what of it is not."""

    held: HeldConnection
    connections: list[StoredConnection] = field(default_factory=list)
    lacks: list[Lack] = field(default_factory=list)

    @property
    def unheard(self) -> bool:
        """Did its logger die, and has the hardworker not told yet how far it was held in the end?"""
        return self.held.state == OPEN and any(row.lost for row in self.connections)

    @property
    def verdict(self) -> Verdict:
        found = {_VERDICTS[lack.kind] for lack in self.lacks} | ({"pending"} if self.unheard else set())
        return next((verdict for verdict in WORST if verdict in found), "complete")

    def explains(self, start: int, end: int) -> bool:
        """Is it known why these bytes are not stored?"""
        return start < end and not Spans([(start, end)]).without(
            Spans((lack.start, lack.end) for lack in self.lacks)
        )

    def lines(self) -> list[str]:
        """What it lacks, in words."""
        if self.held.state == UNTOLD:
            untold = f"the hardworker could not tell of connections with {self.held.bytes:,} bytes"
            return [f"{untold}: whether they are stored is not known"]
        words = ["its logger died, and the hardworker has not told yet how it ended"] if self.unheard else []
        return words + [str(lack) for lack in self.lacks]


@dataclass(frozen=True, slots=True)
class Accounts:
    """Of a whole log. known: some hardworker has told it what was held."""

    known: bool
    all: list[Account]
    by_id: dict[int, Account]  # of connections of the log
    holes: dict[int, Hole]
    """Numbers that are missing in front of a connection, and that no account explains."""

    def elsewhere(self, selection: Selection = EVERYTHING) -> list[Account]:
        """Those of which nothing is stored, and something was held: of selected connections none."""
        return [
            each
            for each in self.all
            if not selection.connections
            and not each.connections
            and each.lacks
            and selection.wants(source_of(each.held))
        ]

    def of_sources(self) -> dict[Source, list[Account]]:
        """By stream and sensor."""
        found: dict[Source, list[Account]] = {}
        for each in self.all:
            found.setdefault(source_of(each.held), []).append(each)
        return found


def accounts(
    log: Log,
    told: Knowledge,
    connections: Sequence[StoredConnection],
    extents: Mapping[int, Extent],
    *,
    numbers: bool = True,
) -> Accounts:
    """Of what the log was told. `told` must have been read before the others. numbers: say what is missing
    between connections, too, for which their messages are read. Raises StoreError."""
    numbering = Numbering(log, connections, extents)
    if not told.held and not told.pending:
        return Accounts(False, [], {}, numbering.holes() if numbers else {})
    ledger = _Ledger(log, told, connections, extents, numbering)
    by_id = {row.id: account for account in ledger.accounts for row in account.connections}
    return Accounts(True, ledger.accounts, by_id, ledger.unexplained() if numbers else {})


def summary(log: Log) -> dict[str, dict[str, Any]]:
    """By sensor, cheaply: the worst verdict of its connections, and how much is pending or missing. A gap
    in the middle of a connection is not looked for. All streams of a sensor count. Raises StoreError."""
    told = log.told()
    extents = log.extents(gaps=False)
    found = accounts(log, told, log.connections(), extents, numbers=False)
    by_sensor: dict[str, list[Account]] = {}
    for each in found.all:
        by_sensor.setdefault(each.held.sensor, []).append(each)
    rows = {}
    for sensor, all_of_it in by_sensor.items():
        lacks = [lack for account in all_of_it for lack in account.lacks]
        waiting = [each for each in told.pending if each.sensor == sensor]
        rows[sensor] = {
            "verdict": worst(all_of_it),
            "connections": len(all_of_it),
            "pending_bytes": sum(lack.end - lack.start for lack in lacks if lack.kind in _COMES),
            "lost_bytes": sum(lack.end - lack.start for lack in lacks if lack.kind in _GONE),
            "lost_messages": sum(lack.messages or 0 for lack in lacks if lack.kind in _GONE),
            "oldest_pending_ns": min((each.oldest_ns for each in waiting), default=None),
        }
    return rows


def worst(accounts: Iterable[Account]) -> Verdict:
    found = {account.verdict for account in accounts}
    return next(each for each in WORST if each in found)


class _Ledger:
    """Goes through what was held, the oldest first."""

    def __init__(
        self,
        log: Log,
        told: Knowledge,
        connections: Sequence[StoredConnection],
        extents: Mapping[int, Extent],
        numbering: Numbering,
    ) -> None:
        self._log, self._extents, self._numbering = log, extents, numbering
        self._framings = {source_of(connection): connection.framing for connection in connections}
        self._sizes = _sizes(connections, extents)
        held = sorted([*told.held, *_only_pending(told)], key=lambda each: each.opened_ns)
        self._rows = _matched(held, connections)
        self._pending = _matched(held, told.pending)
        self._forgotten = sorted(told.forgotten, key=lambda each: each.first_ns)
        self._left = {
            each: each.bytes + FRAME[self._framings.get(source_of(each), "fixed")] * each.messages
            for each in self._forgotten
        }
        self.accounts: list[Account] = []
        before: dict[Source, Account] = {}
        for each in held:
            account = self._account(each, before.get(source_of(each)))
            self.accounts.append(account)
            if account.held.bytes:
                before[source_of(each)] = account

    def unexplained(self) -> dict[int, Hole]:
        """Missing numbers are explained where as many messages of the sensor are lacking anyway."""
        room: dict[Source, float] = {}
        for account in self.accounts:
            for lack in account.lacks:
                if lack.kind != "again":
                    count = float("inf") if lack.messages is None else lack.messages
                    source = source_of(account.held)
                    room[source] = room.get(source, 0) + count
        left = {}
        for key, hole in self._numbering.holes().items():
            source = source_of(hole.connection)
            if hole.messages <= room.get(source, 0):
                room[source] -= hole.messages
            else:
                left[key] = hole
        return left

    def _account(self, held: HeldConnection, before: Account | None) -> Account:
        rows = sorted(self._rows.get(held, []), key=lambda row: -(_messages(self._extents.get(row.id))))
        account = Account(held, rows)
        size = self._size(held, rows)
        if held.state == UNTOLD:
            account.lacks.append(Lack("hole", 0, held.bytes, None))
            return account
        wanted = held.bytes - held.bytes % size if size else held.bytes
        there = Spans(span for row in rows for span in self._stored(row))
        spool = Spans((each.start, each.end) for each in self._pending.get(held, []))
        rest = Spans([(0, wanted)]).without(there)
        account.lacks += [_lack("pending", span, size) for span in rest.within(spool)]
        open_end = self._grows(held, rows, there)
        for span in rest.without(spool):
            if open_end is not None and span[0] >= open_end:
                account.lacks.append(_lack("coming", span, size))
            elif self._came_again(account, before, span, size):
                account.lacks.append(_lack("again", span, size))
            else:
                account.lacks += self._gone(held, span, size)
        account.lacks.sort(key=lambda lack: lack.start)
        return account

    def _grows(self, held: HeldConnection, rows: list[StoredConnection], there: Spans) -> int | None:
        """From which byte on the rest may still come; None if nothing comes any more."""
        if held.state == OPEN or any(row.state == OPEN for row in rows):
            return there.end
        return None

    def _stored(self, row: StoredConnection) -> Iterable[Span]:
        """What of a stream is stored, or was, and is removed on purpose."""
        extent = self._extents.get(row.id)
        if extent is None:
            # Where everything was removed, nothing says how much that was.
            end = row.size if row.size is not None else 1 << 62 if row.pruned else 0
            return [(0, end)] if row.pruned else [(end - len(row.unfinished), end)]
        if extent.start is None or extent.end is None:
            return [(0, 1 << 62)]  # version 1 did not write down where messages lie
        spans: list[Span] = [(0, extent.start)] if row.pruned and extent.first == row.pruned else []
        if extent.messages == extent.last + 1 - extent.first:
            spans.append((extent.start, extent.end))
        else:
            spans += self._pieces(row, extent)
        if row.size is not None and row.unfinished:
            spans.append((row.size - len(row.unfinished), row.size))
        return spans

    def _pieces(self, row: StoredConnection, extent: Extent) -> Iterable[Span]:
        """The same of a connection with gaps, which only its messages tell."""
        position = extent.first
        while position <= extent.last:
            messages, position = self._log.piece(row, position, extent.last + 1)
            for message in messages:
                assert message.offset is not None and message.end is not None
                yield message.offset, message.end

    def _came_again(self, account: Account, before: Account | None, span: Span, size: int) -> bool:
        """Are these messages stored with later connections?"""
        if not size:
            return False
        first, end = -(-span[0] // size), span[1] // size
        for row in account.connections:
            if row.id in self._extents:
                return self._numbering.is_elsewhere(row, first, end)
        if before is None or not before.connections:
            return False
        # Nothing of it is stored: it began at most behind what the connection before it held.
        lacking = sum(lack.messages or 0 for lack in before.lacks)
        return self._numbering.goes_on(before.connections[0], lacking + end)

    def _gone(self, held: HeldConnection, span: Span, size: int) -> Iterable[Lack]:
        """Bytes that nobody has any more: a full spool forgot them, as far as it says so."""
        start, end = span
        for each in self._forgotten:
            taken = min(end - start, self._left[each])
            if source_of(each) == source_of(held) and held.opened_ns <= each.last_ns and taken:
                yield _lack("forgotten", (start, start + taken), size)
                self._left[each] -= taken
                start += taken
        if start < end:
            yield _lack("hole", (start, end), size)

    def _size(self, held: HeldConnection, rows: Sequence[StoredConnection]) -> int:
        """Of a message, 0 where it is not fixed, or nothing tells."""
        if any(row.framing != "fixed" for row in rows):
            return 0
        known = [self._sizes[row.id] for row in rows if row.id in self._sizes]
        return known[0] if known else self._sizes.get(source_of(held), self._sizes.get(held.stream, 0))


def _sizes(
    connections: Iterable[StoredConnection], extents: Mapping[int, Extent]
) -> dict[int | Source | str, int]:
    """The fixed size of messages: by connection, of the newest connection of a sensor's stream, and of the
    newest of the stream."""
    found: dict[int | Source | str, int] = {}
    for connection in connections:
        source, extent = source_of(connection), extents.get(connection.id)
        if connection.framing != "fixed":
            found[source] = found[connection.stream] = 0
        elif extent and extent.start is not None and extent.end is not None:
            size = (extent.end - extent.start) // (extent.last + 1 - extent.first)
            found[connection.id] = found[source] = found[connection.stream] = size
    return found


_Known = TypeVar("_Known", StoredConnection, Pending)


def _matched(held: Sequence[HeldConnection], others: Iterable[_Known]) -> dict[HeldConnection, list[_Known]]:
    """What belongs to each connection that was held: by stream, sensor, port and first number, else by the
    time."""
    ports: dict[tuple[Source, int], list[HeldConnection]] = {}
    for each in held:
        ports.setdefault((source_of(each), each.port), []).append(each)
    found: dict[HeldConnection, list[_Known]] = {}
    for other in others:
        candidates = ports.get((source_of(other), other.port), [])
        if other.first not in (None, UNKNOWN):
            candidates = [each for each in candidates if each.first == other.first]
        else:
            candidates = [each for each in candidates if abs(each.opened_ns - other.opened_ns) <= SAME]
        if candidates:
            nearest = min(candidates, key=lambda each: abs(each.opened_ns - other.opened_ns))
            found.setdefault(nearest, []).append(other)
    return found


def _only_pending(told: Knowledge) -> list[HeldConnection]:
    """Connections of which nothing is told yet but what waits in the spool."""
    known = {each for waiting in _matched(told.held, told.pending).values() for each in waiting}
    ends: dict[tuple[Source, int, int, int], int] = {}
    for each in told.pending:
        if each not in known:
            key = source_of(each), each.port, each.first, each.opened_ns
            ends[key] = max(each.end, ends.get(key, 0))
    return [
        HeldConnection(sensor, port, first, opened_ns, end, OPEN, True, stream)
        for ((stream, sensor), port, first, opened_ns), end in ends.items()
    ]


def _lack(kind: Kind, span: Span, size: int) -> Lack:
    start, end = span
    return Lack(kind, start, end, max(0, end // size + -start // size) if size else None)


def _messages(extent: Extent | None) -> int:
    return extent.messages if extent else 0
