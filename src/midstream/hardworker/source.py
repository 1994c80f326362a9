"""Where the hardworker's bytes come from: the ring of the eBPF program, or ordinary sockets."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np

from midstream.config import DATA
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.messages import Format, Message, Totals
from midstream.hardworker.views import View


class Beginning(NamedTuple):
    """A connection by what its two ends say of it, so that the logger knows it, too.

    sensor: position in const.toml's list. first: TCP's sequence number of its first byte. opened_ns: since
    1970, by this host's clock. stream: the name of its stream.
    """

    sensor: int
    port: int
    first: int
    opened_ns: int
    stream: str = DATA


class Status(IntEnum):
    """How a cycle ended; as in ring.h."""

    WHOLE = 0
    """All that has arrived was given."""
    MORE = 1
    """Behind the batch that it found there is more, maybe messages that segments split or join."""
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

    uncommitted: has something been read that is not committed, and would be given again? newest: when the
    last segment read arrived, CLOCK_MONOTONIC nanoseconds; 0: unknown, or none was read. fill: how full its
    buffer is, from 0 to 1. timer: a descriptor that polls readable when `look` is due although nothing has
    arrived; -1: it never is. connections: that are open. heard(): when the last data of each sensor came,
    CLOCK_MONOTONIC nanoseconds, by its position in const.toml; 0: none has.
    """

    uncommitted: bool
    newest: int
    fill: float
    timer: int
    connections: int
    totals: Totals
    heard: Callable[[], np.ndarray]


class Cycle(NamedTuple):
    """A cycle that is prepared.

    run(): commits, waits, looks, and gives the messages in a view; None unless its status is WHOLE.
    batch(): the messages that the last one found, as `rows` gives them. None if it did nothing, or if what it
    found has been committed. status(): of the last one that gave None.
    """

    run: Callable[[], Any]
    batch: Callable[[], np.ndarray | None]
    status: Callable[[], Status]


DECLINED = Cycle(lambda: None, lambda: None, lambda: Status.DECLINED)
"""One that does nothing: each step is Python's."""


class Source(Protocol):
    """What a Reader reads from. It goes on where an earlier reader has committed, if it remembers that."""

    def begin(self, form: Format, cadence: Cadence, attention: int) -> None:
        """To be called first. attention: a descriptor that ends a cycle's sleep when it is readable, as it is
        with the source's timer."""
        ...

    def look(self) -> bool:
        """What has arrived until now is what `rows` and `message` give, until the next look: a reader that is
        slower than the sensors must give room back before it has read all. Is there anything? Raises
        DetachedError (watch.py) if nothing is left, and nothing will come."""
        ...

    def rows(self) -> np.ndarray:
        """All messages of fixed size, as an array of `batch_dtype`: maybe a view, valid until `commit`."""
        ...

    def message(self) -> Message | None:
        """The next message; None if there is none yet."""
        ...

    def prepare(self, view: View | None) -> Cycle:
        """A cycle that gives messages of fixed size in this view; without one it only commits, waits and
        looks, and gives True."""
        ...

    def commit(self) -> bool:
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
        """Let go of descriptors and mappings. Connections that are open count as reset from now on."""
        ...
