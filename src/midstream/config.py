"""config.toml, the user's file: read it, check it, and say exactly what is wrong with it.

`load` returns a frozen `Config` whose attributes follow the keys of the file.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    model_validator,
)
from pydantic_core import CoreSchema

from midstream import values
from midstream.database_url import check
from midstream.errors import ConfigError
from midstream.framing import Framing
from midstream.toml import FaultsError, Location, Section, absolute, parse_toml, read_text, show

Role = Literal["sensor", "hardworker", "logger"]
FieldType = Literal["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f32", "f64", "bool", "bytes"]

DEFAULT_CONFIG = Path("config.toml")  # of the folder in which a program runs
SYSTEM_CONFIG = Path("/etc/midstream/config.toml")  # of the services (docs/deployment.md)

MAX_MESSAGE = 2**20  # a fixed-size message
MAX_FRAME = 2**29  # a length-prefixed message or a line: SQLite stores at most 10^9 bytes in a row
MAX_CONNECTIONS = 2**20  # a SYN flood must not make the kernel's table larger than this
MIN_SPOOL = 2**20  # less holds no batch
MAX_DEADLINE = 10**6  # seconds: some days
MAX_COLUMNS = 1000  # of fields: PostgreSQL takes 1600 in a table, SQLite 2000
MAX_STREAMS = 32


def load(path: str | Path) -> "Config":
    """Read config.toml; every key is optional. Raises ConfigError with a line for each fault."""
    path = Path(path)
    beside = "" if path == SYSTEM_CONFIG else f" (that of this host's services is {SYSTEM_CONFIG})"
    text = read_text(path, advice=f"`midstream init` makes one, or name another file with --config{beside}")
    return parse(text, path)


def parse(text: str, path: Path) -> "Config":
    """The content of a config.toml that is to be at `path`. Raises ConfigError as `load` does."""
    config = parse_toml(text, path, Config)
    config._path = absolute(path)
    return config


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of config.toml. What spans several keys is not in it."""
    found = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "config.toml"}


class _WithUnit:
    """In the schema: a number of bytes, or a string with a binary unit."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(core), {"type": "string", "pattern": values.WITH_UNIT}]}


_ByteCount = Annotated[int, BeforeValidator(values.byte_count), _WithUnit()]
_RingSize = Annotated[int, BeforeValidator(values.ring_size), _WithUnit()]


def field_columns(name: str, count: int) -> list[str]:
    """The columns of a field: itself, or NAME_0, NAME_1, … for its values in a row."""
    return [name] if count == 1 else [f"{name}_{index}" for index in range(count)]


def beyond(offset: int, width: int, size: int) -> str:
    """Why a field does not fit into a message."""
    return f"its bytes {offset} to {offset + width - 1} reach beyond the message's {size}"


class NetworkSection(Section):
    interface: Annotated[str, AfterValidator(values.interface)] = Field(
        default="",
        description='the name of an interface (1 to 15 characters), or "" for that of the route to the peer',
    )
    restore: Literal["logger", "sensor"] = Field(default="logger", description='"logger" or "sensor"')
    pins: Annotated[str, AfterValidator(values.pins)] = Field(
        default="/sys/fs/bpf/midstream", description="an absolute path below a bpffs, without dots"
    )
    tos: int | None = Field(
        default=None, ge=0, le=252, description="the TOS byte of marked packets, as in const.toml: mark.tos"
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="the TCP port of marked packets, as in const.toml: mark.port",
    )


StreamName = Annotated[str, AfterValidator(values.stream_name)]
STREAM_NAME = "a name of 1 to 32 characters a-z, 0-9 and _, the first a letter, no other stream's"
STREAM_PORT = "an integer from 1 to 65535 (a TCP port), no other stream's"
DATA = "data"
"""The name of the only stream, where no [[stream]] gives one."""


def nearest() -> Path:
    """The file that is read where none is named: config.toml of this folder, else that of this host's
    services, if there is one."""
    if os.path.lexists(DEFAULT_CONFIG) or not os.path.lexists(SYSTEM_CONFIG):
        return DEFAULT_CONFIG
    return SYSTEM_CONFIG


def claimed_twice(streams: Sequence[Any]) -> list[tuple[Location, str]]:
    """Which of these tables have a name or a port that an earlier one has."""
    faults: list[tuple[Location, str]] = []
    for key in ("name", "port"):
        owners: dict[object, int] = {}
        for index, stream in enumerate(streams):
            value = getattr(stream, key)
            owner = index if value is None else owners.setdefault(value, index)
            if owner != index:
                faults.append((("stream", index, key), f"that of stream[{owner}] already"))
    return faults


class FieldSection(Section):
    """An entry of [[data.field]] or [[stream.field]]: what some bytes of every message mean (fields.py)."""

    name: Annotated[str, AfterValidator(values.field_name)] = Field(
        description="a name of 1 to 48 ASCII letters, digits and _, the first no digit, no other field's"
    )
    type: FieldType = Field(description=" or ".join(f'"{name}"' for name in get_args(FieldType)))
    byte_order: Literal["little", "big"] = Field(default="little", description='"little" or "big"')
    offset: int | None = Field(
        default=None,
        ge=0,
        lt=MAX_MESSAGE,
        description="an integer, 0 or more (bytes from the message's start), where no other field lies",
    )
    size: int | None = Field(
        default=None,
        ge=1,
        le=MAX_MESSAGE,
        description='the number of bytes of type "bytes", and of no other type',
    )
    count: int = Field(
        default=1, ge=1, le=MAX_COLUMNS, description=f"an integer from 1 to {MAX_COLUMNS} (values in a row)"
    )
    unit: str = Field(default="", max_length=32, description="a text of at most 32 characters")
    scale: float = Field(
        default=1.0, description="a number other than 0, and only for a type that is a number"
    )
    bias: float = Field(default=0.0, description="a number, and only for a type that is a number")

    @property
    def width(self) -> int:
        """Bytes of all its values."""
        each = self.size or (1 if self.type == "bool" else int(self.type[1:]) // 8)
        return each * self.count

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        faults: list[tuple[Location, str]] = []
        if (self.size is None) == (self.type == "bytes"):
            faults.append((("size",), f'its type is "{self.type}"'))
        if self.scale == 0:
            faults.append((("scale",), "every value would be the same"))
        if self.type in ("bool", "bytes"):
            scaling = (("scale", self.scale != 1), ("bias", self.bias != 0))
            faults += [((key,), f'its type is "{self.type}"') for key, given in scaling if given]
        if faults:
            raise FaultsError(faults)
        return self


class MessageSection(Section):
    """What messages are, and how often they come."""

    framing: Framing = Field(default="fixed", description='"fixed", "length" or "line"')
    size: int | None = Field(
        default=None,
        ge=1,
        le=MAX_MESSAGE,
        description=f"an integer from 1 to {MAX_MESSAGE} (bytes a message), the size in const.toml",
    )
    freq: float = Field(
        default=1000.0,
        ge=0,
        description="a number of messages a second, 0 or more (0: as fast as TCP takes them)",
    )
    max_size: int = Field(
        default=2**20, ge=1, le=MAX_FRAME, description=f"an integer from 1 to {MAX_FRAME} (bytes a message)"
    )
    field: Annotated[tuple[FieldSection, ...], Field(strict=False)] = Field(
        default=(),
        description=f"tables (name, type, …) for fixed framing, with at most {MAX_COLUMNS} values in all",
    )

    @property
    def field_offsets(self) -> tuple[int, ...]:
        """Where each field begins: where it says, or else behind the one before it."""
        offsets: list[int] = []
        end = 0
        for field in self.field:
            offsets.append(end if field.offset is None else field.offset)
            end = offsets[-1] + field.width
        return tuple(offsets)

    @model_validator(mode="after")
    def _separate_fields(self) -> Self:
        if self.field and self.framing != "fixed":
            raise FaultsError([(("field",), f'framing is "{self.framing}"')])
        if sum(field.count for field in self.field) > MAX_COLUMNS:
            raise FaultsError([(("field",), "too many values")])
        faults: list[tuple[Location, str]] = []
        owners: dict[str, int] = {}
        places = [
            (offset, offset + field.width)
            for field, offset in zip(self.field, self.field_offsets, strict=True)
        ]
        for index, (field, (offset, end)) in enumerate(zip(self.field, places, strict=True)):
            for column in [field.name, *field_columns(field.name, field.count)]:
                owner = owners.setdefault(column.lower(), index)  # SQL does not tell capitals apart
                if owner != index:
                    faults.append((("field", index, "name"), f"field[{owner}] is called {column} too"))
                    break
            for other, (start, stop) in enumerate(places[:index]):
                if start < end and offset < stop:
                    its = f"its bytes {offset} to {end - 1}"
                    others = f'bytes {start} to {stop - 1}, which are "{self.field[other].name}"'
                    faults.append((("field", index, "offset"), f"{its} overlap {others}"))
            if self.size is not None and end > self.size:
                faults.append((("field", index, "offset"), beyond(offset, field.width, self.size)))
        if faults:
            raise FaultsError(faults)
        return self


class DataSection(MessageSection):
    """What they are, and when a sensor is missed."""

    deadline: float = Field(
        default=0.0,
        ge=0,
        le=MAX_DEADLINE,
        description=f"a number of seconds, 0 to {MAX_DEADLINE}, "
        "until a sensor without data is silent (0: never)",
    )


_RING_SIZE = (
    "a power of two, at least one memory page and at most 2 GiB: "
    'bytes, or a string such as "4MiB" (KiB, MiB, GiB)'
)
_PERIOD = "a number of seconds, 0 or more (0: wait for data instead of a clock)"
_QUOTA = "a number above 0, at most 1: the part of ring and connections that one of several sensors may take"


class StreamSection(DataSection):
    """An entry of [[stream]]: a kind of messages, with a port and a ring of its own. What it does not say of
    its ring, [hardworker] says."""

    name: StreamName = Field(description=STREAM_NAME)
    port: int | None = Field(default=None, ge=1, le=65535, description=STREAM_PORT)
    ring_size: _RingSize | None = Field(default=None, description=_RING_SIZE)
    quota: float | None = Field(default=None, gt=0, le=1, description=_QUOTA)
    period: float | None = Field(default=None, ge=0, description=_PERIOD)


class SensorSection(Section):
    target: Literal["hardworker", "logger"] = Field(
        default="hardworker", description='"hardworker" or "logger"'
    )
    reconnect: float = Field(
        default=0.0,
        ge=0,
        description="a number of seconds, 0 or more: for how long a lost connection is tried again (0: not)",
    )


class HardworkerSection(Section):
    receiver: Literal["ebpf", "socket"] = Field(default="ebpf", description='"ebpf" or "socket"')
    ring_size: _RingSize | None = Field(default=None, description=_RING_SIZE)
    connections: int = Field(
        default=4096, ge=1, le=MAX_CONNECTIONS, description=f"an integer from 1 to {MAX_CONNECTIONS}"
    )
    period: float = Field(default=0.0, ge=0, description=_PERIOD)
    irq_mitigation: bool = Field(default=True, description="true or false")
    socket: Annotated[str, AfterValidator(values.socket)] = Field(
        default="",
        description='an absolute path of a Unix socket, or "" for an application that may open the pins',
    )
    socket_group: str = Field(default="", description='a group of this host, or "" for root\'s')
    socket_mode: Annotated[str, AfterValidator(values.mode)] = Field(
        default="0660", description='octal digits, such as "0660"'
    )
    checksums: bool = Field(default=True, description="true or false")
    retain: bool = Field(default=True, description="true or false")
    quota: float = Field(default=0.5, gt=0, le=1, description=_QUOTA)
    spool: str = Field(default="spool.db", description='a path, relative to this file, or "" for no spool')
    spool_size: _ByteCount = Field(
        default=2**30,
        ge=MIN_SPOOL,
        le=2**60,
        description='bytes, at least 1 MiB, or a string such as "1GiB" (KiB, MiB, GiB)',
    )
    spool_free: _ByteCount = Field(
        default=256 * 2**20,
        ge=0,
        le=2**60,
        description='bytes, 0 or more, or a string such as "256MiB" (KiB, MiB, GiB)',
    )
    spool_full: Literal["forget", "wait"] = Field(default="forget", description='"forget" or "wait"')
    backfill_rate: _ByteCount = Field(
        default=8 * 2**20,
        ge=2**10,
        le=2**40,
        description='bytes per second, at least 1 KiB, or a string such as "8MiB" (KiB, MiB, GiB)',
    )


class LoggerSection(Section):
    database: Annotated[str, AfterValidator(values.database)] = Field(
        default="sqlite:///midstream.db",
        description='an SQLAlchemy URL such as "sqlite:///midstream.db" or '
        '"postgresql+psycopg://user@host/name", or "nats://host:4222/stream"',
    )
    batch_interval: float = Field(
        default=0.1, gt=0, le=60, description="a number of seconds above 0, at most 60"
    )
    batch_size: int = Field(
        default=4096, ge=1, le=2**20, description="an integer from 1 to 1048576 (messages)"
    )
    keep_age: float = Field(default=0.0, ge=0, description="a number of seconds, 0 or more (0: for ever)")
    keep_size: _ByteCount = Field(
        default=0,
        ge=0,
        le=2**60,
        description='bytes, or a string such as "10GiB" (KiB, MiB, GiB); 0: without limit',
    )
    replay_port: int = Field(
        default=12347, ge=0, le=65535, description="a TCP port from 1 to 65535, or 0 for no exchange"
    )


class DaemonSection(Section):
    explore: bool = Field(default=True, description="true or false")
    key: str = Field(default="/etc/midstream/key", min_length=1, description="a path, relative to this file")
    name: Annotated[str, AfterValidator(values.name)] = Field(
        default="", description='1 to 63 printable characters, or "" for this host\'s name'
    )
    timeout: float = Field(
        default=30.0, gt=0, description="a number of seconds above 0 within which all roles must be found"
    )
    sensors: int = Field(default=1, ge=1, le=4096, description="an integer from 1 to 4096 (sensors at least)")
    clock: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="a number of seconds above 0 that clocks may differ, at most 3600",
    )
    silence: float = Field(
        default=2.0, gt=0, le=3600, description="a number of seconds above 0, at most 3600"
    )
    stall: float = Field(default=2.0, gt=0, le=3600, description="a number of seconds above 0, at most 3600")
    port: int = Field(default=12346, ge=1, le=65535, description="a UDP port, the same on all hosts")
    rewrite_const: bool = Field(default=True, description="true or false")
    standby: bool = Field(default=False, description="true or false")
    socket: Annotated[str, AfterValidator(values.socket)] = Field(
        default="/run/midstream/daemon.sock",
        min_length=1,
        description="an absolute path of a Unix socket",
    )


class Config(Section):
    """The whole of config.toml. A Config built in code counts as a file in the current folder."""

    role: Role | None = Field(default=None, description='"sensor", "hardworker" or "logger"')
    timeout: float = Field(
        default=0.0, ge=0, description="a number of seconds, 0 or more (0: run until it is stopped)"
    )
    const: str = Field(
        default="const.toml", min_length=1, description="the path of const.toml, relative to this file"
    )
    network: NetworkSection = Field(default=NetworkSection(), description="a table")
    data: DataSection = Field(default=DataSection(), description="a table")
    stream: Annotated[tuple[StreamSection, ...], Field(strict=False)] = Field(
        default=(), max_length=MAX_STREAMS, description=f"at most {MAX_STREAMS} tables [[stream]]"
    )
    sensor: SensorSection = Field(default=SensorSection(), description="a table")
    hardworker: HardworkerSection = Field(default=HardworkerSection(), description="a table")
    logger: LoggerSection = Field(default=LoggerSection(), description="a table")
    daemon: DaemonSection = Field(default=DaemonSection(), description="a table")
    _path: Path = PrivateAttr(default_factory=lambda: absolute(Path("config.toml")))
    _only: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _separate_streams(self) -> Self:
        faults = claimed_twice(self.stream)
        ports = {"network": self.network.port} | {
            f"stream[{index}]": stream.port for index, stream in enumerate(self.stream)
        }
        faults += [
            (("logger", "replay_port"), f"that of {owner}.port already")
            for owner, port in ports.items()
            if port and port == self.logger.replay_port
        ]
        if self.stream:
            why = "each [[stream]] says it for itself"
            faults += [(("data", key), why) for key in sorted(self.data.model_fields_set)]
            faults += [(("network", "port"), why)] if self.network.port is not None else []
        if faults:
            raise FaultsError(faults)
        return self

    @classmethod
    def from_json(cls, text: str, path: Path) -> "Config":
        """The content of the file at `path` as `model_dump_json(exclude_unset=True)` gave it, in another
        process."""
        config = cls.model_validate_json(text)
        config._path = path
        return config

    @property
    def path(self) -> Path:
        """Absolute path of this file."""
        return self._path

    @property
    def const_path(self) -> Path:
        """Absolute path of const.toml."""
        return self._path.parent / self.const

    @property
    def key_path(self) -> Path:
        """Absolute path of the key that the hosts share."""
        return self._path.parent / self.daemon.key

    @property
    def spool_path(self) -> Path | None:
        """Absolute path of the hardworker's spool; None if there is none."""
        return self._path.parent / self.hardworker.spool if self.hardworker.spool else None

    @property
    def database_url(self) -> str:
        """The database's URL, a relative SQLite path resolved against this file's folder.

        It may hold a password. Raises ConfigError if no database can have it.
        """
        try:
            check(self.logger.database)
        except ValueError as error:
            shown = show(self.logger.database)
            raise ConfigError(f"{self._path}: logger.database = {shown}: {error}; correct it") from error
        if not self.logger.database.startswith("sqlite"):
            return self.logger.database
        # Imported here: only the logger needs SQLAlchemy, which loads slowly.
        from sqlalchemy.engine import make_url

        url = make_url(self.logger.database)
        if url.database in (None, "", ":memory:"):
            return self.logger.database
        url = url.set(database=str(self._path.parent / url.database))
        return url.render_as_string(hide_password=False)

    @property
    def named_stream(self) -> str:
        """The name of the only stream, "" if it was given none."""
        return self._only

    @property
    def stream_name(self) -> str:
        """Of the only stream."""
        return self._only or DATA

    def named(self, key: str) -> str:
        """What a message about the only stream calls a key of it, as in `data.framing`."""
        return f'stream "{self._only}": {key}' if self._only else f"data.{key}"

    def ring_named(self, key: str) -> str:
        """What a message about the only stream calls a key of its ring, as in `hardworker.ring_size`."""
        return self.named(key) if self._only else f"hardworker.{key}"

    def only(self, name: str, data: DataSection, port: int) -> "Config":
        """As if the stream of that name, with these messages at this port, were the only one: what a file
        without [[stream]] would say."""
        own = next((stream for stream in self.stream if stream.name == name), None)
        said = {key: getattr(own, key) for key in ("ring_size", "quota", "period")} if own else {}
        ring = {key: value for key, value in said.items() if value is not None}
        only = self.model_copy(
            update={
                "data": data,
                "stream": (),
                "network": self.network.model_copy(update={"port": port}),
                "hardworker": self.hardworker.model_copy(update=ring),
            }
        )
        only._only = name
        return only

    def message_size(self, const_size: int) -> int:
        """Bytes a fixed-size message: const.toml decides. Raises ConfigError if data.size is another."""
        if self.data.size not in (None, const_size):
            raise ConfigError(
                f"{self._path}: {self.named('size')} = {self.data.size}: must equal [data] size = "
                f"{const_size} of {self.const_path}; change one of them, or leave data.size out"
            )
        return const_size
