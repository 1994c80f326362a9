"""What the logger publishes in its stream: the messages for a batch, their subjects and headers.

The docstring of `jetstream` names the subjects; `Nats-Msg-Id` is the token and the offset in the stream.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from midstream.storage.formats import Formats
from midstream.storage.store import Batch, ConnectionRow, Piece
from midstream.told import ArrivalTimes, Forgotten, HeldConnection, Pending

BATCH_MESSAGES = 1000  # the most that a server takes in a batch
BATCH_BYTES = 8 << 20
HEADERS_SIZE = 512  # bytes: more than the headers of a message have

_EVENT_SIZE = 512  # bytes: more than what is not known before of an opening or an end

PLACE = "Midstream"  # header: sequence, offset, received_ns; of a fragment: offset; of arrivals: their `said`
CHECKSUM = "Midstream-Crc"  # header of a message: store.checksum


@dataclass(slots=True)
class Item:
    """A message for the stream."""

    subject: str
    payload: bytes
    headers: dict[str, str]


@dataclass(slots=True)
class Published:
    """How a logger publishes the messages of sensors' streams in a JetStream's stream of this name."""

    stream: str
    sensors_streams: Formats
    piece: int = BATCH_BYTES  # bytes that a message in the stream may have
    nameless: set[str] = field(default_factory=set)
    """Tokens of connections that a version before streams has opened: their subjects have no name."""

    def opening_size(self, name: str) -> int:
        """Bytes of what is published when a connection of a sensor's stream opens, or closes with the longest
        of reasons."""
        return len(self._event(ConnectionRow("", "", 0, 0, stream=name), "", {}).payload) + _EVENT_SIZE

    def items(self, batch: Batch) -> Iterator[Item]:
        """A batch of the logger's as messages, in the order in which they must be stored."""
        for row in batch.opened:
            row.id = 0
            yield self._event(row, "open", {})
        for piece in batch.pieces:
            yield from self._messages(piece)
        for row, offset, data in batch.fragments:
            yield from self._fragment(row, offset, data)
        for row in batch.closed:
            if row.unfinished and row not in batch.completed:
                yield from self._fragment(row, row.size - len(row.unfinished), row.unfinished)
            end = {"closed_ns": row.closed_ns, "bytes": row.size, "digest": row.digest}
            end |= {"reset": row.reset, "reason": row.reason, "unfinished": len(row.unfinished)}
            yield self._event(row, "closed", end)

    def _messages(self, piece: Piece) -> Iterator[Item]:
        subject, token = self.subject("data", piece.row), piece.row.token
        for _, sequence, received, payload, offset, crc in piece.rows():
            headers = {
                "Nats-Msg-Id": f"{token}:{offset}",
                PLACE: f"{sequence} {offset} {received}",
                CHECKSUM: str(crc),
            }
            yield Item(subject, payload, headers)

    def _fragment(self, row: ConnectionRow, start: int, data: bytes) -> Iterator[Item]:
        for index in range(0, len(data), self.piece):
            offset = start + index
            headers = {"Nats-Msg-Id": f"{row.token}:{offset}:fragment", PLACE: str(offset)}
            yield Item(self.subject("fragments", row), data[index : index + self.piece], headers)

    def _event(self, row: ConnectionRow, state: str, more: dict[str, Any]) -> Item:
        known = {"state": state, "token": row.token, "sensor": row.sensor, "port": row.port}
        known |= {"first": row.first, "spooled": row.spooled, "opened_ns": row.opened_ns}
        known |= {"stream": row.stream, **self.sensors_streams[row.stream].published}
        body = json.dumps(known | more).encode()
        return Item(
            self.subject("connections", row), body, {"Nats-Msg-Id": f"{row.token}:{state}:{row.size}"}
        )

    def hole(self, hole: Forgotten) -> Item:
        """What a spool has forgotten: the last one of a subject is right."""
        subject = f"{self.stream}.forgotten.{hole.stream}.{hole.sensor.replace('.', '-')}.{hole.first_ns}"
        body = json.dumps(hole._asdict()).encode()
        return Item(subject, body, {"Nats-Msg-Id": f"{subject}:{hole.messages}"})

    def held(self, stream: HeldConnection) -> Item:
        """How far a hardworker held a connection: of a subject the last one counts."""
        place = f"{stream.sensor.replace('.', '-')}.{stream.port}.{stream.first}.{stream.opened_ns}"
        subject = f"{self.stream}.held.{stream.stream}.{place}"
        return Item(subject, json.dumps(stream.values).encode(), {})

    def arrivals(self, told: ArrivalTimes) -> Item:
        """When bytes of a connection came to the hardworker: its steps, and what is said of them."""
        subject = arrivals_subject(self.stream, told.stream, told.sensor, told.port, told.first)
        return Item(subject, told.steps, {PLACE: json.dumps(told.said)})

    def waiting(self, waiting: Collection[Pending]) -> Item:
        """All that is in the spool, as far as a message has room: the last one counts."""
        body, size = [], 0
        for each in waiting:
            body.append(json.dumps(each.values))
            size += len(body[-1]) + 2
            if size > self.piece:
                body.pop()
                break
        return Item(f"{self.stream}.pending", f"[{', '.join(body)}]".encode(), {})

    def subject(self, kind: str, row: ConnectionRow, token: str = "", *, nameless: bool = False) -> str:
        """Of a connection; or, with the wildcard `token`, of all of its stream from its port."""
        place = f"{row.sensor.replace('.', '-')}.{row.port}.{token or row.token}"
        if nameless or row.token in self.nameless:
            return f"{self.stream}.{kind}.{place}"
        return f"{self.stream}.{kind}.{row.stream}.{place}"


def arrivals_subject(stream: str, name: str, sensor: str, port: int, first: int) -> str:
    """Of a connection, as TCP numbers it. name: of its kind of messages; "": as a version before streams has
    published it."""
    place = f"{sensor.replace('.', '-')}.{port}.{first}"
    return f"{stream}.arrivals.{name}.{place}" if name else f"{stream}.arrivals.{place}"


def batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    """As many messages at a time as a server takes at once."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == BATCH_MESSAGES or size + len(item.payload) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.payload) + HEADERS_SIZE
    if batch:
        yield batch
