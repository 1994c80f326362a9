"""As what a cycle gives messages to the application: rows of a batch, or columns."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from midstream.config import Config
from midstream.ebpf.records import LARGEST_RECORD, RECORD
from midstream.errors import ConfigError
from midstream.hardworker.messages import batch_dtype

USUAL = 256
"""ring.c gathers the columns of a cycle with fewer messages."""


class Rows:
    """A structured array, whose payload is seen as a dtype of `size` bytes."""

    def __init__(self, size: int, payload: np.dtype | None = None) -> None:
        self.dtype = batch_dtype(size, payload)

    def of(self, batch: np.ndarray) -> np.ndarray:
        """The messages of a batch, as `Hardworker.read` gives it."""
        return batch.view(self.dtype)


class Columns:
    """An array for each name, with a value for each message end to end.

    names: `sequence`; others are fields of the payload and, where it has no such field, of `batch_dtype`.
    ring.c copies the values into the same memory in every cycle, as `plan` says, and gives usual[n] for n
    messages; for more than `usual` has, and for messages that no record holds, `of` makes arrays. Raises
    KeyError for a name that there is not.
    """

    def __init__(self, size: int, payload: np.dtype | None, names: Sequence[str]) -> None:
        self.dtype = batch_dtype(size, payload)
        self._size, self._names = size, names
        self._inner = _places(self.dtype["payload"], RECORD.itemsize)
        self._outer = _places(self.dtype)
        places = [self._place(name) for name in names]
        most = USUAL if RECORD.itemsize + size <= LARGEST_RECORD else 1
        self._memory = [np.zeros(most, place.dtype) for place in places]
        self.usual = [tuple(array[:count] for array in self._memory) for count in range(most)]
        self.plan = np.array(
            [
                (place.offset, place.dtype.itemsize, place.divisor, array.ctypes.data)
                for place, array in zip(places, self._memory, strict=True)
            ],
            "<u8",
        )

    def of(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """The messages of a batch, as `Hardworker.read` gives it."""
        rows = batch.view(self.dtype)
        return tuple(self._column(rows, name) for name in self._names)

    def _column(self, rows: np.ndarray, name: str) -> np.ndarray:
        if name in self._inner:
            return rows["payload"][name].copy()
        return rows["offset"] // self._size if name == "sequence" else rows[name].copy()

    def _place(self, name: str) -> "_Place":
        if name == "sequence" and name not in self._inner:
            return self._outer["offset"]._replace(divisor=self._size)
        return self._inner[name] if name in self._inner else self._outer[name]


View = Rows | Columns


def need_fixed(config: Config, method: str) -> None:
    """Raises ConfigError if messages are not of one size, so that there are no arrays of them."""
    if config.data.framing != "fixed":
        raise ConfigError(
            f'{config.path}: data.framing = "{config.data.framing}": {method}() gives arrays, '
            "which need fixed framing; iterate over the messages instead"
        )


def seen(
    config: Config, size: int, payload: npt.DTypeLike | None, method: str
) -> np.dtype[np.generic] | None:
    """The dtype as which payloads of `size` bytes are to be seen, if one is asked for. Raises ConfigError if
    they cannot be, or are not of one size."""
    need_fixed(config, method)
    if payload is None:
        return None
    dtype = np.dtype(payload)
    if dtype.itemsize != size:
        raise ConfigError(
            f"{config.path}: a message has {size} bytes, and the dtype given to {method}() "
            f"{dtype.itemsize}; give one of {size} bytes"
        )
    if dtype.hasobject:
        raise ConfigError(f"the dtype given to {method}() has Python objects, which no message holds")
    return dtype


def named(config: Config, size: int, payload: np.dtype | None, names: Sequence[str]) -> Columns:
    """The columns of these names. Raises ConfigError for none, and for a name that there is not."""
    if not names:
        raise ConfigError("columns() was asked for nothing; name at least one field of a message")
    try:
        return Columns(size, payload, names)
    except KeyError as error:
        raise ConfigError(
            f"{config.path}: columns() was asked for {error}, which no message has; "
            "describe it by a [[data.field]] table, or give a dtype for the payload that has it"
        ) from None


class _Place(NamedTuple):
    """Where in a record a value lies. divisor: by which it has to be divided; 0: it is copied."""

    dtype: np.dtype
    offset: int
    divisor: int = 0


def _places(dtype: np.dtype, start: int = 0) -> Mapping[str, _Place]:
    return {name: _Place(field[0], start + field[1]) for name, field in (dtype.fields or {}).items()}
