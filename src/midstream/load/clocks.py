"""Whether the clock of a capture was moved while it was captured."""

from dataclasses import dataclass

from midstream.load.segment import SYN, CapturedSegment

_SECOND = 1_000_000_000
_BACK, _BACK_OF_ALL = 1_000_000, 10_000_000
"""Nanoseconds that a packet may be stamped before the one in front of it, of its connection and of its
interface: cores that capture together do that. More is a clock that was put back."""
_PAUSE = _SECOND
"""Of shorter pauses, and before so much of a connection, its sender's clock is not asked."""
_SLOWEST, _FASTEST = 50, 10_000
"""Ticks a second of the senders' clocks that are asked: slower ones are coarse, faster ones come round."""


@dataclass
class _Sender:
    """When a sender's clock was seen first and last: nanoseconds of the capture, ticks of the sender."""

    began: int
    first: int
    at: int
    ticks: int

    def unseen(self, time: int, ticks: int) -> int:
        """By how many nanoseconds a pause is longer by the capture's clock than by the sender's."""
        pause, known = time - self.at, self.at - self.began
        if pause < _PAUSE or known < _PAUSE:
            return 0
        rate = ((self.ticks - self.first) & 0xFFFFFFFF) * _SECOND // known
        if not _SLOWEST <= rate <= _FASTEST:
            return 0
        passed = ((ticks - self.ticks) & 0xFFFFFFFF) * _SECOND // rate
        return pause - passed if pause > 2 * passed + _PAUSE else 0


class CaptureClocks:
    """The clocks of a capture's interfaces, beside those of the senders. back: packets that were stamped
    before the one in front of them, by no more than happens."""

    def __init__(self) -> None:
        self.back = 0
        self._latest: dict[object, int] = {}
        self._senders: dict[object, _Sender] = {}

    def take(self, interface: int, time: int, segment: CapturedSegment | None) -> int:
        """By how many nanoseconds the clock was moved before this packet; 0: it was not."""
        clocks: list[tuple[object, int]] = [(interface, _BACK_OF_ALL)]
        if segment:
            clocks.append(((interface, *sorted((segment.flow, segment.back))), _BACK))
        back = [self._latest.get(clock, time) - time for clock, _ in clocks]
        for (clock, most), by in zip(clocks, back, strict=True):
            if by > most:
                return -by
            self._latest[clock] = time + max(by, 0)
        self.back += max(back) > 0
        return self._ask(interface, time, segment) if segment and segment.ticks is not None else 0

    def _ask(self, interface: int, time: int, segment: CapturedSegment) -> int:
        assert segment.ticks is not None
        key = (interface, segment.flow)
        sender = self._senders.get(key)
        if sender is None or segment.flags & SYN:
            self._senders[key] = _Sender(time, segment.ticks, time, segment.ticks)
            return 0
        moved = sender.unseen(time, segment.ticks)
        if time > sender.at:
            sender.at, sender.ticks = time, segment.ticks
        return moved
