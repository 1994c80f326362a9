"""How the messages of each stream are framed, and which fields they have.

Whoever stores messages, or cuts a stream into them, is told it once: a process of the logger's gets it from
the one that started it, so that they agree whatever becomes of config.toml and const.toml.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from midstream import streams
from midstream.config import DATA, Config
from midstream.framing import Decoder, Framing, decoder
from midstream.network import Topology
from midstream.storage.store import FRAME, STREAM

if TYPE_CHECKING:
    from midstream.fields import Layout  # needs NumPy, which most loggers do without


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """framing: fixed, length or line; or store.STREAM. size: bytes of a message of fixed framing, else of the
    longest. layout: its fields are columns too."""

    framing: Framing | Literal["stream"] = "fixed"
    size: int = 1
    layout: "Layout | None" = None

    @classmethod
    def parse(cls, described: Mapping[str, Any]) -> Self:
        """What `described` gave."""
        layout = described["layout"]
        if layout is not None:
            from midstream.fields import Layout

            layout = Layout.parse(layout)
        return cls(described["framing"], described["size"], layout)

    @property
    def described(self) -> dict[str, Any]:
        """For another process, as JSON has it."""
        layout = None if self.layout is None else self.layout.describe()
        return {"framing": self.framing, "size": self.size, "layout": layout}

    @property
    def published(self) -> dict[str, Any]:
        """What is stored with a connection."""
        known = self.described
        return {"framing": known["framing"], "layout": known["layout"]}

    @property
    def frame(self) -> int:
        """Bytes that a message has besides its payload."""
        return FRAME[self.framing]

    @property
    def fixed_size(self) -> int | None:
        """Bytes of each message; None if they differ."""
        return self.size if self.framing == "fixed" else None

    def decoder(self) -> Decoder:
        """For one connection."""
        assert self.framing != STREAM, "nobody knows what messages are in it"
        return decoder(self.framing, size=self.size, max_size=self.size)


Formats = Mapping[str, StreamFormat]
"""Of each stream, by its name."""

ONE_STREAM: Formats = {DATA: StreamFormat()}
NO_STREAMS: Formats = {}


def formats(config: Config, topology: Topology, *, as_bytes: bool = False) -> dict[str, StreamFormat]:
    """As both files say. as_bytes: whatever fields messages have. Raises ConfigError if the files contradict
    each other, or for fields that cannot be."""
    found = streams.resolved(config, topology)
    return {name: _format(each.config, each.topology, as_bytes) for name, each in found.items()}


class AnyStream(dict[str, StreamFormat]):
    """Whatever the name: parts of a stream, whose messages nobody has cut yet."""

    def __missing__(self, _: str) -> StreamFormat:
        return StreamFormat(STREAM)


def described(known: Formats) -> dict[str, Any]:
    """For another process, as JSON has it."""
    return {name: each.described for name, each in known.items()}


def parse(known: Mapping[str, Any]) -> dict[str, StreamFormat]:
    """What `described` gave."""
    return {name: StreamFormat.parse(each) for name, each in known.items()}


def _format(config: Config, topology: Topology, as_bytes: bool) -> StreamFormat:
    data, size = config.data, config.message_size(topology.size)
    layout = None
    if data.field and not as_bytes:
        from midstream import fields

        layout = fields.layout(config, size)
    return StreamFormat(data.framing, size if data.framing == "fixed" else data.max_size, layout)
