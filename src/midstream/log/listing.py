"""The connections of a log as a table, and a message as a line."""

from typing import Any

from midstream.log.database import Extent, StoredConnection, StoredMessage
from midstream.log.decoding import Decoded
from midstream.log.export import iso


def row(connection: StoredConnection, extent: Extent | None) -> dict[str, Any]:
    """What there is of a connection. bytes: of the stream, frames included, that is stored; None in databases
    of version 1 while it is open. missing: messages that are neither there nor were removed to make room."""
    stored = (
        None if extent is None or extent.start is None or extent.end is None else extent.end - extent.start
    )
    missing = 0 if extent is None else extent.last + 1 - connection.pruned - extent.messages
    return {
        "connection": connection.id,
        "sensor": connection.sensor,
        "port": connection.port,
        "opened": iso(connection.opened_ns),
        "closed": None if connection.closed_ns is None else iso(connection.closed_ns),
        "first": iso(extent.first_ns) if extent else None,
        "last": iso(extent.last_ns) if extent else None,
        "messages": extent.messages if extent else 0,
        "bytes": connection.size if stored is None and extent else stored or 0,
        "missing": missing,
        "removed": connection.pruned,
        "state": connection.state,
        "reason": connection.reason,
        "framing": connection.framing,
        "fields": [column.name for column in connection.layout.columns] if connection.layout else [],
    }


def line(message: StoredMessage, said: Decoded) -> str:
    """When it came, from whom, which message of which connection, and what it says."""
    head = (
        f"{iso(message.received_ns)} {message.connection.sensor} {message.connection.id}:{message.sequence}"
    )
    if "fields" in said:
        layout = message.connection.layout
        units = {column.name: column.unit for column in layout.columns} if layout else {}
        return " ".join([head, *(_value(name, value, units[name]) for name, value in said["fields"].items())])
    if "json" in said:
        return f"{head} {message.payload.decode(errors='replace')}"
    if "text" in said:
        return f"{head} {said['text']}"
    return f"{head} 0x{said['hex']}"


def _value(name: str, value: object, unit: str) -> str:
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return f"{name}={text}{unit}"
