"""What a daemon tells the others of its host, sealed so that only they can read or say it."""

import base64
import json
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from midstream.config import MAX_STREAMS, Role, claimed_twice
from midstream.daemon.freshness import Stamp
from midstream.daemon.seal import ForgedError, Key
from midstream.errors import ConfigError
from midstream.network import Ip, Mac, SensorStream

_PURPOSE = "announcement"
_STRING = 255  # bytes of a character-string of a TXT record (RFC 1035, section 3.3)

_MOST_OF_STREAMS = 5600  # bytes as they are said: a packet of mDNS has at most 9000 (RFC 6762, section 17)
_MOST_UNPACKED = 1 << 22

Name = Annotated[str, Field(max_length=63)]
Address = Annotated[Ip, BeforeValidator(str)]


class _Said(BaseModel):
    # Another version may say more.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


def pack(streams: Sequence[SensorStream]) -> str:
    """The streams as they are said. Raises ConfigError if they are too much for an announcement."""
    if not streams:
        return ""
    text = json.dumps([stream.table() for stream in streams], ensure_ascii=False, separators=(",", ":"))
    packed = base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    if len(packed) > _MOST_OF_STREAMS:
        raise ConfigError(
            f"[[stream]]: what they say takes {len(packed)} bytes of an announcement, compressed, and there "
            f"is room for {_MOST_OF_STREAMS}; give the fields shorter names, or name fewer"
        )
    return packed


@lru_cache(maxsize=8)  # each daemon hears the same again and again
def unpack(said: str) -> tuple[SensorStream, ...]:
    """The streams that were packed. Raises ValueError."""
    if not said:
        return ()
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(base64.b85decode(said), _MOST_UNPACKED)
    except zlib.error as error:
        raise ValueError("no streams") from error
    tables = json.loads(text)
    if not isinstance(tables, list) or len(tables) > MAX_STREAMS:
        raise ValueError("no streams")
    found = tuple(SensorStream.parse(table) for table in tables)
    if claimed_twice(found):
        raise ValueError("two streams have the same name or port")
    return found


def _packed(said: str) -> str:
    unpack(said)
    return said


class Mark(_Said):
    """What the hardworker decides for all. packed: the streams, where config.toml names them; port and size
    are those of the first, for daemons that know one only."""

    tos: int = Field(ge=0, le=255)
    port: int = Field(ge=1, le=65535)
    size: int = Field(ge=1)
    packed: Annotated[str, AfterValidator(_packed)] = ""

    @property
    def streams(self) -> tuple[SensorStream, ...]:
        return unpack(self.packed)


class Announcement(_Said):
    """A host. port: where its daemon answers heartbeats (UDP). time: seconds since 1970, by its clock.
    standby: a logger that waits until another fails."""

    role: Role
    name: Name
    ip: Address
    mac: Mac
    mtu: int = Field(ge=68, le=65535)
    port: int = Field(ge=1, le=65535)
    version: Name
    time: float = 0.0
    standby: bool = False
    leaving: bool = False
    mark: Mark | None = None

    def __str__(self) -> str:
        return f"{self.role} {self.name} ({self.ip})"


class Word(BaseModel):
    """An announcement, and the proof that it is said now."""

    said: Announcement
    stamp: Stamp

    def sealed(self, key: Key) -> bytes:
        """The text of a TXT record that says this."""
        sealed = key.seal(_PURPOSE, self.model_dump_json(exclude_none=True).encode())
        pieces = [sealed[start : start + _STRING] for start in range(0, len(sealed), _STRING)]
        return b"".join(bytes([len(piece)]) + piece for piece in pieces)


def unseal(key: Key, text: bytes) -> Word:
    """What a TXT record says. Raises ForgedError if it was not made with this key, or makes no sense."""
    sealed = bytearray()
    while text:
        end = 1 + text[0]
        if end > len(text):
            raise ForgedError
        sealed += text[1:end]
        text = text[end:]
    try:
        return Word.model_validate(json.loads(key.open(_PURPOSE, bytes(sealed))))
    except ValueError as error:  # ValidationError is one
        raise ForgedError from error
