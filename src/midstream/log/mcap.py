"""Messages to MCAP, which Foxglove opens: a topic for each stream of each sensor, a channel for each
connection.

Every message is JSON with a JSON Schema, so that fields are typed and have their units as descriptions. Its
log time is when the logger received it, its publish time when it came to the hardworker, where that is known.
"""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, BinaryIO

from mcap.writer import Writer

from midstream.closing import Closing
from midstream.config import DATA
from midstream.fields import Layout
from midstream.log.decoding import has_fields, own_name, parse, readable, text_of
from midstream.storage.stored import Source, StoredConnection, StoredMessage, named, source_of

_OWN_CHANNELS = 60_000  # connections; MCAP knows 65,535 channels, so those behind them share one a topic
_LIBRARY = "midstream"
_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "V": "string"}


class McapWriter(Closing):
    """Arrays of fields stay arrays; bytes are base64, as Foxglove expects them."""

    def __init__(self, stream: BinaryIO, _: Sequence[StoredConnection], payload: bool) -> None:
        self._writer = Writer(_Positioned(stream))  # type: ignore[arg-type]  # all that it needs
        self._writer.start(library=_LIBRARY)
        self._payload = payload
        self._schemas: dict[tuple[str, str], int] = {}  # by name, without a number, and text
        self._channels: dict[int | tuple[Source, int], int] = {}

    def close(self) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]

    def write(self, messages: Sequence[StoredMessage]) -> None:
        groups: dict[tuple[int, bool], list[StoredMessage]] = {}
        keys = [(message.connection.id, has_fields(message)) for message in messages]
        for key, message in zip(keys, messages, strict=True):
            groups.setdefault(key, []).append(message)
        documents = {key: iter(self._documents(group, key[1])) for key, group in groups.items()}
        for key, message in zip(keys, messages, strict=True):  # in order of time, whatever their connections
            self._writer.add_message(
                self._channel(message.connection),
                log_time=message.received_ns,
                publish_time=message.arrival.time_ns if message.arrival else message.received_ns,
                sequence=message.sequence & 0xFFFFFFFF,
                data=json.dumps(next(documents[key])).encode(),
            )

    def _documents(self, group: list[StoredMessage], fits: bool) -> list[dict[str, Any]]:
        layout = group[0].connection.layout
        payloads = [message.payload for message in group]
        if layout is None or not fits:
            documents = [_whole(payload) for payload in payloads]
        else:
            joined = b"".join(payloads)
            lists = [_plain(readable(layout.scaled(joined, field))) for field in layout.fields]
            names = [field.name for field in layout.fields]
            documents = [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]
        if self._payload:
            for document, payload in zip(documents, payloads, strict=True):
                document[own_name("payload", document)] = base64.b64encode(payload).decode()
        return documents

    def _channel(self, connection: StoredConnection) -> int:
        key: int | tuple[Source, int] = connection.id
        if key not in self._channels and len(self._channels) >= _OWN_CHANNELS:
            key = (source_of(connection), self._schema(connection))
        if key not in self._channels:
            of_one = {"port": str(connection.port), "connection": str(connection.id)}
            self._channels[key] = self._writer.register_channel(
                topic=f"/{named(source_of(connection))}",
                message_encoding="json",
                schema_id=self._schema(connection),
                metadata={
                    "stream": connection.stream,
                    "sensor": connection.sensor,
                    **(of_one if key == connection.id else {}),
                },
            )
        return self._channels[key]

    def _schema(self, connection: StoredConnection) -> int:
        layout = connection.layout
        properties = _properties(layout) if layout else {}
        if layout is None and connection.framing != "line":
            properties = {"text": {"type": "string"}, "payload": _BYTES}
        elif self._payload:
            properties[own_name("payload", properties)] = _BYTES
        text = json.dumps({"type": "object", "properties": properties}, ensure_ascii=False)
        name = f"midstream.{connection.stream}"
        if connection.stream == DATA:
            name = "midstream.Fields" if layout else "midstream.Message"
        key = name, text
        if key not in self._schemas:
            before = sum(other == name for other, _ in self._schemas)
            number = f"{before + 1}" if before else ""
            self._schemas[key] = self._writer.register_schema(name + number, "jsonschema", text.encode())
        return self._schemas[key]


_BYTES = {"type": "string", "contentEncoding": "base64"}


def _properties(layout: Layout) -> dict[str, Any]:
    properties = {}
    for field in layout.fields:
        numpy_kind = layout.dtype[field.name].base.kind
        value: dict[str, Any] = dict(_BYTES) if numpy_kind == "V" else {"type": _KINDS[numpy_kind]}
        if field.scaled:
            value["type"] = "number"
        if field.count > 1:
            value = {"type": "array", "items": value}
        if field.unit:
            value["description"] = field.unit
        properties[field.name] = value
    return properties


class _Positioned:
    """A stream that knows how far it is, also where it is a pipe: MCAP's index says where everything lies."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position


def _whole(payload: bytes) -> dict[str, Any]:
    document = parse(payload)
    if isinstance(document, dict):
        return document
    text = text_of(payload)
    return {"payload": base64.b64encode(payload).decode()} if text is None else {"text": text}


def _plain(value: Any) -> Any:
    """What JSON can hold: base64 for bytes, null for what is no finite number."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
