"""How far the hardworker's program has come, by its pinned maps: no work for its application."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midstream.ebpf import libbpf, pins

_KEY_SIZE = 8  # struct connection_key
# Of struct connection and struct finished (connection.h) only what is needed here; the size of the whole is
# compared with that of the map's values.
_CONNECTION = np.dtype({"names": ["next"], "formats": ["<u8"], "offsets": [8], "itemsize": 184})
_FINISHED = np.dtype({"names": ["length"], "formats": ["<u8"], "offsets": [0], "itemsize": 24})


@dataclass(frozen=True)
class Progress:
    """connections: open now. bytes: held in order, of these and of the last 4096 that ended."""

    connections: int
    bytes: int


def progress(folder: Path) -> Progress:
    """Read the maps pinned in `folder`. Raises KernelError if they are missing or of another layout.

    The program does not wait meanwhile: a connection that ends in this moment may count twice or not at all.
    """
    open_ = _values(folder, "connections", _CONNECTION)
    finished = _values(folder, "finished", _FINISHED)
    return Progress(len(open_), int(open_["next"].sum() + finished["length"].sum()))


def _values(folder: Path, name: str, dtype: np.dtype[np.void]) -> np.ndarray:
    fd = pins.open_map(folder, name, value_size=dtype.itemsize)
    try:
        values = [libbpf.lookup(fd, key, dtype.itemsize) for key in set(libbpf.keys(fd, _KEY_SIZE))]
    finally:
        os.close(fd)
    return np.frombuffer(b"".join(filter(None, values)), dtype)
