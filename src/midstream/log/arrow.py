"""Messages of one stream as Apache Arrow: a typed column for each field, with its unit as metadata."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from midstream.errors import ConfigError
from midstream.fields import Layout
from midstream.log.decoding import by_connection, own_name
from midstream.storage.stored import StoredConnection, StoredMessage

ROWS = 1 << 16  # of a table, and the bytes at which one is made before it has so many
BYTES = 32 << 20
_HEAD = [
    pa.field("sensor", pa.dictionary(pa.int32(), pa.string())),
    pa.field("port", pa.int32()),
    pa.field("connection", pa.int64()),
    pa.field("sequence", pa.int64()),
    pa.field("received", pa.timestamp("ns", tz="UTC")),
    pa.field("arrived", pa.timestamp("ns", tz="UTC")),  # the rest of the head: storage.stored.Arrival
    pa.field("delay_ns", pa.int64()),
    pa.field("delay_error_ns", pa.int64()),
]
_PAYLOAD = pa.field("payload", pa.binary())


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a column holds: a number keeps the type that it has in the message, a scaled one is a double."""

    dtype: np.dtype[Any]
    count: int  # of values in a row

    def __str__(self) -> str:
        return f"{self.dtype}" if self.count == 1 else f"{self.count} × {self.dtype}"

    @property
    def value(self) -> Any:
        """The type of one value."""
        bytes_ = self.dtype.kind == "V"
        return pa.binary(self.dtype.itemsize) if bytes_ else pa.from_numpy_dtype(self.dtype)

    @property
    def type(self) -> Any:
        return self.value if self.count == 1 else pa.list_(self.value, self.count)

    def column(self, values: npt.NDArray[Any], there: npt.NDArray[np.bool_]) -> Any:
        """The column of these rows; null where a row is not there."""
        gone = None if there.all() else ~there
        if self.count > 1:
            flat = _Kind(self.dtype, 1).column(values.reshape(-1), np.ones(values.size, np.bool_))
            mask = None if gone is None else pa.array(gone)
            return pa.FixedSizeListArray.from_arrays(flat, type=self.type, mask=mask)
        if self.dtype.kind == "V":
            return pa.array(values.tolist(), self.type, mask=gone)
        return pa.array(values, self.type, mask=gone)


class ArrowMessages:
    """Makes tables of one schema of the messages of one stream, in the order in which they are given.

    `payload`: the bytes of each message too; without it only of those that no fields describe. `lists`: a
    field with several values is a column of lists of that size; without it each value has a column, NAME_0.
    A table has ROWS messages or some more, or fewer whose payloads have `max_bytes`. ConfigError if no column
    can hold the values of all the connections.
    """

    def __init__(
        self,
        stream: str,
        connections: Sequence[StoredConnection],
        *,
        payload: bool = False,
        lists: bool = False,
        max_bytes: int = BYTES,
    ) -> None:
        self._payload, self._lists, self._max_bytes = payload, lists, max_bytes
        self._kinds, units = self._columns(connections)
        fields = [
            pa.field(name, kind.type, metadata={"unit": units[name]} if units[name] else None)
            for name, kind in self._kinds.items()
        ]
        *head, last = (each.with_name(own_name(each.name, self._kinds)) for each in (*_HEAD, _PAYLOAD))
        self.payload_name: str = last.name
        self.has_fields = bool(fields)
        self.schema: Any = pa.schema([*head, *fields, last], metadata={"stream": stream})
        self._batches: list[Any] = []
        self._rows = self._bytes = 0

    def add(self, messages: Sequence[StoredMessage]) -> Iterator[Any]:
        """A table, if there is enough for one."""
        self._batches.append(self._batch(messages))
        self._rows += len(messages)
        self._bytes += sum(len(message.payload) for message in messages)
        if self._rows >= ROWS or self._bytes >= self._max_bytes:
            yield from self.rest()

    def rest(self) -> Iterator[Any]:
        """A table of what is left, if anything is."""
        if self._batches:
            yield pa.Table.from_batches(self._batches, self.schema).unify_dictionaries()
        self._batches, self._rows, self._bytes = [], 0, 0

    def _batch(self, messages: Sequence[StoredMessage]) -> Any:
        count = len(messages)
        arrays = [
            pa.array([message.connection.sensor for message in messages]).dictionary_encode(),
            pa.array([message.connection.port for message in messages], pa.int32()),
            pa.array([message.connection.id for message in messages], pa.int64()),
            pa.array([message.sequence for message in messages], pa.int64()),
            pa.array([message.received_ns for message in messages], pa.int64()).cast(_HEAD[4].type),
        ]
        arrivals = zip(*(message.arrival or (None, None, None) for message in messages), strict=True)
        arrays += [
            pa.array(each, pa.int64()).cast(column.type)
            for each, column in zip(arrivals, _HEAD[5:], strict=True)
        ]
        described = np.zeros(count, np.bool_)
        there = {name: np.zeros(count, np.bool_) for name in self._kinds}
        values = {
            name: np.zeros(count if kind.count == 1 else (count, kind.count), kind.dtype)
            for name, kind in self._kinds.items()
        }
        for connection, indices in by_connection(messages):
            if connection.layout is None:
                continue
            described[indices] = True
            for name, found in self._arrays(connection.layout, messages, indices).items():
                values[name][indices] = found
                there[name][indices] = True
        arrays += [kind.column(values[name], there[name]) for name, kind in self._kinds.items()]
        payloads = [
            message.payload if self._payload or not known else None
            for message, known in zip(messages, described.tolist(), strict=True)
        ]
        arrays.append(pa.array(payloads, pa.binary()))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _arrays(
        self, layout: Layout, messages: Sequence[StoredMessage], indices: Sequence[int]
    ) -> dict[str, npt.NDArray[Any]]:
        payloads = [messages[index].payload for index in indices]
        if not self._lists:
            return layout.arrays(payloads)
        joined = b"".join(payloads)
        return {field.name: layout.scaled(joined, field) for field in layout.fields}

    def _columns(self, connections: Sequence[StoredConnection]) -> tuple[dict[str, _Kind], dict[str, str]]:
        """What each column holds, and its unit: where connections differ, what has room for the values of
        both, and the unit of the newest."""
        kinds: dict[str, _Kind] = {}
        units: dict[str, str] = {}
        for layout in dict.fromkeys(each.layout for each in connections if each.layout):
            named = layout.fields if self._lists else layout.columns
            units |= {each.name: each.unit for each in named}
            for name, array in self._arrays(layout, [], []).items():
                mine = _Kind(array.dtype.newbyteorder("="), array.shape[1] if array.ndim > 1 else 1)
                theirs = kinds.setdefault(name, mine)
                both = _common(mine, theirs)
                if both is None:
                    raise ConfigError(
                        f"field {name}: of type {theirs} in one connection and {mine} in another: no column "
                        "can hold both; export them one by one (--connection, in Python `connections`)"
                    )
                kinds[name] = both
        return kinds, units


def _common(mine: _Kind, theirs: _Kind) -> _Kind | None:
    """What holds every value of both exactly."""
    if mine == theirs:
        return mine
    if mine.count != theirs.count or "V" in (mine.dtype.kind, theirs.dtype.kind):
        return None
    both = np.result_type(mine.dtype, theirs.dtype)
    # Of the integers with 64 bits, a double holds only some.
    wide = any(each.dtype.kind in "iu" and each.dtype.itemsize == 8 for each in (mine, theirs))
    return None if both.kind == "f" and wide else _Kind(both, mine.count)
