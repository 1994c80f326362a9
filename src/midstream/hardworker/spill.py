"""What the ring has no room for: large unfinished messages, kept in a map that outlives the reader and grows
as it is filled.

An entry is some bytes of a stream, written once and never changed. It bears the position in the ring up to
which its writer had read: it counts once the journal says that its connection needs nothing before that, and
what a reader wrote that was killed before is removed by the next.
"""

import struct
from collections import defaultdict
from collections.abc import Mapping, MutableMapping
from heapq import heappop, heappush

from midstream.ebpf import records
from midstream.errors import KernelError

Piece = tuple[int, int, bytes]
"""Connection, offset in its stream, and bytes that belong to no message delivered."""

Unfinished = Mapping[int, tuple[int, int]]
"""By connection: the offset of its first byte that belongs to no message delivered, and the position of the
first record that its next reader needs. Those that are at a message's beginning need none."""

_ENTRY = struct.Struct("<QQII")  # struct kept of ebpf/tables.h, before the bytes
_KEY = struct.Struct("<Q")


class Spill:
    """The entries, in a map or, for a test, in a dictionary."""

    def __init__(self, memory: MutableMapping[bytes, bytes]) -> None:
        self._memory = memory
        self._written = 0
        # Of each connection a heap, the end of an entry's bytes and its key: the first to go comes first.
        self._entries: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)

    @property
    def in_use(self) -> bool:
        """Are there entries?"""
        return bool(self._entries)

    def load(self, unfinished: Unfinished) -> list[Piece]:
        """The entries that belong to what was committed, from the newest to the oldest; all others are
        removed."""
        found = []
        for key in sorted(self._memory, key=_KEY.unpack, reverse=True):
            value = self._memory[key]
            position, offset, connection, length = _ENTRY.unpack_from(value)
            start, needed = unfinished.get(connection, (None, 0))
            if start is None or position > needed or offset + length <= start:
                del self._memory[key]
                continue
            heappush(self._entries[connection], (offset + length, key))
            self._written = max(self._written, *_KEY.unpack(key))
            found.append((connection, offset, value[_ENTRY.size : _ENTRY.size + length]))
        return found

    def keep(self, position: int, piece: Piece) -> None:
        """Write some bytes that were read before this position of the ring.

        Raises KernelError if there is no room. Nothing is lost then: the ring still has them.
        """
        connection, offset, data = piece
        for start in range(0, len(data), records.KEPT_BYTES):
            part = data[start : start + records.KEPT_BYTES]
            self._written += 1
            key = _KEY.pack(self._written)
            try:
                self._memory[key] = _ENTRY.pack(position, offset + start, connection, len(part)) + part
            except KernelError as error:
                entries = sum(map(len, self._entries.values()))
                raise KernelError(
                    f"hardworker: {entries * records.KEPT_BYTES >> 20} MiB of unfinished messages are kept, "
                    f"and there is no room for more ({error}); nothing is lost, but this application cannot "
                    "go on: free memory and start it again, or let the sensors send shorter messages",
                    errno=error.errno,
                ) from error
            heappush(self._entries[connection], (offset + start + len(part), key))

    def forget(self, unfinished: Unfinished) -> None:
        """Remove the bytes of messages that are whole, and of connections that have ended, once that is
        committed."""
        for connection, entries in list(self._entries.items()):
            start, _ = unfinished.get(connection, (None, 0))
            while entries and (start is None or entries[0][0] <= start):
                del self._memory[heappop(entries)[1]]
            if not entries:
                del self._entries[connection]
