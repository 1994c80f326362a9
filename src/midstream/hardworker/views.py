"""As what a cycle gives messages to the application: rows of a batch, or columns."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from midstream import fields
from midstream.config import Config
from midstream.ebpf.records import LARGEST_RECORD, RECORD
from midstream.errors import ConfigError
from midstream.fields import Layout
from midstream.hardworker.messages import batch_dtype
from midstream.network import Topology

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


class Arrays:
    """What arrays of messages there are. streams: the names of those that are read.

    size: bytes of a message, for fixed framing; layout: its fields, if they are described. Of several
    streams: 0, and none. Raises ConfigError if config.toml and const.toml do not fit.
    """

    def __init__(self, config: Config, topology: Topology, streams: Sequence[str]) -> None:
        self._config, self._streams = config, streams
        self.size = 0
        self.layout: Layout | None = None
        if len(streams) == 1:
            self.size = config.message_size(topology.size)
            self.layout = fields.layout(config, self.size)

    def need_one(self, method: str) -> None:
        """Raises ConfigError for several streams: rows of one array are messages of one."""
        if len(self._streams) > 1:
            raise ConfigError(
                f"{self._config.path}: {method} is of one stream, and there are {', '.join(self._streams)}: "
                f'ask hardworker.stream("{self._streams[0]}"), for example'
            )

    def need_fixed(self, method: str) -> None:
        """Raises ConfigError if messages are not of one size, too, so that there are no arrays of them."""
        self.need_one(method)
        framing = self._config.data.framing
        if framing != "fixed":
            raise ConfigError(
                f'{self._config.path}: {self._config.named("framing")} = "{framing}": {method}() gives '
                "arrays, which need fixed framing; iterate over the messages instead"
            )

    def rows(self, payload: npt.DTypeLike | None) -> Rows:
        """As `Hardworker.batches` gives them. Raises ConfigError for a payload that messages do not have."""
        return Rows(self.size, self._seen(payload, "batches"))

    def columns(self, names: Sequence[str], payload: npt.DTypeLike | None) -> Columns:
        """As `Hardworker.columns` gives them. Raises ConfigError also for no names, and for one that there is
        not."""
        if payload is None and self.layout is not None:
            payload = self.layout.dtype
        dtype = self._seen(payload, "columns")
        if not names:
            raise ConfigError("columns() was asked for nothing; name at least one field of a message")
        try:
            return Columns(self.size, dtype, names)
        except KeyError as error:
            raise ConfigError(
                f"{self._config.path}: columns() was asked for {error}, which no message has; describe it "
                f"by a [[{self._table}]] table, or give a dtype for the payload that has it"
            ) from None

    def fields(self, batch: np.ndarray) -> np.ndarray:
        """As `Hardworker.fields` gives them. Raises ConfigError if no fields are described."""
        self.need_one("fields")
        if self.layout is None:
            key = self._config.named("field")
            raise ConfigError(
                f"{self._config.path}: {key} = []: no fields are described; add [[{self._table}]] tables"
            )
        return self.layout.view(batch)

    @property
    def _table(self) -> str:
        key = self._config.named("field")
        return "stream.field" if key.startswith("stream") else key

    def _seen(self, payload: npt.DTypeLike | None, method: str) -> np.dtype[np.generic] | None:
        self.need_fixed(method)
        if payload is None:
            return None
        dtype = np.dtype(payload)
        if dtype.itemsize != self.size:
            raise ConfigError(
                f"{self._config.path}: a message has {self.size} bytes, and the dtype given to {method}() "
                f"{dtype.itemsize}; give one of {self.size} bytes"
            )
        if dtype.hasobject:
            raise ConfigError(f"the dtype given to {method}() has Python objects, which no message holds")
        return dtype


class _Place(NamedTuple):
    """Where in a record a value lies. divisor: by which it has to be divided; 0: it is copied."""

    dtype: np.dtype
    offset: int
    divisor: int = 0


def _places(dtype: np.dtype, start: int = 0) -> Mapping[str, _Place]:
    return {name: _Place(field[0], start + field[1]) for name, field in (dtype.fields or {}).items()}
