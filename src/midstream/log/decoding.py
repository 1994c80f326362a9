"""Payloads to names and values: by their fields, as JSON, as text, or as hexadecimal digits."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from midstream.log.conditions import MISSING, Condition, lookup
from midstream.logger.stored import StoredConnection, StoredMessage

Decoded = dict[str, Any]


def decoded(messages: Sequence[StoredMessage]) -> list[Decoded]:
    """What each message says: {"fields": {NAME: VALUE}}, {"json": …}, {"text": …} or {"hex": …}.

    Values are such that JSON can have them: bytes as hexadecimal digits, None for what is no finite number.
    """
    results: list[Decoded] = [{} for _ in messages]
    for connection, indices in _by_connection(messages):
        layout = connection.layout
        if layout is None:
            for index in indices:
                results[index] = _whole(messages[index].payload)
            continue
        arrays = layout.arrays([messages[index].payload for index in indices])
        rows = zip(*map(readable, arrays.values()), strict=True)
        for index, row in zip(indices, rows, strict=True):
            results[index] = {"fields": dict(zip(arrays, map(_plain, row), strict=True))}
    for index, result in enumerate(results):
        if not result:
            results[index] = _whole(messages[index].payload)
    return results


def columns(connections: Sequence[StoredConnection], payload: bool) -> list[str]:
    """The columns behind those that every message has: fields by name, and the payload where it is needed."""
    names = {
        column.name: None
        for connection in connections
        if connection.layout
        for column in connection.layout.columns
    }
    if payload or any(connection.layout is None for connection in connections):
        names["payload"] = None
    return list(names)


def matching(messages: list[StoredMessage], conditions: Sequence[Condition]) -> list[StoredMessage]:
    """The messages that meet all conditions, in the same order."""
    if not conditions:
        return messages
    chosen = np.zeros(len(messages), bool)
    for connection, indices in _by_connection(messages):
        layout = connection.layout
        if layout is None:
            for index in indices:
                document = parse(messages[index].payload)
                chosen[index] = all(test.met_by(lookup(document, test.key)) for test in conditions)
            continue
        arrays = layout.arrays([messages[index].payload for index in indices])
        met = np.ones(len(indices), bool)
        for test in conditions:
            met &= test.mask(arrays[test.key]) if test.key in arrays else False
        chosen[indices] = met
    return [messages[index] for index in np.flatnonzero(chosen)]


def numbers(messages: Sequence[StoredMessage], key: str) -> tuple[list[int], np.ndarray]:
    """The value of a field or JSON key of each message that has one: which messages, and the values."""
    which: list[int] = []
    values: list[np.ndarray] = []
    for connection, indices in _by_connection(messages):
        if connection.layout is None:
            found = [(index, lookup(parse(messages[index].payload), key)) for index in indices]
            pairs = [(index, float(value)) for index, value in found if isinstance(value, int | float)]
            which += [index for index, _ in pairs]
            values.append(np.array([value for _, value in pairs], np.float64))
            continue
        arrays = connection.layout.arrays([messages[index].payload for index in indices])
        if key in arrays and arrays[key].dtype.kind != "V":
            which += indices
            values.append(arrays[key].astype(np.float64))
    return which, np.concatenate(values) if values else np.empty(0)


def readable(array: np.ndarray) -> list[Any]:
    """The values as Python has them; 32-bit ones as the shortest decimal: 0.1 and not 0.10000000149."""
    if array.dtype.kind == "f" and array.dtype.itemsize == 4:
        array = array.astype("U16").astype(np.float64)
    values: list[Any] = array.tolist()
    return values


def parse(payload: bytes) -> object:
    """The JSON document that a payload is; MISSING if it is none, as with NaN in it (RFC 8259, section 6)."""
    try:
        return json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return MISSING


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def text_of(payload: bytes) -> str | None:
    """The payload as text, if all of it can be shown as such."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    return text if text.replace("\t", " ").replace("\n", " ").rstrip("\r").isprintable() else None


def _by_connection(
    messages: Sequence[StoredMessage],
) -> list[tuple[StoredConnection, list[int]]]:
    """Which messages are of which connection; those without the size of its fields are left out."""
    groups: dict[int, tuple[StoredConnection, list[int]]] = {}
    for index, message in enumerate(messages):
        connection = message.connection
        if connection.layout is None or len(message.payload) == connection.layout.size:
            groups.setdefault(connection.id, (connection, []))[1].append(index)
    return list(groups.values())


def _whole(payload: bytes) -> Decoded:
    if payload[:1] in (b"{", b"["):
        document = parse(payload)
        if document is not MISSING:
            return {"json": document}
    text = text_of(payload)
    return {"hex": payload.hex()} if text is None else {"text": text}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
