"""Where the hardworker's bytes come from: the ring of the eBPF program, or ordinary sockets."""

from typing import NamedTuple, Protocol

import numpy as np

from midstream.hardworker.forms import Form, Turn
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.streams import Streams


class Segment(NamedTuple):
    """Some bytes of a stream, or an event of a connection, or both.

    The fields are those of struct record in ebpf/record.h.
    """

    connection: int
    sensor: int
    port: int
    offset: int
    time: int
    flags: int
    data: bytes


class Beginning(NamedTuple):
    """A connection by what its two ends say of it, so that the logger knows it, too.

    sensor: position in const.toml's list. first: TCP's sequence number of its first byte. opened_ns: since
    1970, by this host's clock.
    """

    sensor: int
    port: int
    first: int
    opened_ns: int


class Pace(NamedTuple):
    """How a turn waits for messages of `size` bytes.

    period: nanoseconds, begun `follow` nanoseconds after `newest` or, if that is 0, with the clock; 0: until
    something arrives. stop: a descriptor that ends a turn when it is readable, as it is with the source's
    timer.
    """

    size: int
    period: int
    follow: int
    stop: int


class Source(Protocol):
    """What a Hardworker reads from."""

    def look(self) -> None:
        """What has arrived until now is what `regular` and `next` give, until the next look: a reader that
        is slower than the sensors must give room back before it has read all. Raises DetachedError
        (watch.py) if nothing is left, and nothing will come."""
        ...

    @property
    def timer(self) -> int:
        """A descriptor that polls readable when `tend` is due; -1: it never is."""
        ...

    def tend(self) -> None:
        """See whether anything may still come: raises as `look` does."""
        ...

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        """The next messages of `size` bytes, as far as they lie whole and in order: maybe a view, valid until
        `commit`; maybe empty."""
        ...

    def next(self) -> Segment | None:
        """The next segment; None if there is none yet."""
        ...

    def pace(self, form: Form, pace: Pace, streams: Streams) -> Turn:
        """A turn: commit, wait as `pace` says, look, and give what `regular` would, in this form.

        It gives None if that takes more than one step: then go on with what it has `found`.
        """
        ...

    def found(self) -> np.ndarray | None:
        """The messages that the last turn found, as `regular` gives them; another look may find more behind
        them. None if it did nothing, or what it found has been committed."""
        ...

    def restore(self) -> Snapshot | None:
        """What an earlier reader committed, from which this one goes on."""
        ...

    @property
    def has_uncommitted(self) -> bool:
        """Has something been read that is not committed, and would be given again?"""
        ...

    def commit(self, streams: Streams) -> bool:
        """What has been read is done with; False, and nothing done, if that cannot be remembered yet."""
        ...

    def fileno(self) -> int:
        """A descriptor that polls readable when there is something to read."""
        ...

    @property
    def newest(self) -> int:
        """When the last segment read arrived, CLOCK_MONOTONIC nanoseconds; 0: unknown, or none was read."""
        ...

    @property
    def fill(self) -> float:
        """How full the buffer is, from 0 to 1."""
        ...

    def beginnings(self) -> list[Beginning]:
        """Of each sensor some of the first connections that came here, as far as known; whatever came before
        the first of them is not here."""
        ...

    def close(self) -> None:
        """Let go of descriptors and mappings."""
        ...
