"""A byte stream put in order again: what TCP calls reassembly.

The program stores every segment with its offset, also one behind a hole, and it may store a byte twice
where segments overlap. Here each byte is delivered once and in order. Of two versions of a byte the one is
delivered that Linux's TCP keeps: the one that came in order, whatever waits behind the hole that it fills.
The application's reader does the same in C (hardworker/assembly.c).
"""

from bisect import bisect_left
from collections import deque
from operator import attrgetter

_end_of = attrgetter("end")


class _EarlyRun:
    """Bytes behind a hole without a gap between them, in the pieces in which they came."""

    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int, data: bytes) -> None:
        self.start, self.end = start, start + len(data)
        self.pieces = deque([data])

    def joined(self, other: "_EarlyRun") -> "_EarlyRun":
        """This run and the one that begins at its end. The smaller is moved: all moves together are few."""
        start, end = self.start, other.end
        if len(self.pieces) >= len(other.pieces):
            larger = self
            larger.pieces.extend(other.pieces)
        else:
            larger = other
            larger.pieces.extendleft(reversed(self.pieces))
        larger.start, larger.end = start, end
        return larger

    def behind(self, offset: int) -> deque[bytes]:
        """Its pieces from an offset on, which is not before its start."""
        pieces, surplus = self.pieces, offset - self.start
        while pieces and len(pieces[0]) <= surplus:
            surplus -= len(pieces.popleft())
        if pieces and surplus:
            pieces[0] = pieces[0][surplus:]
        return pieces


class Stream:
    """One connection's bytes; `next` is the offset of the first that has not come in order.

    Bytes behind a hole wait: at most as many, in as many runs, as the program lets through (EARLY_WINDOW and
    EARLY_RANGES in connection.h, 1 MiB and 8). All work is linear in what arrives.
    """

    def __init__(self, start: int = 0) -> None:
        self.next = start
        self._early: list[_EarlyRun] = []  # sorted; they neither overlap nor touch

    @property
    def has_early(self) -> bool:
        """Are there bytes behind a hole?"""
        return bool(self._early)

    def push(self, offset: int, data: bytes) -> bytes:
        """Take a segment; return the bytes that are now next in order, maybe none."""
        end = offset + len(data)
        if offset > self.next:
            for start, stop in self._missing(offset, end):
                self._wait(_EarlyRun(start, data[start - offset : stop - offset]))
            return b""
        if end <= self.next:
            return b""
        ready = [data[self.next - offset :]]
        self.next = end
        reached = 0
        while reached < len(self._early) and self._early[reached].start <= self.next:
            run = self._early[reached]
            ready += run.behind(self.next)
            self.next = max(self.next, run.end)
            reached += 1
        del self._early[:reached]
        return b"".join(ready)

    def _missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range, behind the hole, that do not wait already."""
        gaps: list[tuple[int, int]] = []
        place = bisect_left(self._early, start, key=_end_of)
        while start < end:
            if place == len(self._early):
                return [*gaps, (start, end)]
            run = self._early[place]
            if start < run.start:
                gaps.append((start, min(end, run.start)))
            start = max(start, run.end)
            place += 1
        return gaps

    def _wait(self, run: _EarlyRun) -> None:
        """Put a run between the others, which it does not overlap, and join it with those that it touches."""
        early = self._early
        place = bisect_left(early, run.start, key=_end_of)
        if place < len(early) and early[place].end == run.start:
            run = early.pop(place).joined(run)
        if place < len(early) and early[place].start == run.end:
            run = run.joined(early.pop(place))
        early.insert(place, run)
