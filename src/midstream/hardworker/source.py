"""Where the hardworker's bytes come from: the ring of the eBPF program, or ordinary sockets."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np

from midstream.hardworker.cadence import Cadence
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.streams import Streams
from midstream.hardworker.views import View


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


class Status(IntEnum):
    """How a cycle ended; as in ring.h."""

    WHOLE = 0
    """All that has arrived was given."""
    MORE = 1
    """Behind the batch that it found there are records that are no whole messages, or not in order."""
    UNFIT = 2
    """The batch that it found does not fit what was prepared."""
    DECLINED = 3
    """It did nothing: what was read before is more than it can commit."""
    ENDED = 4
    """It committed, and then something ended its sleep: `stop`, or the source's timer."""
    SIGNALLED = 5
    """It committed, and then the handler of a signal ran."""


class Standing(NamedTuple):
    """Where a source stands.

    status: of its last cycle that gave None. uncommitted: has something been read that is not committed, and
    would be given again? newest: when the last segment read arrived, CLOCK_MONOTONIC nanoseconds; 0: unknown,
    or none was read. fill: how full its buffer is, from 0 to 1. timer: a descriptor that polls readable when
    `look` is due although nothing has arrived; -1: it never is.
    """

    status: Status
    uncommitted: bool
    newest: int
    fill: float
    timer: int


Cycle = Callable[[], Any]
"""Commits, waits, looks, and gives the messages in a view; None unless its status is WHOLE."""


class Source(Protocol):
    """What a Reader reads from."""

    def look(self) -> None:
        """What has arrived until now is what `next` gives, until the next look: a reader that is slower than
        the sensors must give room back before it has read all. Raises DetachedError (watch.py) if nothing is
        left, and nothing will come."""
        ...

    def next(self, size: int, streams: Streams) -> np.ndarray | Segment | None:
        """The next messages of `size` bytes, as far as they lie whole and in order: maybe a view, valid until
        `commit`. Else, and always if `size` is 0, the next segment; None if there is none yet."""
        ...

    def prepare(self, view: View, size: int, cadence: Cadence, attention: int, streams: Streams) -> Cycle:
        """A cycle that gives messages of `size` bytes in this view. attention: a descriptor that ends its
        sleep when it is readable, as it is with the source's timer."""
        ...

    def last_batch(self) -> np.ndarray | None:
        """The messages that the last cycle found, as `next` gives them; another look may find more behind
        them. None if it did nothing, or what it found has been committed."""
        ...

    def restore(self) -> Snapshot | None:
        """What an earlier reader committed, from which this one goes on."""
        ...

    def commit(self, streams: Streams) -> bool:
        """What has been read is done with; False, and nothing done, if that cannot be remembered yet."""
        ...

    @property
    def standing(self) -> Standing:
        """As of now."""
        ...

    def fileno(self) -> int:
        """A descriptor that polls readable when there is something to read."""
        ...

    def beginnings(self) -> list[Beginning]:
        """Of each sensor some of the first connections that came here, as far as known; whatever came before
        the first of them is not here."""
        ...

    def close(self) -> None:
        """Let go of descriptors and mappings."""
        ...
