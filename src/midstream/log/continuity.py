"""Is something missing between one connection of a sensor and the next?

TCP leaves no hole within a connection. What never came to this log only the messages can tell, if they are
numbered: those of `midstream sensor` are, and others whose number is an integer called seq, sequence, number,
counter or index (also frame_seq): a field of config.toml, or a key of a JSON object. A number counts only if
it grows by one with each message of every connection. Each stream of a sensor is numbered for itself.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from midstream.log.decoding import parse
from midstream.log.spans import Spans
from midstream.storage.stored import (
    Extent,
    Log,
    Source,
    StoredConnection,
    StoredMessage,
    named,
    source_of,
)

_NAME = re.compile(r"(^|_)(seq|sequence|number|counter|index)(_|$)", re.IGNORECASE)
_HEADER = struct.Struct("<QQ")  # of the messages of `midstream sensor`: number and time
_YEARS = 10 * 365 * 86400 * 10**9  # ns: a clock that is this wrong is none


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers `first` to `last` of a sensor's stream are in none of its connections: they belong before this
    one."""

    connection: StoredConnection
    after: StoredConnection
    name: str
    first: int
    last: int

    @property
    def messages(self) -> int:
        return self.last + 1 - self.first

    def __str__(self) -> str:
        whose = named(source_of(self.connection))
        return (
            f"{self.messages:,} messages of {whose} are missing between connections "
            f"{self.after.id} and {self.connection.id}: {self.name} {self.first} to {self.last}"
        )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The first and last message of a connection, each by the names of its numbers."""

    connection: StoredConnection
    extent: Extent
    first: Mapping[str, int]
    last: Mapping[str, int]

    @property
    def is_whole(self) -> bool:
        return self.extent.messages == self.extent.last + 1 - self.extent.first

    def counts(self, name: str) -> bool:
        steps = self.extent.last - self.extent.first
        return name in self.first and self.last.get(name) == self.first[name] + steps


class Numbering:
    """The numbers of a log's messages, of each stream of each sensor, read when they are asked for.
    `connections`: the oldest first."""

    def __init__(
        self, log: Log, connections: Iterable[StoredConnection], extents: Mapping[int, Extent]
    ) -> None:
        self._log, self._extents = log, extents
        self._connections: dict[Source, list[StoredConnection]] = {}
        for connection in connections:
            self._connections.setdefault(source_of(connection), []).append(connection)
        self._read: dict[Source, tuple[list[_Numbers], list[str]]] = {}

    def holes(self) -> dict[int, Hole]:
        """By the id of the connection in front of which something is missing."""
        found: dict[int, Hole] = {}
        for source in self._connections:
            numbers, counters = self._of(source)
            for name in counters:
                for index, each in enumerate(numbers):
                    hole = _before(each, numbers, index, name)
                    if hole is not None:
                        found.setdefault(each.connection.id, hole)
        return found

    def is_elsewhere(self, connection: StoredConnection, first: int, end: int) -> bool:
        """Are the messages that would be `first` to `end` of this connection in other ones of its sensor?"""
        numbers, counters = self._of(source_of(connection))
        for each in numbers:
            if each.connection.id == connection.id:
                return any(
                    name in each.first
                    and self._has(
                        [other for other in numbers if other is not each],
                        name,
                        each.first[name] + first - each.extent.first,
                        each.first[name] + end - each.extent.first,
                    )
                    for name in counters
                )
        return False

    def goes_on(self, connection: StoredConnection, messages: int) -> bool:
        """Are so many messages behind the last of this connection in others? False if its sensor seems to
        have several programs, each with numbers of its own."""
        numbers, counters = self._of(source_of(connection))
        ends = [each.extent.last_ns for each in numbers]
        if any(end > after.connection.opened_ns for end, after in zip(ends, numbers[1:], strict=False)):
            return False
        for each in numbers:
            if each.connection.id == connection.id:
                others = [other for other in numbers if other is not each]
                return any(
                    name in each.last
                    and self._has(others, name, each.last[name] + 1, each.last[name] + 1 + messages)
                    for name in counters
                )
        return False

    def _of(self, source: Source) -> tuple[list[_Numbers], list[str]]:
        """Its connections, and the names of what numbers its messages."""
        if source not in self._read:
            numbers = [
                _Numbers(
                    connection,
                    extent,
                    _numbers(self._log, connection, extent.first),
                    _numbers(self._log, connection, extent.last),
                )
                for connection in self._connections.get(source, [])
                if (extent := self._extents.get(connection.id))
            ]
            self._read[source] = numbers, _counters(numbers)
        return self._read[source]

    def _has(self, numbers: list[_Numbers], name: str, first: int, end: int) -> bool:
        """Are these numbers in connections without a gap?"""
        there = Spans(
            (each.first[name], each.last[name] + 1)
            for each in numbers
            if name in each.first and name in each.last and each.is_whole
        )
        return not Spans([(first, end)]).without(there)


def _counters(numbers: list[_Numbers]) -> list[str]:
    """The names of what numbers the messages of a sensor."""
    long = [each for each in numbers if each.extent.last > each.extent.first]
    names = {name for each in long for name in each.first}
    return sorted(name for name in names if all(each.counts(name) for each in long if name in each.first))


def _before(each: _Numbers, numbers: list[_Numbers], index: int, name: str) -> Hole | None:
    """What is missing in front of a connection, as far as those that were opened before it tell."""
    if each.extent.first > 0 or each.first.get(name, 0) == 0:
        return None  # its beginning was removed to make room, or the sensor began anew
    wanted, after = each.first[name] - 1, None
    for place in range(index - 1, -1, -1):  # the nearest first, which mostly is enough
        other = numbers[place]
        if name not in other.first or name not in other.last:
            continue
        if other.first[name] <= wanted <= other.last[name]:
            return None
        ended = other.extent.last_ns < each.connection.opened_ns  # else it is another program's
        if ended and other.last[name] < wanted and (after is None or other.last[name] > after.last[name]):
            after = other
    if after is None:
        return None
    return Hole(each.connection, after.connection, name, after.last[name] + 1, wanted)


def _numbers(log: Log, connection: StoredConnection, sequence: int) -> dict[str, int]:
    """What may number a message, by name."""
    messages, _ = log.piece(connection, sequence, sequence + 1)
    if not messages:
        return {}
    (message,) = messages
    return _of_fields(message) | _of_json(message) | _of_sensor(message)


def _of_fields(message: StoredMessage) -> dict[str, int]:
    layout = message.connection.layout
    if layout is None or len(message.payload) != layout.size:
        return {}
    columns = [column for column in layout.columns if column.kind == "integer" and _NAME.search(column.name)]
    if not columns:
        return {}
    arrays = layout.arrays([message.payload])
    return {column.name: int(arrays[column.name][0]) for column in columns}


def _of_json(message: StoredMessage) -> dict[str, int]:
    said = parse(message.payload)
    if not isinstance(said, dict):
        return {}
    return {key: value for key, value in said.items() if type(value) is int and _NAME.search(key)}


def _of_sensor(message: StoredMessage) -> dict[str, int]:
    if len(message.payload) < _HEADER.size:
        return {}
    number, sent_ns = _HEADER.unpack_from(message.payload)
    return {"number": number} if abs(sent_ns - message.received_ns) < _YEARS else {}
