"""Which messages are wanted: by stream, sensor, connection, time, and what is in them."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from midstream.errors import ConfigError
from midstream.log.conditions import Condition
from midstream.storage.stored import Source, StoredConnection, source_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Selection:
    """Empty sequences and None: all. Times are nanoseconds since 1970, `until_ns` not included."""

    sensors: tuple[str, ...] = ()
    connections: tuple[int, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    conditions: tuple[Condition, ...] = field(default=())
    streams: tuple[str, ...] = ()

    def choose(self, connections: list[StoredConnection]) -> list[StoredConnection]:
        """Those of the connections that can have messages of the selection.

        ConfigError for a stream, a sensor or a connection that is not there, and for a field that none of
        them has.
        """
        refuse_unknown("--stream", self.streams, {connection.stream for connection in connections})
        refuse_unknown("--sensor", self.sensors, {connection.sensor for connection in connections})
        refuse_unknown("--connection", self.connections, {connection.id for connection in connections})
        chosen = [
            connection
            for connection in connections
            if self.wants(source_of(connection))
            and (not self.connections or connection.id in self.connections)
        ]
        for condition in self.conditions:
            refuse_unknown_field(f"--where {condition}", condition.key, chosen)
        return [
            connection
            for connection in chosen
            if (
                self.since_ns is None or connection.closed_ns is None or connection.closed_ns >= self.since_ns
            )
            and (self.until_ns is None or connection.opened_ns < self.until_ns)
        ]

    def wants(self, source: Source) -> bool:
        """Are messages of this stream and sensor in the selection, if time and the others allow?"""
        stream, sensor = source
        return (not self.streams or stream in self.streams) and (not self.sensors or sensor in self.sensors)

    def covers(self, received_ns: int) -> bool:
        """Is a time (nanoseconds since 1970) within the selection?"""
        return (self.since_ns is None or received_ns >= self.since_ns) and (
            self.until_ns is None or received_ns < self.until_ns
        )


EVERYTHING = Selection()


def refuse_unknown_field(option: str, key: str, connections: list[StoredConnection]) -> None:
    """ConfigError if no connection's messages can have such a value: fields by name, JSON by any key."""
    names: dict[str, None] = {}
    for connection in connections:
        if connection.layout:
            names.update(dict.fromkeys(column.name for column in connection.layout.columns))
        elif connection.framing != "fixed":
            return
    if connections and key not in names:
        there = (
            f"there are {', '.join(names)}" if names else "the messages were stored without [[data.field]]"
        )
        raise ConfigError(f"{option}: no such field; {there}")


def duration(text: str, option: str) -> timedelta:
    """A length of time such as 90s, 10m, 2h, 30d or 1w. ConfigError names the option."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?)([smhdw])", text)
    if not match:
        raise ConfigError(f"{option} {text}: must be a number with s, m, h, d or w, such as 10m")
    try:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    except OverflowError as error:
        raise ConfigError(f"{option} {text}: longer than there are dates; give a shorter time") from error


def moment(text: str, option: str, now: datetime) -> int:
    """A time in nanoseconds since 1970: -10m (before now), an ISO 8601 date or time (this host's zone where
    none is given), or now. ConfigError names the option."""
    if text == "now":
        then = now
    else:
        try:
            then = now - duration(text[1:], option) if text.startswith("-") else datetime.fromisoformat(text)
            then = then.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"{option} {text}: must be a time before now such as -10m, a date and time such as "
                "2026-11-25T16:00:00, or now"
            ) from error
    since = then - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def refuse_unknown(option: str, wanted: Iterable[object], there: Collection[object]) -> None:
    """ConfigError, which lists those that are there, for what is wanted and not in the log."""
    for value in wanted:
        if value not in there:
            shown = ", ".join(map(str, sorted(there, key=str)[:8])) + (", …" if len(there) > 8 else "")
            raise ConfigError(f"{option} {value}: not in the log; there are {shown or 'none yet'}")
