"""Messages to MCAP, which Foxglove opens: a topic for each sensor, a channel for each connection.

Every message is JSON with a JSON Schema, so that fields are typed and have their units as descriptions. Its
log time is when the logger received it.
"""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, BinaryIO, Self

from mcap.writer import Writer

from midstream.fields import Layout
from midstream.log.conditions import MISSING
from midstream.log.decoding import parse, readable, text_of
from midstream.logger.stored import StoredConnection, StoredMessage

_LIBRARY = "midstream"
_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "V": "string"}


class McapWriter:
    """Arrays of fields stay arrays; bytes are base64, as Foxglove expects them."""

    def __init__(self, stream: BinaryIO, _: Sequence[StoredConnection], payload: bool) -> None:
        self._writer = Writer(stream)
        self._writer.start(library=_LIBRARY)
        self._payload = payload
        self._schemas: dict[str, int] = {}
        self._channels: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]

    def write(self, messages: Sequence[StoredMessage]) -> None:
        documents: dict[int, list[dict[str, Any]]] = {}
        groups: dict[int, list[StoredMessage]] = {}
        for message in messages:
            groups.setdefault(message.connection.id, []).append(message)
        for key, group in groups.items():
            documents[key] = self._documents(group)
        position = dict.fromkeys(groups, 0)
        for message in messages:  # in order of time, whatever their connections
            key = message.connection.id
            document = documents[key][position[key]]
            position[key] += 1
            self._writer.add_message(
                self._channel(message.connection),
                log_time=message.received_ns,
                publish_time=message.received_ns,
                sequence=message.sequence & 0xFFFFFFFF,
                data=json.dumps(document, ensure_ascii=False).encode(),
            )

    def _documents(self, group: list[StoredMessage]) -> list[dict[str, Any]]:
        layout = group[0].connection.layout
        payloads = [message.payload for message in group]
        if layout is None or any(len(payload) != layout.size for payload in payloads):
            documents = [_whole(payload) for payload in payloads]
        else:
            joined = b"".join(payloads)
            lists = [_plain(readable(layout.scaled(joined, field))) for field in layout.fields]
            names = [field.name for field in layout.fields]
            documents = [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]
        if self._payload:
            for document, payload in zip(documents, payloads, strict=True):
                document["payload"] = base64.b64encode(payload).decode()
        return documents

    def _channel(self, connection: StoredConnection) -> int:
        if connection.id not in self._channels:
            self._channels[connection.id] = self._writer.register_channel(
                topic=f"/{connection.sensor}",
                message_encoding="json",
                schema_id=self._schema(connection),
                metadata={
                    "sensor": connection.sensor,
                    "port": str(connection.port),
                    "connection": str(connection.id),
                },
            )
        return self._channels[connection.id]

    def _schema(self, connection: StoredConnection) -> int:
        layout = connection.layout
        properties = _properties(layout) if layout else {}
        if layout is None and connection.framing != "line":
            properties = {"text": {"type": "string"}, "payload": _BYTES}
        elif self._payload:
            properties["payload"] = _BYTES
        text = json.dumps({"type": "object", "properties": properties}, ensure_ascii=False)
        if text not in self._schemas:
            name = "midstream.Fields" if layout else "midstream.Message"
            number = f"{len(self._schemas) + 1}" if self._schemas else ""
            self._schemas[text] = self._writer.register_schema(name + number, "jsonschema", text.encode())
        return self._schemas[text]


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


def _whole(payload: bytes) -> dict[str, Any]:
    document = parse(payload) if payload[:1] == b"{" else MISSING
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
