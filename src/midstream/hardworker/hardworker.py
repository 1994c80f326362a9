"""Hardworker: the application's view of what the sensors send."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from midstream import config as configuration
from midstream import fields, network
from midstream.config import Config
from midstream.errors import ConfigError
from midstream.hardworker.assembly import Assembly, Totals
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.handler import SocketHandler
from midstream.hardworker.messages import Message
from midstream.hardworker.pinned import open_ring, reopen
from midstream.hardworker.reader import Reader
from midstream.hardworker.source import Source
from midstream.hardworker.views import Rows, named, seen
from midstream.hardworker.watch import DetachedError


class Hardworker:
    """Receives every sensor's messages, each once and in order.

        with Hardworker("config.toml") as hardworker:
            for message in hardworker:
                ...

    Iterating waits for messages: until there are some, or, with `[hardworker] period`, until the period is
    over. `async for` does the same in an event loop. `batches` gives arrays instead, one in each cycle, and
    `columns` one of each value that is needed; `read` takes everything that has arrived as one array without
    waiting, and `latest` the newest message. Where the messages come from is config.toml's `[hardworker]
    receiver`: the eBPF program's ring, or the user-mode handler.

    A message is delivered when it has been handed out, and done when that is committed. By default a batch is
    committed when the next one is asked for, so an application that is killed gets its last batch again, with
    the same connection and sequence numbers, when it is started anew; everything before never again. So it
    does after an exception that the handler of a signal raises in the midst of reading: this Hardworker then
    raises ConfigError and commits nothing more.

    When the program is detached, what is in its ring is delivered to the end, and then whatever was called
    raises KernelError within a second. With `follow` it waits instead for the program to be attached again,
    and goes on: numbers of connections do not come twice, those that were open are counted as reset, and what
    was delivered from the old ring is never delivered again, committed or not.

    Entering raises ConfigError, KernelError (nothing attached, or made from other files) or NetworkError.
    """

    def __init__(
        self,
        config: str | Path | Config,
        *,
        source: Source | None = None,
        autocommit: bool = True,
        follow: bool = False,
    ) -> None:
        self.config = config if isinstance(config, Config) else configuration.load(config)
        self.topology = network.load(self.config.const_path)
        self.message_size = self.config.message_size(self.topology.size)
        """Bytes of a message, for fixed framing."""
        self.layout = fields.layout(self.config, self.message_size)
        self._source, self._autocommit = source, autocommit
        self._follow, self._reload = follow, not isinstance(config, Config)
        self._latest: dict[str, Message] = {}
        self._reader = Reader(
            Assembly(self.config.data, self.message_size, lambda: network.load(self.config.const_path)),
            self.message_size if self.config.data.framing == "fixed" else 0,
            Cadence.of(self.config.hardworker),
            self._reopen,
            autocommit=autocommit,
        )

    def __enter__(self) -> Self:
        self._reader.waiting.open()
        source, self._source = self._source, None
        try:
            if source is None:
                ebpf = self.config.hardworker.receiver == "ebpf"
                source = open_ring(self.config, self.topology) if ebpf else SocketHandler(self.topology)
        except BaseException:
            self._reader.waiting.close()
            raise
        self._reader.open(source)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._autocommit and self._reader.waiting.is_open:
            self.commit()
        self.close()

    def close(self) -> None:
        """Let go of the source. What was not committed is delivered again to the next reader."""
        if self._source:  # this was never entered
            self._source.close()
            self._source = None
        self._reader.close()

    def stop(self) -> None:
        """Let iterations end, also from a signal handler or another thread."""
        self._reader.waiting.stop()

    def commit(self) -> bool:
        """All messages delivered so far have been acted upon: never deliver them again, give their room back.

        Called at the start of `read`, `messages` and `wait`, in each cycle, and when the `with` block ends
        without an error; with `autocommit=False` only if no message was delivered since the application did.
        False if it has to wait: for the rest of a batch that is being iterated over (done then, unless more
        was delivered), or for more of a large message. Raises KernelError if there is no memory for
        unfinished messages.
        """
        return self._reader.commit()

    def read(self) -> np.ndarray:
        """Every message that has arrived between the last call and this one, as a structured array.

        For fixed framing; the fields are those of `batch_dtype`. Usually the array is a view of the ring:
        nothing is copied, and it is valid until the next `commit`, which gives its room back to the program.
        Where segments and messages do not coincide, the messages are copied together.
        """
        self._need_fixed("read")
        return self._reader.read()

    def batches(self, payload: npt.DTypeLike | None = None) -> Iterator[np.ndarray]:
        """In every cycle what `wait` and then `read` give, until `stop`: maybe an empty array.

        A cycle in which whole messages came in order is a single step of C. A batch is valid until the next
        is asked for. payload: as what its field `payload` is seen, a dtype of `message_size` bytes, for
        example `layout.dtype`, config.toml's fields.
        """
        self._need_fixed("batches")
        dtype = seen(self.config, self.message_size, payload, "batches")
        return self._reader.cycles(Rows(self.message_size, dtype), "batches")

    def columns(self, *names: str, payload: npt.DTypeLike | None = None) -> Iterator[tuple[np.ndarray, ...]]:
        """In each cycle an array for each name, with a value of each message, until `stop`; maybe empty ones.

            for sequence, temperature in hardworker.columns("sequence", "temperature"):

        From the ring the cheapest way to receive, if an application needs some bytes of every message and not
        all: a step of C copies them end to end. names: config.toml's fields, or those of another dtype of
        `message_size` bytes for the payload; `sequence`, as in Message; and the fields of `batch_dtype`,
        unless the message has one of that name. Values are as they were sent.

        Until the next cycle the values are the application's, which may change them. The arrays are not: for
        a number of messages below 256 the same ones come in every cycle. `batch` has the messages whole.
        """
        self._need_fixed("columns")
        if payload is None and self.layout is not None:
            payload = self.layout.dtype
        dtype = seen(self.config, self.message_size, payload, "columns")
        return self._reader.cycles(named(self.config, self.message_size, dtype, names), "columns")

    @property
    def batch(self) -> np.ndarray:
        """The messages of this cycle of `columns` or `batches`, as `read` gives them; valid until the next.

        Empty if they were committed, and in an iteration over messages.
        """
        return self._reader.batch

    def fields(self, batch: np.ndarray) -> np.ndarray:
        """The messages of a batch that `read` gave, as rows with config.toml's [[data.field]] by name.

        A view of the batch, valid as long as it is; values as they were sent (`layout.scaled` gives units).
        """
        if self.layout is None:
            raise ConfigError(
                f"{self.config.path}: data.field = []: no fields are described; add [[data.field]] tables"
            )
        return self.layout.view(batch)

    def messages(self) -> Iterator[Message]:
        """The messages that have arrived since the last call, one by one; it does not wait for more.

        A caller that breaks off gets the rest from the next call; nothing is committed before, and `read`,
        `batches` and `columns` raise ConfigError.
        """
        return self._reader.messages()

    def replay(self, since: datetime | None = None) -> Iterator[Message]:
        """What the logger stored before this ring began and then, without a seam, what arrives.

        For an application whose host was restarted, or that wants to know the past: every stored message that
        the logger received at or after `since` (its clock; None: all), of connections that came before the
        first that the ring has had. They have negative connection numbers, and as time the logger's, in
        nanoseconds since 1970. Every later connection is in the ring from its first byte. Ask before reading
        anything else; meanwhile the ring fills. Raises ConfigError and NetworkError, see `history`.
        """
        source, topology = self._reader.source, self.topology
        from midstream.hardworker.history import history  # here: it loads slowly, and few need it

        sensors = [str(host.ip) for host in topology.sensors]
        yield from history(self.config, str(topology.logger.ip), sensors, since, source.beginnings)
        yield from self

    def latest(self, sensor: str | None = None) -> Message | None:
        """The newest message of a sensor (by IP address), or of any; None before the first.

        Takes everything that has arrived, so that older messages are passed over.
        """
        for message in self.messages():
            self._latest[message.sensor] = message
        if sensor is not None:
            return self._latest.get(sensor)
        return max(self._latest.values(), key=lambda message: message.time, default=None)

    def __iter__(self) -> Iterator[Message]:
        return self._reader.iterate()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._reader.arrivals()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there may be something to read, at most `timeout` seconds; False if that time ran out or
        `stop` was called.

        With a period it waits for the next multiple of the period instead, and nothing wakes it before. Where
        the interface's interrupts wait too (`hardworker.irq_mitigation`) it follows the interface: it waits
        until shortly after that is going to look for packets, at most a period after it last found some.
        """
        return self._reader.wait(timeout)

    @property
    def totals(self) -> Totals:
        """What was received since this Hardworker was made, as of now: ask again for later."""
        return self._reader.assembly.totals

    @property
    def stopped(self) -> bool:
        """Has `stop` been called?"""
        return self._reader.waiting.stopped

    @property
    def fill(self) -> float:
        """How full the buffer between the network and the application is, from 0 to 1."""
        return self._reader.source.standing.fill

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._reader.assembly.streams)

    def _reopen(self, error: DetachedError) -> Source | None:
        """The ring of the program that was attached after this one's was detached, if there is one."""
        if not self._follow:
            raise error
        if not error.gone:  # it may be attached again, with this ring
            return None
        if (opened := reopen(self.config, self.message_size, reload=self._reload)) is None:
            return None
        self.config, self.topology, ring = opened
        return ring

    def _need_fixed(self, method: str) -> None:
        if self.config.data.framing != "fixed":
            raise ConfigError(
                f'{self.config.path}: data.framing = "{self.config.data.framing}": {method}() gives arrays, '
                "which need fixed framing; iterate over the messages instead"
            )
