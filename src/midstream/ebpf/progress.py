"""How far the hardworker's program has come, by its pinned maps: no work for its application."""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midstream.ebpf import libbpf, pins
from midstream.ebpf.records import CONNECTION

_KEY_SIZE = 8  # struct connection_key
# Of struct finished (connection.h) only what is needed here.
_FINISHED = np.dtype({"names": ["length"], "formats": ["<u8"], "offsets": [0], "itemsize": 16})


@dataclass(frozen=True)
class Progress:
    """connections: open now. bytes: held in order, of these and, of each stream, of the last 4096 that ended.
    fill: the part of the ring that the reader has not given back; of several rings of the fullest."""

    connections: int
    bytes: int
    fill: float


def progress(folder: Path) -> Progress:
    """Read the maps of all streams in a hardworker's folder. Raises KernelError if they are missing or of
    another layout.

    The program does not wait meanwhile: a connection that ends in this moment may count twice or not at all.
    """
    each = [_progress(place) for place in pins.stream_folders(folder).values()]
    fill = max((one.fill for one in each), default=0.0)
    return Progress(sum(one.connections for one in each), sum(one.bytes for one in each), fill)


def _progress(folder: Path) -> Progress:
    open_ = _values(folder, "connections", CONNECTION)
    finished = _values(folder, "finished", _FINISHED)
    return Progress(len(open_), int(open_["next"].sum() + finished["length"].sum()), _fill(folder))


def _fill(folder: Path) -> float:
    fd = pins.open_map(folder, "ring")
    try:
        size = libbpf.map_info(fd).max_entries
        pages = [mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=n * mmap.PAGESIZE) for n in (0, 1)]
    finally:
        os.close(fd)
    consumer, producer = (int.from_bytes(page[:8], "little") for page in pages)
    return (producer - consumer) / size


def _values(folder: Path, name: str, dtype: np.dtype[np.void]) -> np.ndarray:
    fd = pins.open_map(folder, name, value_size=dtype.itemsize)
    try:
        values = [libbpf.lookup(fd, key, dtype.itemsize) for key in set(libbpf.keys(fd, _KEY_SIZE))]
    finally:
        os.close(fd)
    return np.frombuffer(b"".join(filter(None, values)), dtype)
