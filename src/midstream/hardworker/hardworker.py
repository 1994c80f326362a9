"""Hardworker: the application's view of what the sensors send."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from midstream.config import Config
from midstream.errors import ConfigError
from midstream.hardworker.messages import Message, Totals
from midstream.hardworker.reader import Reader
from midstream.hardworker.source import Source
from midstream.hardworker.sources import Sources
from midstream.hardworker.views import Arrays
from midstream.network import Topology


class Hardworker:
    """Receives every sensor's messages, each once and in order.

        with Hardworker("config.toml") as hardworker:
            for message in hardworker:
                ...

    Iterating waits until there are messages or, with `hardworker.period`, until the period is over. `async
    for` does so in an event loop. `batches` and `columns` give arrays, `latest` the newest message.

    Where config.toml names several streams, `stream` gives a Hardworker of one. This one itself reads all,
    whose messages take turns; arrays are of one. A ring is opened when it is needed. stream: read this alone.

    A message is delivered when it has been handed out, and done when that is committed: by default when the
    next batch is asked for. An application that is killed gets its last batch again, with the same connection
    and sequence numbers, and nothing before. After an exception of a signal's handler in the midst of reading
    it does so, too: this Hardworker then raises ConfigError.

    When the program is detached, what is in its ring is delivered to the end. Then every call raises
    KernelError. With `follow` it waits for the program to be attached again, and goes on: no connection's
    number comes twice, and open connections count as reset.

    Entering raises ConfigError, KernelError (nothing attached, or made from other files) or NetworkError.
    """

    def __init__(
        self,
        config: str | Path | Config,
        *,
        stream: str = "",
        source: Source | None = None,
        autocommit: bool = True,
        follow: bool = False,
    ) -> None:
        self._sources = sources = Sources(config, stream, source, follow=follow)
        self._arrays = arrays = Arrays(*sources.files, sources.names)
        self.message_size, self.layout = arrays.size, arrays.layout
        """Bytes of a message, for fixed framing, and what fields name of them; 0 with several streams."""
        self._reader = Reader(sources, autocommit=autocommit)
        self._parts = _Parts(self, partial(Hardworker, config, autocommit=autocommit, follow=follow))

    @property
    def config(self) -> Config:
        """What config.toml says of the only stream, or of all; `topology` is const.toml."""
        return self._sources.files[0]

    @property
    def topology(self) -> Topology:
        return self._sources.files[1]

    def __enter__(self) -> Self:
        self._reader.begin()
        return self

    def stream(self, name: str) -> "Hardworker":
        """The messages of this stream alone: a Hardworker with commits of its own.

        It is opened at once, and closed with this one; asked for again, it is the same. The only stream's is
        this one itself. Raises ConfigError if there is no such stream, or all are being read here.
        """
        return self if self._sources.names == (name,) else self._parts.get(name)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._parts.end()
            self._reader.end()
        self.close()

    def close(self) -> None:
        """Let go of the source. What was not committed is delivered again to the next reader."""
        self._parts.close()
        self._reader.close()

    def stop(self) -> None:
        """Let iterations end, also from a signal handler or another thread."""
        self._reader.waiting.stop()
        self._parts.stop()

    def commit(self) -> bool:
        """All messages delivered so far have been acted upon: never deliver them again, give their room back.

        Each cycle, `read`, `messages` and `wait` begin with it, and a `with` block ends with it; with
        `autocommit=False` only if no message was delivered since. In an iteration over messages it counts for
        those handed out so far. False if it has to wait, with more connections open than config.toml allows.
        Raises KernelError without memory for unfinished messages.
        """
        return self._reader.commit()

    def read(self) -> np.ndarray:
        """Every message that has arrived between the last call and this one, as a structured array.

        For fixed framing; the fields are those of `batch_dtype`. Usually the array is a view of the ring:
        nothing is copied, and it is valid until the next `commit`, which gives its room back to the program.
        Where segments and messages do not coincide, the messages are copied together.
        """
        self._arrays.need_fixed("read")
        return self._reader.read()

    def batches(self, payload: npt.DTypeLike | None = None) -> Iterator[np.ndarray]:
        """In every cycle what `wait` and then `read` give, until `stop`: maybe an empty array.

        A cycle in which whole messages came in order is a single step of C. A batch is valid until the next
        is asked for. payload: as what its field `payload` is seen, a dtype of `message_size` bytes, for
        example `layout.dtype`, config.toml's fields.
        """
        return self._reader.cycles(self._arrays.rows(payload))

    def columns(self, *names: str, payload: npt.DTypeLike | None = None) -> Iterator[tuple[np.ndarray, ...]]:
        """In each cycle an array for each name, with a value of each message, until `stop`; maybe empty ones.

            for sequence, temperature in hardworker.columns("sequence", "temperature"):

        The cheapest way to receive some bytes of every message: C copies them end to end, as they were sent.
        names: fields of config.toml, or of `payload`, a dtype of `message_size` bytes; `sequence`, as in
        Message; and other fields of `batch_dtype`. The values are the application's until the next cycle.
        `batch` has the messages whole.
        """
        return self._reader.cycles(self._arrays.columns(names, payload))

    @property
    def batch(self) -> np.ndarray:
        """The messages of this cycle of `columns` or `batches`, as `read` gives them; valid until the next.

        Empty if they were committed, and in an iteration over messages.
        """
        self._arrays.need_one("batch")
        return self._reader.batch

    def fields(self, batch: np.ndarray) -> np.ndarray:
        """A batch of `read` seen as rows with config.toml's [[data.field]] by name; values as sent."""
        return self._arrays.fields(batch)

    def messages(self) -> Iterator[Message]:
        """The messages that have arrived since the last call, one by one; it does not wait for more.

        A caller that breaks off gets the rest from whatever it calls next.
        """
        return self._reader.messages()

    def replay(self, since: datetime | None = None) -> Iterator[Message]:
        """What the logger stored before this ring began and then, without a seam, what arrives.

        Every stored message that the logger received at or after `since` (its clock; None: all), of the
        connections before the ring's first. They have negative numbers, and the logger's time in nanoseconds
        since 1970. Ask before reading anything else. Raises ConfigError and NetworkError, see `history`.
        """
        yield from self._sources.history(since, self._reader.source.beginnings)
        yield from self

    def latest(self, sensor: str | None = None) -> Message | None:
        """The newest message of a sensor (by IP address), or of any; None before the first.

        Everything that has arrived is taken; older messages are passed over.
        """
        return self._reader.latest(sensor)

    def __iter__(self) -> Iterator[Message]:
        return self._reader.iterate()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._reader.arrivals()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there may be something to read, at most `timeout` seconds; False if that time ran out,
        `stop` was called, or, with `data.deadline`, a sensor has fallen silent: once for each time it does.

        With a period it waits for the next multiple of the period instead, and nothing wakes it before. With
        `hardworker.irq_mitigation` it waits until shortly after the interface looks for packets.
        """
        return self._reader.wait(timeout)

    @property
    def totals(self) -> Totals:
        """What was received since this Hardworker was made, as of now: ask again for later."""
        return self._reader.totals

    @property
    def silent(self) -> tuple[str, ...]:
        """The IP addresses of the sensors of which no data has come for `data.deadline` seconds; read or not,
        where it comes by the ring. Empty without a deadline. Once one has sent a stream with a name, only
        those count that have; over several streams those that miss any deadline."""
        return self._reader.silent

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
        return self._reader.source.standing.connections


class _Parts:
    """Hardworkers of single streams, as far as `whole` was asked for them. make(stream): one."""

    def __init__(self, whole: Hardworker, make: Callable[..., Hardworker]) -> None:
        self._whole, self._make = whole, make
        self._made: dict[str, Hardworker] = {}

    def get(self, name: str) -> Hardworker:
        """The open one of this stream."""
        reader = self._whole._reader
        reader.need_open()
        part = self._made.get(name)
        if part is None or not part._reader.waiting.is_open:
            part = self._make(stream=name)
            if reader.is_reading and name in self._whole._sources.names:
                raise ConfigError(
                    f"{part.config.path}: this Hardworker reads all streams already, and so {name}, too; "
                    "ask it for single streams only, or for none"
                )
            self._made[name] = part.__enter__()
            if reader.waiting.stopped:
                part.stop()
        return part

    def stop(self) -> None:
        for part in tuple(self._made.values()):
            part.stop()

    def end(self) -> None:
        """Commit what each of them commits at its end."""
        for part in self._made.values():
            part._reader.end()

    def close(self) -> None:
        for part in self._made.values():
            part.close()
