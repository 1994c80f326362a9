"""The streams that the files name, and where the messages of each come from: its ring, or sockets."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path

from midstream import config as configuration
from midstream import network, streams
from midstream.config import Config
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.handler import SocketHandler
from midstream.hardworker.merged import MergedSource
from midstream.hardworker.messages import Format, Message, SensorAddresses
from midstream.hardworker.pinned import open_ring, reopen
from midstream.hardworker.source import Beginning, Source
from midstream.hardworker.watch import DetachedError
from midstream.network import Topology
from midstream.streams import ResolvedStream


class Sources:
    """What one Hardworker reads. stream: the name of the only stream; "": all of them. given: the source, if
    it is not to be opened. follow: is a program that is attached anew followed?

    read: the streams that are read, by name. Raises ConfigError as `streams.only` does.
    """

    def __init__(
        self, config: str | Path | Config, stream: str, given: Source | None, *, follow: bool
    ) -> None:
        self._whole = config if isinstance(config, Config) else configuration.load(config)
        self._reload = not isinstance(config, Config)
        self._given, self._follow = given, follow
        self._topology = network.load(self._whole.const_path)
        self._every = streams.resolved(self._whole, self._topology)
        self.read = dict(self._every)
        if stream:
            self.read = {stream: streams.only(self._whole, self._topology, stream)}
        self._numbers = count(1)  # of sockets' connections

    @property
    def names(self) -> tuple[str, ...]:
        """Of the streams that are read."""
        return tuple(self.read)

    @property
    def are_named(self) -> bool:
        """Does const.toml name streams? Then not every sensor sends each."""
        return bool(self._topology.streams)

    @property
    def files(self) -> tuple[Config, Topology]:
        """What they say of the only stream; of several the files themselves."""
        return (self._whole, self._topology) if len(self.read) > 1 else self._first

    @property
    def _first(self) -> ResolvedStream:
        return next(iter(self.read.values()))

    def size(self, name: str) -> int:
        """Bytes of a stream's message, for fixed framing. Raises ConfigError if the files contradict."""
        config, topology = self.read[name]
        return config.message_size(topology.size)

    @property
    def form(self) -> Format:
        """Of the only stream's messages; of several the first's."""
        const_path = self._whole.const_path
        return self._form(self.names[0], SensorAddresses(lambda: network.load(const_path)))

    def _form(self, name: str, addresses: SensorAddresses) -> Format:
        data = self.read[name].config.data
        size = self.size(name) if data.framing == "fixed" else data.max_size
        return Format(data.framing, size, addresses, name)

    @property
    def cadence(self) -> Cadence:
        """When they are looked at."""
        read, every = (
            [each.config.hardworker for each in found.values()] for found in (self.read, self._every)
        )
        return Cadence.of(read, every)

    @property
    def deadline(self) -> float:
        """Seconds until a sensor is silent: the shortest; 0: never."""
        return min(filter(None, self._deadlines.values()), default=0.0)

    @property
    def _deadlines(self) -> dict[str, float]:
        return {name: each.config.data.deadline for name, each in self.read.items()}

    def open(self) -> Source:
        """The source of the only stream, or a merged one. Raises KernelError, NetworkError or ConfigError."""
        if self._given:
            given, self._given = self._given, None
            return given
        opened: dict[str, Source] = {}
        try:
            for name, each in self.read.items():
                opened[name] = self._opened(each)
        except BaseException:
            for source in opened.values():
                source.close()
            raise
        if len(opened) == 1:
            return opened[self.names[0]]
        return MergedSource(opened, self._form, self._deadlines, self._reopened)

    def _opened(self, stream: ResolvedStream) -> Source:
        if stream.config.hardworker.receiver == "ebpf":
            return open_ring(*stream)
        return SocketHandler(stream.topology, self._numbers)

    def reopen(self, error: DetachedError) -> Source | None:
        """As a Reader wants it; a merged source renews its own, so that only what is lost comes here."""
        return self._reopened(self.names[0], error)

    def _reopened(self, name: str, error: DetachedError) -> Source | None:
        """The ring of the program that was attached after this stream's was detached, if there is one."""
        if not self._follow:
            raise error
        # A program that is not gone may be attached again, with this ring.
        if error.gone and (opened := reopen(self._whole, self.read[name], reload=self._reload)):
            self.read[name], ring = opened
            return ring
        return None

    def history(
        self, since: datetime | None, beginnings: Callable[[], Sequence[Beginning]]
    ) -> Iterator[Message]:
        """What the logger stored of each stream before its ring began; see history.py."""
        from midstream.hardworker.history import history  # here: it loads slowly, and few need it

        numbers = count(-1, -1)
        for config, topology in tuple(self.read.values()):
            yield from history(config, topology, since, beginnings, numbers)

    def close(self) -> None:
        """Let go of a source that was given, and never opened."""
        if self._given:
            self._given.close()
            self._given = None
