"""The ring, mapped into this process and read without a system call."""

import ctypes
import mmap
import os
import struct
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np

from midstream.ebpf import compiler, libbpf
from midstream.errors import KernelError
from midstream.hardworker.messages import batch_dtype
from midstream.hardworker.source import Segment
from midstream.hardworker.streams import Streams

_HEADER = 8  # before each record: length, busy and discard bits, page offset
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
    the kernel maps them, or as a test lays them out. Reading resumes where the last reader released: the
    positions live in the ring.
    """

    def __init__(self, consumer: np.ndarray, pages: np.ndarray) -> None:
        page = mmap.PAGESIZE
        self.size = (len(pages) - page) // 2
        self._consumer, self._pages = consumer, pages
        self._bytes = pages.data
        base = pages.ctypes.data
        self._ring = _Ring(base, consumer.ctypes.data, base + page, self.size - 1)
        self._reference = ctypes.byref(self._ring)
        self._library = _library()
        self._position = ctypes.c_uint64(int(consumer[:8].view("<u8")[0]))

    @classmethod
    def map(cls, fd: int) -> Self:
        """Map a BPF ring buffer. Raises KernelError if it is none, or may not be mapped."""
        size = libbpf.map_info(fd).max_entries
        page = mmap.PAGESIZE
        try:
            consumer = mmap.mmap(fd, page)
            pages = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        except (OSError, ValueError) as error:
            raise KernelError(
                f"the ring cannot be mapped ({error}); is it pinned by this midstream?"
            ) from error
        return cls(np.frombuffer(consumer, np.uint8), np.frombuffer(pages, np.uint8))

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        """The messages of `size` bytes that come next, one a record and in order: a view of the ring, valid
        until it is released."""
        dtype = batch_dtype(size)
        stride = (_HEADER + dtype.itemsize + 7) & ~7
        position = self._position.value
        count = self._library.midstream_regular(
            self._reference, position, size, streams.table.ctypes.data, streams.count
        )
        if not count:
            return np.empty(0, dtype)
        self._position.value = position + count * stride
        start = mmap.PAGESIZE + (position & (self.size - 1)) + _HEADER
        return np.ndarray(count, dtype, self._pages, start, (stride,))

    def next(self) -> Segment | None:
        """The next record, copied; None if there is none yet."""
        if not self._library.midstream_next(self._reference, ctypes.byref(self._position)):
            return None
        position = self._position.value
        start = mmap.PAGESIZE + (position & (self.size - 1)) + _HEADER
        offset, time, connection, length, sensor, port, flags, _ = _RECORD.unpack_from(self._bytes, start)
        payload = start + _RECORD.size
        self._position.value = self._library.midstream_after(self._reference, position)
        data = bytes(self._bytes[payload : payload + length])
        return Segment(connection, sensor, port, offset, time, flags, data)

    def release(self) -> None:
        """Give what has been read back to the program; views of it are no longer valid."""
        self._library.midstream_release(self._reference, self._position)

    @property
    def used(self) -> int:
        """Bytes in use, from the last release to the program's newest record."""
        return int(self._library.midstream_used(self._reference))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.fspath(compiler.compile_library(Path(__file__).with_name("ring.c"))))
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    library.midstream_regular.argtypes = [pointer, number, ctypes.c_uint32, pointer, number]
    library.midstream_regular.restype = number
    library.midstream_next.argtypes = [pointer, pointer]
    library.midstream_after.argtypes = [pointer, number]
    library.midstream_after.restype = number
    library.midstream_release.argtypes = [pointer, number]
    library.midstream_release.restype = None
    library.midstream_used.argtypes = [pointer]
    library.midstream_used.restype = number
    return library
