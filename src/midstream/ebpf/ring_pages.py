"""The ring's memory for one who only looks, as the kernel lays it out (Documentation/bpf/ringbuf.rst)."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from midstream.ebpf import libbpf, pins

HEAD = 8  # before each record: its length and two flags, and where in the ring it lies
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_ALIKE = 64  # records of one length that are looked at together


class RecordRun(NamedTuple):
    """Records in a row that take the same room. at: where the first one's head lies. step: bytes from one to
    the next."""

    at: int
    number: int
    step: int
    discarded: bool


@contextmanager
def mapped(folder: Path) -> Iterator[tuple[mmap.mmap, mmap.mmap, int]]:
    """For reading: the consumer's page of the ring pinned in folder, then the producer's and the data twice
    in a row; and the kernel's number of the ring. Raises KernelError."""
    page = mmap.PAGESIZE
    fd = pins.open_map(folder, "ring")
    try:
        found = libbpf.map_info(fd)
        consumer = mmap.mmap(fd, page, prot=mmap.PROT_READ)
        pages = mmap.mmap(fd, page + 2 * found.max_entries, prot=mmap.PROT_READ, offset=page)
    finally:
        os.close(fd)
    with consumer, pages:
        yield consumer, pages, found.id


def runs(memory: mmap.mmap | bytes, start: int, end: int) -> Iterator[RecordRun]:
    """The records between two places, as far as they are whole."""
    at = start
    while at < end:
        word = memory[at : at + 4]
        head = int.from_bytes(word, "little")
        if head & _BUSY:  # it and those behind it are not whole yet
            return
        step = HEAD + ((head & ~_DISCARDED) + 7) // 8 * 8
        count = 1
        if memory[at + step : at + step + 4] == word:
            # Each tells where the next begins: as many are alike as have the same head one step further.
            most = min((end - at) // step, _ALIKE)
            heads = np.frombuffer(memory, np.uint8, most * step, at).reshape(most, step)
            others = np.flatnonzero((heads[:, :4] != np.frombuffer(word, np.uint8)).any(axis=1))
            count = int(others[0]) if len(others) else most
        yield RecordRun(at, count, step, bool(head & _DISCARDED))
        at += count * step
