"""What the ring retains for the logger, in case that loses what it has acknowledged and not committed.

The daemon says what the logger has committed of each connection (Committed), some ten times a second. The
ring's reader gives no other room back (hardworker/ring.c), as long as it was told so within 15 seconds.
Beyond half of the ring the oldest goes. When the logger fails, the daemon takes from the ring what that lacks
(`retained`).
"""

import mmap
import os
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from midstream.ebpf import libbpf, pins, records
from midstream.ebpf.ring_pages import HEAD, mapped, runs

_RECORD = struct.Struct("<QQIIHHHH")  # records.RECORD


class Stored(NamedTuple):
    """A record: some bytes of a stream, or an event of its connection, or both. time: CLOCK_MONOTONIC,
    nanoseconds. flags: records.OPEN, FIN, RESET."""

    offset: int
    time: int
    flags: int
    data: bytes


@dataclass(frozen=True)
class Retained:
    """What the ring has of a connection: its records, in the order in which they were stored, which is not
    always that of their offsets. Where two have the same byte, `Stream` of daemon/reassembly.py decides."""

    sensor: int
    port: int
    records: list[Stored]


def retained(folder: Path) -> dict[int, Retained]:
    """All that is in the rings of a hardworker's folder, by the connections' numbers: what the readers have
    not given back, and what they have not read yet. Nothing is taken out. Raises KernelError."""
    found: dict[int, Retained] = {}
    for place in pins.stream_folders(folder).values():
        found |= _retained(place)
    return found


def _retained(folder: Path) -> dict[int, Retained]:
    with mapped(folder) as (consumer, pages, _):
        return collect(lambda: consumer[:8], pages)


def collect(consumer: Callable[[], bytes], pages: mmap.mmap | memoryview) -> dict[int, Retained]:
    """The same of a ring in memory. consumer(): the position up to which room is given back, which the reader
    moves meanwhile. pages: the producer's page and then the data, twice in a row."""
    begin, end = (int.from_bytes(position, "little") for position in (consumer(), pages[:8]))
    start = mmap.PAGESIZE + begin % ((len(pages) - mmap.PAGESIZE) // 2)
    data = bytes(pages[start : start + end - begin])
    at = int.from_bytes(consumer(), "little") - begin  # what lies before that may have been overwritten
    found: dict[int, Retained] = {}
    for run in runs(data, at, len(data)):
        if run.discarded:
            continue
        for record in range(run.at + HEAD, run.at + run.number * run.step, run.step):
            offset, moment, connection, length, sensor, port, flags, _ = _RECORD.unpack_from(data, record)
            behind = record + _RECORD.size
            payload = data[behind : behind + length]
            of_connection = found.setdefault(connection, Retained(sensor, port, []))
            of_connection.records.append(Stored(offset, moment, flags, payload))
    return found


class Committed:
    """What the logger has committed, as the daemon tells the reader.

    memory: the map `committed`. publish(generation): write its first word, after all others.
    """

    def __init__(self, memory: np.ndarray, publish: Callable[[int], None]) -> None:
        head = records.COMMITTED_HEAD.itemsize
        table = (len(memory) - head) // 2
        self._head = memory[:head].view(records.COMMITTED_HEAD)
        self._tables = [memory[start : start + table] for start in (head, head + table)]
        self._most = (table - records.COMMITTED_TABLE.itemsize) // records.COMMITTED.itemsize
        self._publish = publish

    @classmethod
    def open(cls, folder: Path) -> Self:
        """That of the ring pinned in folder. Raises KernelError."""
        fd = pins.open_map(folder, "committed", value_size=8)
        try:
            size = 8 * libbpf.map_info(fd).max_entries
            memory = mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        finally:
            os.close(fd)

        def publish(generation: int) -> None:
            fd = pins.open_map(folder, "committed", value_size=8)
            try:
                libbpf.update(fd, bytes(4), generation.to_bytes(8, "little"))
            finally:
                os.close(fd)

        return cls(np.frombuffer(memory, np.uint8, size), publish)

    def tell(self, committed: Mapping[int, int], known: int) -> None:
        """committed: of each connection that is to be retained, by its number, so many bytes of its stream
        are committed. known: the latest number that was seen. Of other connections nothing is retained that
        are not later than that; of later ones everything is, until they are known.

        There is room for at least twice as many, but one, as may be open; of others nothing is retained.
        Raises KernelError.
        """
        places = 2
        while places < min(2 * len(committed), self._most):
            places *= 2
        table: list[tuple[int, int]] = [(0, 0)] * places
        for number, offset in islice(committed.items(), places - 1):
            place = number % places
            while table[place][0]:
                place = (place + 1) % places
            table[place] = 1 << 32 | number, offset
        generation = int(self._head["generation"][0]) + 1
        memory, head = self._tables[generation % 2], records.COMMITTED_TABLE.itemsize
        memory[:head].view(records.COMMITTED_TABLE)[0] = known, places - 1, 0
        memory[head : head + places * records.COMMITTED.itemsize].view(records.COMMITTED)[:] = table
        self.renew()
        self._publish(generation)

    def renew(self) -> None:
        """What was told last holds for another 15 seconds: so the reader waits until `retained` was asked."""
        self._head["time"] = time.monotonic_ns()

    def withdraw(self) -> None:
        """Nothing is retained any more, until it is told again."""
        self._head["time"] = 0

    @property
    def forfeited(self) -> int:
        """Bytes of the ring (with the records' heads) that the reader has given back uncommitted, since the
        logger's word was too old, or the ring half full."""
        return int(self._head["forfeited"][0])
