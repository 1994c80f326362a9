"""Payloads to names and values: by their fields, as JSON, as text, or as hexadecimal digits."""

import codecs
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from midstream.log.conditions import MISSING, Condition, lookup
from midstream.storage.stored import StoredConnection, StoredMessage

Decoded = dict[str, Any]

MAX_DEPTH = 100  # lists and objects in one another: some readers of JSON refuse 128


def decoded(messages: Sequence[StoredMessage]) -> list[Decoded]:
    """What each message says: {"fields": {NAME: VALUE}}, {"json": …}, {"text": …} or {"hex": …}.

    Values are such that JSON can have them: bytes as hexadecimal digits, None for what is no finite number.
    """
    results: list[Decoded] = [{} for _ in messages]
    for connection, indices in by_connection(messages):
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


def field_names(connections: Sequence[StoredConnection]) -> list[str]:
    """The columns of all their fields, each once."""
    return list(
        dict.fromkeys(
            column.name
            for connection in connections
            if connection.layout
            for column in connection.layout.columns
        )
    )


def own_name(name: str, names: Iterable[str]) -> str:
    """What we call something beside names of the user's: with more _ behind it than any of those has."""
    alike = [each for each in names if re.fullmatch(f"{name}_*", each)]
    return f"{max(alike, key=len)}_" if alike else name


def has_fields(message: StoredMessage) -> bool:
    """Whether its fields say what is in it: it has their size."""
    layout = message.connection.layout
    return layout is not None and len(message.payload) == layout.size


def by_connection(
    messages: Sequence[StoredMessage],
) -> list[tuple[StoredConnection, list[int]]]:
    """Which messages are of which connection; those without the size of its fields are left out."""
    groups: dict[int, tuple[StoredConnection, list[int]]] = {}
    for index, message in enumerate(messages):
        connection = message.connection
        if connection.layout is None or has_fields(message):
            groups.setdefault(connection.id, (connection, []))[1].append(index)
    return list(groups.values())


def matching(messages: list[StoredMessage], conditions: Sequence[Condition]) -> list[StoredMessage]:
    """The messages that meet all conditions, in the same order."""
    if not conditions:
        return messages
    chosen = np.zeros(len(messages), bool)
    for connection, indices in by_connection(messages):
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
    for connection, indices in by_connection(messages):
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
    """The object or list that a payload is as I-JSON (RFC 7493), which all readers of JSON read alike; else
    MISSING. A byte order mark and blanks around it are no part of it.

    I-JSON is UTF-8 without NaN, names that are there twice, halves of a surrogate pair, and numbers that a
    double cannot hold. What is nested deeper than MAX_DEPTH is MISSING too.
    """
    text = payload.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS)
    if text[:1] not in (b"{", b"["):
        return MISSING
    try:
        document = _DECODER.decode(text.decode())
        if b"\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return MISSING
    return MISSING if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _is_deep(document) else document


def text_of(payload: bytes) -> str | None:
    """The payload as text, if all of it can be shown as such."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    return text if text.replace("\t", " ").replace("\n", " ").rstrip("\r").isprintable() else None


def printable(text: str) -> str:
    """The text with an escape for each character that would not be seen: a terminal obeys none of them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


def _integer(text: str) -> int:
    if len(text) > _MANY_DIGITS:
        _finite(text)
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a name is there twice")
    return document


_BLANKS = b" \t\n\r"
_MANY_DIGITS = 308  # an integer with no more of them is a finite double
_DECODER = json.JSONDecoder(
    parse_float=_finite, parse_int=_integer, parse_constant=_refuse, object_pairs_hook=_unique
)


def _is_deep(document: object) -> bool:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            below
            for each in level
            if isinstance(each, dict | list)
            for below in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, dict | list) for each in level)


def _whole(payload: bytes) -> Decoded:
    document = parse(payload)
    if document is not MISSING:
        return {"json": document}
    text = text_of(payload)
    return {"hex": payload.hex()} if text is None else {"text": text}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
