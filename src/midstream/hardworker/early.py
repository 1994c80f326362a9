"""Bytes behind a hole, as one stream keeps them until the hole is filled."""

import struct
from collections import deque
from collections.abc import Iterator

PIECE = struct.Struct("<IIQ")
"""What stands before a piece in the journal: connection, length, offset."""


class EarlyRun:
    """Bytes behind a hole without a gap between them, in the pieces in which they came."""

    __slots__ = ("_fresh", "_pieces", "end", "fresh_size", "start")

    def __init__(self, start: int, data: bytes) -> None:
        self.start, self.end = start, start + len(data)
        self._pieces = deque([data])
        self._fresh = [(start, data)]  # those that were not kept, in any order
        self.fresh_size = len(data) + PIECE.size  # at most, with their places in the journal

    def joined(self, other: "EarlyRun") -> "EarlyRun":
        """This run and the one that begins at its end. The smaller is moved: all moves together are few."""
        if len(self._pieces) >= len(other._pieces):
            larger, smaller = self, other
            larger._pieces.extend(smaller._pieces)
        else:
            larger, smaller = other, self
            larger._pieces.extendleft(reversed(smaller._pieces))
        larger.start, larger.end = self.start, other.end
        if len(larger._fresh) < len(smaller._fresh):
            larger._fresh, smaller._fresh = smaller._fresh, larger._fresh
        larger._fresh += smaller._fresh
        larger.fresh_size += smaller.fresh_size
        return larger

    def behind(self, offset: int) -> deque[bytes]:
        """Its pieces from an offset on, which is not before its start."""
        pieces, surplus = self._pieces, offset - self.start
        while pieces and len(pieces[0]) <= surplus:
            surplus -= len(pieces.popleft())
        if pieces and surplus:
            pieces[0] = pieces[0][surplus:]
        return pieces

    def fresh_pieces(self) -> Iterator[tuple[int, bytes]]:
        """What was not kept, in order, joined where nothing lies between."""
        joined, end = bytearray(), 0
        for offset, piece in sorted(self._fresh):
            if joined and offset != end:
                yield end - len(joined), bytes(joined)
                joined.clear()
            joined += piece
            end = offset + len(piece)
        if joined:
            yield end - len(joined), bytes(joined)

    def keep(self) -> None:
        """All of it has been kept."""
        self._fresh, self.fresh_size = [], 0
