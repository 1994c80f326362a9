"""What is sent: each message follows from its sensor, its number and its connection's port, so that nobody
has to keep it. A flow is what some sensors send of a stream; `MIX` has the kinds of a robot's sensors."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SIZE = 512
_HEAD = struct.Struct("<IQI")
_LENGTH = struct.Struct(">I")
_STRIDE = 7919  # so the sizes of messages that follow each other differ


class Identity(NamedTuple):
    """Who has sent a message, under which number, and from which port."""

    sensor: int
    number: int
    port: int


@dataclass(frozen=True)
class Flow:
    """rate: messages a second of each sensor. hosts: the sensors, from 0. size: bytes of a message without
    its frame; where it varies, of the longest, and others are up to so many bytes shorter. table: more that
    config.toml says of the stream."""

    name: str = "data"
    port: int = 12345
    rate: float = 200
    size: int = SIZE
    framing: str = "fixed"
    varies: int = 0
    hosts: tuple[int, ...] = (0, 1, 2, 3)
    table: Mapping[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> dict[str, Any]:
        """The table of config.toml."""
        found: dict[str, Any] = {"name": self.name, "port": self.port, "framing": self.framing}
        found["freq"] = float(self.rate)
        found["size" if self.framing == "fixed" else "max_size"] = self.size
        return found | dict(self.table)

    @property
    def unit(self) -> int:
        """By which the application counts where a message is: bytes, or messages where they are not fixed."""
        return self.size if self.framing == "fixed" else 1

    def message(self, sensor: int, number: int, port: int) -> bytes:
        """The message that a sensor sends under this number, without its frame."""
        head = _HEAD.pack(sensor, number, port)
        size = self.size - number * _STRIDE % (self.varies + 1)
        if self.framing == "line":
            return (head + hashlib.shake_128(head).digest(size)).hex()[:size].encode()
        return head + hashlib.shake_128(head).digest(size - _HEAD.size)

    def framed(self, message: bytes) -> bytes:
        """As it is sent."""
        if self.framing == "line":
            return message + b"\n"
        return _LENGTH.pack(len(message)) + message if self.framing == "length" else message

    def identity(self, payload: bytes) -> Identity | None:
        """Whose it is, if this is a message that somebody may have sent."""
        try:
            head = bytes.fromhex(payload[: 2 * _HEAD.size].decode()) if self.framing == "line" else payload
            found = Identity(*_HEAD.unpack_from(head))
        except (ValueError, struct.error):
            return None
        return found if payload == self.message(*found) else None

    def whole(self, first: int, size: int) -> int:
        """How many messages so many bytes of a connection hold, of which the first has this number."""
        frame = {"fixed": 0, "length": _LENGTH.size, "line": 1}[self.framing]
        if not self.varies:
            return size // (self.size + frame)
        numbers = first + np.arange(size // (self.size - self.varies + frame) + 1, dtype=np.int64)
        ends = np.cumsum(self.size + frame - numbers * _STRIDE % (self.varies + 1))
        return int(np.searchsorted(ends, size, side="right"))

    def begun(self, first: int, size: int) -> int:
        """The same, with the message that has come in part."""
        count = self.whole(first, size)
        return count + (size > self.bytes(first, count))

    def bytes(self, first: int, count: int) -> int:
        """That so many messages take of a connection."""
        frame = {"fixed": 0, "length": _LENGTH.size, "line": 1}[self.framing]
        numbers = first + np.arange(count, dtype=np.int64)
        return int((self.size + frame - numbers * _STRIDE % (self.varies + 1)).sum())


DATA = Flow()
"""Where config.toml names no streams."""

_RING = {"ring_size": "16MiB"}
MIX = (
    Flow("imu", 12345, 250, 64, hosts=(0, 1), table={"period": 0.002}),
    Flow("joints", 12355, 200, 128, hosts=(0,)),
    Flow("lidar", 12365, 4, 131_072, hosts=(1,), table=_RING),
    Flow("camera", 12375, 10, 24_000, "length", 16_000, hosts=(2, 3), table=_RING),
    Flow("gps", 12385, 10, 79, "line", 20, hosts=(2,)),
)
"""Small messages at a high rate, large ones, and such as differ in length, of four sensors."""

FLOWS = {flow.name: flow for flow in (DATA, *MIX)}
