"""The fields of a fixed message: config.toml's [[data.field]] as a NumPy dtype, and as named, scaled columns.

A message is described once, and the same description serves the application on the hardworker (a structured
view of the batch, nothing copied), the columns of the logger's database, what is printed, and every export.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from midstream.config import Config, beyond, field_columns
from midstream.errors import ConfigError

Kind = Literal["integer", "real", "bytes"]

_MAX_INTEGER = 2**63 - 1  # of a database's column; an unsigned 64-bit value may be larger


@dataclass(frozen=True, slots=True)
class Field:
    """Some bytes of every message. A value is what is in them × scale + bias, in `unit`.

    type: a NumPy type with its byte order, such as "<f4"; "?" is a byte that is true if it is not 0. offset:
    bytes from the message's start. count: values in a row.
    """

    name: str
    type: str
    offset: int
    count: int = 1
    unit: str = ""
    scale: float = 1.0
    bias: float = 0.0

    @property
    def scaled(self) -> bool:
        """Is a value another than the number in the message?"""
        return (self.scale, self.bias) != (1.0, 0.0)

    @property
    def kind(self) -> Kind:
        """What a value is: a scaled integer is a real number, true and false are 1 and 0."""
        letter = np.dtype(self.type).kind
        if letter == "V":
            return "bytes"
        return "real" if letter == "f" or self.scaled else "integer"


@dataclass(frozen=True, slots=True)
class Column:
    """One value of a message, as a database or a file of exported messages names it."""

    name: str
    kind: Kind
    unit: str
    field: Field
    index: int  # of the value in its field


@dataclass(frozen=True)
class Layout:
    """The fields of a message of `size` bytes. Bytes that no field names are left alone."""

    size: int
    fields: tuple[Field, ...]

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """A message as a structured type of exactly `size` bytes, with each field where it lies."""
        return np.dtype(
            {
                "names": [field.name for field in self.fields],
                "formats": [
                    (field.type, field.count) if field.count > 1 else field.type for field in self.fields
                ],
                "offsets": [field.offset for field in self.fields],
                "itemsize": self.size,
            }
        )

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """A column for each value: of a field with several values NAME_0, NAME_1, …"""
        return tuple(
            Column(name, field.kind, field.unit, field, index)
            for field in self.fields
            for index, name in enumerate(field_columns(field.name, field.count))
        )

    def view(self, messages: np.ndarray | bytes | memoryview) -> np.ndarray:
        """The messages of a batch of `Hardworker.read`, or of bytes end to end, as rows of named fields.

        The result has shape (n,) and the dtype `dtype`. Nothing is copied and nothing is scaled:
        `layout.view(batch)["temperature"]` is what was sent. ValueError if bytes are no multiple of `size`.
        """
        if not isinstance(messages, np.ndarray):
            return np.frombuffer(messages, self.dtype)
        payloads = messages["payload"] if messages.dtype.names else messages
        rows: np.ndarray = payloads.view(self.dtype)[..., 0]
        return rows

    def scaled(self, messages: np.ndarray | bytes | memoryview, field: Field) -> np.ndarray:
        """A field's values in its unit, one per message: shape (n,), or (n, count) if it has several.

        A scaled number is a float64; others keep their type.
        """
        values: np.ndarray = self.view(messages)[field.name]
        if field.type == "?":
            values = np.not_equal(values.view(np.uint8), 0)  # NumPy expects no other bytes than 0 and 1
        elif field.scaled:
            with np.errstate(over="ignore", invalid="ignore"):  # what is infinite then, readers see
                values = np.multiply(values, field.scale, dtype=np.float64) + field.bias
        return values

    def arrays(self, payloads: Iterable[bytes]) -> dict[str, npt.NDArray[Any]]:
        """The column of each name, in its unit and of shape (n,), for n messages that are in memory."""
        joined = b"".join(payloads)
        arrays = {}
        for field in self.fields:
            values = self.scaled(joined, field)
            for index, name in enumerate(field_columns(field.name, field.count)):
                arrays[name] = values if field.count == 1 else values[:, index]
        return arrays

    def values(self, payloads: Iterable[bytes]) -> list[tuple[int | float | bytes | None, ...]]:
        """A row of column values for each message, as a database takes them.

        None is what no database column holds: no number (NaN), and an unsigned integer from 2^63 on.
        """
        return list(zip(*map(_storable, self.arrays(payloads).values()), strict=True))

    def describe(self) -> str:
        """The layout as a JSON text, from which `parse` makes it again: it is stored beside the messages."""
        return json.dumps({"size": self.size, "fields": [asdict(field) for field in self.fields]})

    @classmethod
    def parse(cls, description: str) -> Self:
        """The layout that was described. ValueError, KeyError or TypeError if it is none."""
        document = json.loads(description)
        return cls(document["size"], tuple(Field(**field) for field in document["fields"]))


def layout(config: Config, size: int) -> Layout | None:
    """The layout of config.toml for messages of `size` bytes; None if it names no fields.

    Raises ConfigError with a line for each field that reaches beyond the message.
    """
    entries = list(zip(config.data.field, config.data.field_offsets, strict=True))
    faults = [
        f"{config.path}: data.field[{index}] ({entry.name}): {beyond(offset, entry.width, size)} "
        f"([data] size in {config.const_path}); correct its offset or type"
        for index, (entry, offset) in enumerate(entries)
        if offset + entry.width > size
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    if not entries:
        return None
    return Layout(
        size,
        tuple(
            Field(
                entry.name,
                _numpy_type(entry.type, entry.byte_order, entry.size),
                offset,
                entry.count,
                entry.unit,
                entry.scale,
                entry.bias,
            )
            for entry, offset in entries
        ),
    )


def _numpy_type(kind: str, byte_order: str, size: int | None) -> str:
    if kind == "bytes":
        return f"V{size}"
    if kind == "bool":
        return "?"
    order = "|" if kind[1:] == "8" else "<" if byte_order == "little" else ">"
    return f"{order}{kind[0]}{int(kind[1:]) // 8}"


def _storable(values: npt.NDArray[Any]) -> list[Any]:
    listed: list[Any] = (values.astype(np.uint8) if values.dtype.kind == "b" else values).tolist()
    if values.dtype.kind == "f":
        missing = np.isnan(values)
    elif values.dtype.kind == "u" and values.dtype.itemsize == 8:
        missing = values > _MAX_INTEGER
    else:
        return listed
    for index in np.flatnonzero(missing):
        listed[index] = None
    return listed
