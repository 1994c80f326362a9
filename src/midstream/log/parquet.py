"""Messages to Apache Parquet: a typed column for each field, its unit in the column's metadata."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from midstream.closing import Closing
from midstream.errors import ConfigError
from midstream.log.decoding import has_fields, own_name
from midstream.storage.stored import StoredConnection, StoredMessage

_ROWS = 1 << 16  # of a row group, and the bytes at which one is written before it has so many
_BYTES = 32 << 20
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


class ParquetWriter(Closing):
    """Numbers keep the type that they have in the message; a scaled one is a double."""

    def __init__(self, stream: BinaryIO, connections: Sequence[StoredConnection], payload: bool) -> None:
        self._payload = payload
        types = _types(connections)
        units = {
            column.name: column.unit
            for connection in connections
            if connection.layout
            for column in connection.layout.columns
            if column.unit
        }
        self._types = types
        self._fields = [
            pa.field(name, _arrow(dtype), metadata={"unit": units[name]} if name in units else None)
            for name, dtype in types.items()
        ]
        *head, last = (each.with_name(own_name(each.name, types)) for each in (*_HEAD, _PAYLOAD))
        self._schema = pa.schema([*head, *self._fields, last])
        self._file = pyarrow.parquet.ParquetWriter(stream, self._schema, compression="zstd")
        self._batches: list[Any] = []
        self._rows = self._bytes = 0

    def close(self) -> None:
        self._flush()
        self._file.close()

    def write(self, messages: Sequence[StoredMessage]) -> None:
        ordered = sorted(messages, key=lambda message: message.connection.id)  # one layout after the other
        groups: dict[tuple[int, bool], list[StoredMessage]] = {}
        for message in ordered:
            groups.setdefault((message.connection.id, has_fields(message)), []).append(message)
        for (_, fits), group in groups.items():
            self._add(group, fits)
        if self._rows >= _ROWS or self._bytes >= _BYTES:
            self._flush()

    def _add(self, group: list[StoredMessage], fits: bool) -> None:
        connection, count = group[0].connection, len(group)
        sensor = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [connection.sensor])
        arrays = [
            sensor,
            pa.array(np.full(count, connection.port, np.int32)),
            pa.array(np.full(count, connection.id)),
            pa.array([message.sequence for message in group], pa.int64()),
            pa.array([message.received_ns for message in group], pa.int64()).cast(_HEAD[4].type),
        ]
        arrivals = zip(*(message.arrival or (None, None, None) for message in group), strict=True)
        arrays += [
            pa.array(each, pa.int64()).cast(column.type)
            for each, column in zip(arrivals, _HEAD[5:], strict=True)
        ]
        payloads = [message.payload for message in group]
        layout = connection.layout
        values = layout.arrays(payloads) if layout and fits else {}
        for name, dtype in self._types.items():
            if name in values:
                arrays.append(_column(values[name], dtype))
            else:
                arrays.append(pa.nulls(count, _arrow(dtype)))
        shown = self._payload or not fits
        arrays.append(pa.array(payloads, pa.binary()) if shown else pa.nulls(count, pa.binary()))
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows += count
        self._bytes += sum(map(len, payloads))

    def _flush(self) -> None:
        if self._batches:
            table = pa.Table.from_batches(self._batches, self._schema).unify_dictionaries()
            self._file.write_table(table, row_group_size=max(self._rows, 1))
        self._batches, self._rows, self._bytes = [], 0, 0


def _types(connections: Sequence[StoredConnection]) -> dict[str, np.dtype[Any]]:
    """The type of each column: where connections differ, one that holds the values of both."""
    types: dict[str, np.dtype[Any]] = {}
    for connection in connections:
        arrays = connection.layout.arrays([]) if connection.layout else {}
        for name, array in arrays.items():
            mine, theirs = (
                array.dtype.newbyteorder("="),
                types.setdefault(name, array.dtype.newbyteorder("=")),
            )
            both = np.result_type(mine, theirs) if "V" not in (mine.kind, theirs.kind) else None
            # Of the integers with 64 bits, a double holds only some.
            wide = any(each.kind in "iu" and each.itemsize == 8 for each in (mine, theirs))
            if mine != theirs and (both is None or (both.kind == "f" and wide)):
                raise ConfigError(
                    f"field {name}: of type {theirs} in one connection and {mine} in another: no column can "
                    "hold both; export them one by one (--connection)"
                )
            types[name] = mine if both is None else both
    return types


def _arrow(dtype: np.dtype[Any]) -> Any:
    return pa.binary(dtype.itemsize) if dtype.kind == "V" else pa.from_numpy_dtype(dtype)


def _column(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "V":
        return pa.array(values.tolist(), _arrow(dtype))
    return pa.array(np.ascontiguousarray(values, dtype))
