"""When each record came into the ring, for whoever looks now and then.

Nothing is taken out of the ring, and its reader does not notice. What the reader has given back stays
readable until the program writes over it: a ring that holds two seconds is seen whole by one look per second.
"""

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midstream.ebpf import pins, records
from midstream.ebpf.ring_pages import HEAD, mapped, runs


class StreamHeads:
    """The heads of the records in the rings of a hardworker's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rings: dict[str, RingHeads] = {}

    def read(self) -> dict[str, npt.NDArray[np.void]]:
        """As RingHeads, per stream. Raises KernelError."""
        places = pins.stream_folders(self._folder)
        self._rings = {name: self._rings.get(name) or RingHeads(place) for name, place in places.items()}
        return {name: ring.read() for name, ring in self._rings.items()}


class RingHeads:
    """The heads of the records in the ring that is pinned in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ring = self._at = -1

    def read(self) -> npt.NDArray[np.void]:
        """Those (records.RECORD) that were stored since this was asked last, in the ring's order; at first
        all that is there. What the program has written over is left out. Raises KernelError."""
        page = mmap.PAGESIZE
        with mapped(self._folder) as (consumer, pages, ring):
            size = (len(pages) - page) // 2
            if ring != self._ring or self._is_overwritten(consumer, pages):
                self._ring, self._at = ring, int.from_bytes(consumer[:8], "little")
            start, end = page + self._at % size, int.from_bytes(pages[:8], "little")
            found, length = chain(pages, start, start + end - self._at)
            overwritten = self._is_overwritten(consumer, pages)
            self._at += length
        return found[:0] if overwritten else found

    def _is_overwritten(self, consumer: mmap.mmap, pages: mmap.mmap) -> bool:
        """May what begins here have been written over? Only what the reader has given back is, and a record's
        head is written before the producer's position tells of it."""
        size = (len(pages) - mmap.PAGESIZE) // 2
        end = int.from_bytes(pages[:8], "little")
        given_back = int.from_bytes(consumer[:8], "little")
        return end - self._at > size - records.LARGEST_RECORD and given_back > self._at


def chain(pages: mmap.mmap | bytes, start: int, end: int) -> tuple[npt.NDArray[np.void], int]:
    """The heads of the whole records between two places, in a row; and how many bytes the records take."""
    behind, found = start, [np.empty(0, records.RECORD)]
    for run in runs(pages, start, end):
        behind = run.at + run.number * run.step
        if not run.discarded:
            rows = np.frombuffer(pages, np.uint8, behind - run.at, run.at).reshape(run.number, run.step)
            found.append(rows[:, HEAD : HEAD + records.RECORD.itemsize].copy().view(records.RECORD)[:, 0])
    return np.concatenate(found), behind - start
