"""When each record came into the ring, for whoever looks now and then.

Nothing is taken out of the ring, and its reader does not notice. What the reader has given back stays
readable until the program writes over it: a ring that holds two seconds is seen whole by one look per second.
"""

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midstream.ebpf import records
from midstream.ebpf.retained import BUSY, DISCARDED, HEAD, mapped

_ALIKE = 64  # records of one length that are looked at together


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
    at, found = start, [np.empty(0, records.RECORD)]
    while at < end:
        word = pages[at : at + 4]
        head = int.from_bytes(word, "little")
        if head & BUSY:  # it and those behind it are not whole yet
            break
        step = HEAD + ((head & ~DISCARDED) + 7) // 8 * 8
        count = 1
        if pages[at + step : at + step + 4] == word:
            # Each tells where the next begins: as many are alike as have the same head one step further.
            most = min((end - at) // step, _ALIKE)
            heads = np.frombuffer(pages, np.uint8, most * step, at).reshape(most, step)
            others = np.flatnonzero((heads[:, :4] != np.frombuffer(word, np.uint8)).any(axis=1))
            count = int(others[0]) if len(others) else most
        if not head & DISCARDED:
            rows = np.frombuffer(pages, np.uint8, count * step, at).reshape(count, step)
            found.append(rows[:, HEAD : HEAD + records.RECORD.itemsize].copy().view(records.RECORD)[:, 0])
        at += count * step
    return np.concatenate(found), at - start
