"""Databases as a logger leaves them, for those who read them."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqlalchemy import create_engine, insert

from midstream.config import DATA
from midstream.fields import Field, Layout
from midstream.framing import Framing, encode
from midstream.storage import readings, schema
from midstream.storage.store import checksum
from midstream.told import Knowledge

SECOND = 10**9
START = 1_764_000_000 * SECOND  # 2025-11-24T16:00:00Z

LAYOUT = Layout(
    16,
    (
        Field("temperature", "<f4", 0, unit="°C"),
        Field("position", "<i2", 4, count=2, unit="m", scale=0.01),
        Field("armed", "?", 8),
        Field("tag", "V3", 9),
    ),
)


class LogFile:
    """A SQLite database that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self._engine = create_engine(self.url)
        self._ids = 0
        with self._engine.begin() as database:
            database.exec_driver_sql("PRAGMA synchronous=OFF")  # a test has no power cut
            database.exec_driver_sql("PRAGMA journal_mode=WAL")
            schema.prepare(database, self.url)

    def add(
        self,
        payloads: Iterable[bytes],
        *,
        sensor: str = "10.83.0.11",
        start_ns: int = START,
        step_ns: int = SECOND,
        framing: Framing = "fixed",
        layout: Layout | None = None,
        closed: bool = True,
        times: Sequence[int] | None = None,
        port: int = 0,
        first: int | None = None,
        sequences: Sequence[int] | None = None,
        stream: str = DATA,
    ) -> int:
        """A connection with a message each step; its id. sequences: only these are there."""
        self._ids += 1
        given = list(payloads)
        messages, digest = [], hashlib.sha256()
        offset = 0
        for sequence, payload in enumerate(given):
            received = times[sequence] if times else start_ns + sequence * step_ns
            frame = encode(framing, payload, size=len(payload), max_size=1 << 20)
            messages.append(
                {
                    "connection_id": self._ids,
                    "sequence": sequence,
                    "received_ns": received,
                    "payload": payload,
                    "stream_offset": offset,
                    "crc": checksum(sequence, offset, received, payload),
                }
            )
            digest.update(frame)
            offset += len(frame)
        row = {
            "id": self._ids,
            "sensor": sensor,
            "port": port or 40000 + self._ids,
            "first": first,
            "opened_ns": start_ns,
            "framing": framing,
            "layout": layout.describe() if layout else None,
            "token": str(self._ids),
            "stream": stream,
        }
        if closed:
            last = messages[-1]["received_ns"] if messages else start_ns
            row |= {
                "closed_ns": last,
                "bytes": offset,
                "digest": digest.hexdigest(),
                "reset": False,
                "reason": "",
            }
        if sequences is not None:
            messages = [message for message in messages if message["sequence"] in sequences]
        with self._engine.begin() as database:
            database.execute(insert(schema.connections).values(row))
            if messages:
                database.execute(insert(schema.messages), messages)
            if layout and messages:
                columns = [(column.name, column.kind) for column in layout.columns]
                table = readings.prepare(database, self.url, stream, columns)
                names = [name for name, _ in columns]
                values = layout.values(given)
                database.execute(
                    insert(table),
                    [
                        {
                            "connection_id": self._ids,
                            "sequence": sequence,
                            **dict(zip(names, row, strict=True)),
                        }
                        for sequence, row in enumerate(values)
                    ],
                )
        return self._ids

    def tell(self, told: Knowledge) -> None:
        """What a hardworker has said."""
        said = [(schema.held, each.values) for each in told.held]
        said += [(schema.pending, each.values) for each in told.pending]
        said += [(schema.forgotten, each) for each in told.forgotten]
        with self._engine.begin() as database:
            for table, values in said:
                database.execute(insert(table).values(values))

    def execute(self, statement: str) -> None:
        """Change it by hand."""
        with self._engine.begin() as database:
            database.exec_driver_sql(statement)

    def close(self) -> None:
        self._engine.dispose()


def reading(number: int, temperature: float | None = None) -> bytes:
    """A message of LAYOUT."""
    value = 20 + number / 8 if temperature is None else temperature
    return struct.pack("<f2h?3s4x", value, number, -number, number % 2, b"abc")
