"""A reader of the ring for the tests alone: slow, plain, and independent of the one that midstream uses.

The layout is the kernel's (Documentation/bpf/ringbuf.rst): a page with the consumer's position, a page with
the producer's, then the data, mapped twice in a row so that no record is ever cut in two.
"""

import mmap
import struct
from dataclasses import dataclass, field

from midstream.ebpf import libbpf, records

BUSY, DISCARDED = 1 << 31, 1 << 30
HEAD = 8  # before each record: its length and two flags, and where in the ring it lies


@dataclass(frozen=True)
class Record:
    """A record as a test expects it. room: bytes reserved for the payload; None is as good as any."""

    offset: int
    payload: bytes
    flags: int
    sensor: int
    port: int
    connection: int
    room: int | None = field(default=None, compare=False)
    time: int = field(default=0, compare=False)


class Ring:
    def __init__(self, fd: int) -> None:
        self.size = libbpf.map_info(fd).max_entries
        self._consumer = mmap.mmap(fd, mmap.PAGESIZE)
        self._producer = mmap.mmap(
            fd, mmap.PAGESIZE + 2 * self.size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
        )

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()

    @property
    def produced(self) -> int:
        """The position at which the next record will be reserved."""
        return self._position(self._producer)

    def take(self, most: int | None = None) -> list[Record]:
        """What was stored, all of it or at most so many records, in its order; its room is given back."""
        found, position = self.peek(self._position(self._consumer), most)
        self._consumer[:8] = struct.pack("<Q", position)
        return found

    def peek(self, position: int, most: int | None = None) -> tuple[list[Record], int]:
        """What was stored from a position on, and where that ends; nothing is given back."""
        end = self.produced
        found: list[Record] = []
        while position < end and (most is None or len(found) < most):
            start = mmap.PAGESIZE + position % self.size
            head = struct.unpack_from("<I", self._producer, start)[0]
            assert not head & BUSY, "a record was reserved, and neither submitted nor discarded"
            length = head & ~DISCARDED
            if not head & DISCARDED:
                found.append(_parse(self._producer[start + HEAD : start + HEAD + length]))
            position += HEAD + (length + 7) // 8 * 8
        return found, position

    @staticmethod
    def _position(page: mmap.mmap) -> int:
        return int(struct.unpack_from("<Q", page)[0])


def _parse(data: bytes) -> Record:
    offset, time, connection, length, sensor, port, flags, unused = struct.unpack_from("<QQIIHHHH", data)
    room = len(data) - records.RECORD.itemsize
    assert length <= room
    assert unused == 0
    payload = data[records.RECORD.itemsize :][:length]
    return Record(offset, payload, flags, sensor, port, connection, room, time)
