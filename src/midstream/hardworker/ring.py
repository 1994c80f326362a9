"""The ring, mapped into this process and read without a system call."""

import ctypes
import mmap
import os
import struct
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np

from midstream.ebpf import compiler, records
from midstream.errors import KernelError
from midstream.hardworker.journal import Journal
from midstream.hardworker.messages import batch_dtype
from midstream.hardworker.source import Segment
from midstream.hardworker.streams import Streams

_HEADER = 8  # before each record: length, busy and discard bits, page offset
_BLOCK = 64  # a record has room for whole blocks of payload
_RECORD = struct.Struct("<QQIIHHHH")  # ebpf/records.py: RECORD, unpacked faster than NumPy does


class _Ring(ctypes.Structure):
    _fields_ = (
        ("producer", ctypes.c_void_p),
        ("consumer", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("mask", ctypes.c_uint64),
    )


class Ring:
    """Records, in the order in which the program stored them.

    `consumer` is the ring's first page, `pages` the producer's page and then the data, twice in a row: as
    the kernel maps them, or as a test lays them out; `snapshot` is what the last reader
    committed, and where reading resumes.
    """

    def __init__(self, consumer: np.ndarray, pages: np.ndarray, memory: Journal) -> None:
        page = mmap.PAGESIZE
        self.size = (len(pages) - page) // 2
        self._consumer, self._pages = consumer, pages
        self._bytes = pages.data
        base = pages.ctypes.data
        self._ring = _Ring(base, consumer.ctypes.data, base + page, self.size - 1)
        self._reference = ctypes.byref(self._ring)
        self._library = _library()
        self._journal = memory
        self.snapshot = memory.load()
        given_back = consumer[:8].view("<u8")
        position = self.snapshot.position if self.snapshot else int(given_back[0])
        given_back[0] = position  # a reader killed in `commit` may have left this undone
        self._position = ctypes.c_uint64(position)
        self._committed = position
        self._end = position

    @classmethod
    def map(cls, ring: int, journal_map: int, size: int, connections: int) -> Self:
        """Map a BPF ring buffer of `size` bytes and its journal; needs no privileges.

        Raises KernelError if they are none, or cannot be mapped.
        """
        page = mmap.PAGESIZE
        length = records.journal_size(connections, size)
        try:
            consumer = mmap.mmap(ring, page)
            pages = mmap.mmap(ring, page + 2 * size, prot=mmap.PROT_READ, offset=page)
            memory = mmap.mmap(journal_map, -(-length // page) * page)
        except (OSError, ValueError) as error:
            raise KernelError(
                f"the ring cannot be mapped ({error}); is it pinned by this midstream?"
            ) from error
        return cls(
            np.frombuffer(consumer, np.uint8),
            np.frombuffer(pages, np.uint8),
            Journal(np.frombuffer(memory, np.uint8, length), connections, size),
        )

    def look(self) -> None:
        """What has been stored until now is what `regular` and `next` give, until the next look."""
        self._end = int(self._library.midstream_end(self._reference))

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        """The messages of `size` bytes that come next, one a record and in order: a view of the ring, valid
        until it is released."""
        dtype = batch_dtype(size)
        stride = _HEADER + dtype.itemsize + -size % _BLOCK
        position = self._position.value
        count = self._library.midstream_regular(
            self._reference, position, self._end, size, streams.table.ctypes.data, streams.count
        )
        if not count:
            return np.empty(0, dtype)
        self._position.value = position + count * stride
        start = mmap.PAGESIZE + (position & (self.size - 1)) + _HEADER
        return np.ndarray(count, dtype, self._pages, start, (stride,))

    def next(self) -> Segment | None:
        """The next record, copied; None if there is none yet."""
        if not self._library.midstream_next(self._reference, ctypes.byref(self._position), self._end):
            return None
        position = self._position.value
        start = mmap.PAGESIZE + (position & (self.size - 1)) + _HEADER
        offset, time, connection, length, sensor, port, flags, _ = _RECORD.unpack_from(self._bytes, start)
        payload = start + _RECORD.size
        self._position.value = self._library.midstream_after(self._reference, position)
        data = bytes(self._bytes[payload : payload + length])
        return Segment(connection, sensor, port, offset, time, flags, data)

    def commit(self, streams: Streams, pending: bytes) -> bool:
        """Remember what has been read and give it back to the program; views of it are no longer valid.

        False, and nothing done, if the journal has no room for so many connections or pending bytes.
        """
        if self._position.value == self._committed:
            return True
        if streams.count > self._journal.connections or len(pending) > self._journal.pending:
            return False
        self._library.midstream_commit(
            self._reference,
            self._position,
            self._journal.memory.ctypes.data,
            self._journal.copy_size,
            streams.table.ctypes.data,
            streams.count,
            pending,
            len(pending),
        )
        self._committed = self._position.value
        return True

    @property
    def used(self) -> int:
        """Bytes in use, from the last release to the program's newest record."""
        return int(self._library.midstream_end(self._reference)) - self._committed


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.fspath(compiler.compile_library(Path(__file__).with_name("ring.c"))))
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    library.midstream_regular.argtypes = [pointer, number, number, ctypes.c_uint32, pointer, number]
    library.midstream_regular.restype = number
    library.midstream_next.argtypes = [pointer, pointer, number]
    library.midstream_after.argtypes = [pointer, number]
    library.midstream_after.restype = number
    short = ctypes.c_uint32
    library.midstream_commit.argtypes = [pointer, number, pointer, number, pointer, short, pointer, short]
    library.midstream_commit.restype = None
    library.midstream_end.argtypes = [pointer]
    library.midstream_end.restype = number
    return library
