"""const.toml, the topology: who the hosts are and what marks their packets.

The file is generated, and read whenever an eBPF program is compiled and when a program connects or listens.
`load`, `dumps` and `write` convert between the file and a `Topology`; `find_interface` asks the kernel
through which interface a peer is reached.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from midstream.config import (
    DATA,
    MAX_MESSAGE,
    MAX_STREAMS,
    STREAM_NAME,
    STREAM_PORT,
    FieldSection,
    MessageSection,
    StreamName,
    claimed_twice,
)
from midstream.errors import ConfigError, NetworkError
from midstream.framing import Framing
from midstream.toml import FaultsError, Location, Section, literal, parse_toml, read_text

MAX_SENSORS = 4096
MAX_LOGGERS = 16
MIN_MTU = 576  # every IPv4 host takes a datagram of this size (RFC 791, section 3.1)
# XDP keeps a frame, its headroom and the kernel's notes about it in one page; the smallest have 4096 bytes.
MAX_MTU = 3498


@dataclass(frozen=True, slots=True)
class Host:
    """A host's addresses; mac in lower case with colons."""

    ip: IPv4Address
    mac: str

    @property
    def mac_bytes(self) -> bytes:
        """The MAC address as six bytes, in the order of the wire."""
        return bytes.fromhex(self.mac.replace(":", ""))


@dataclass(frozen=True, slots=True)
class SensorStream:
    """A kind of messages. port: the TCP port of its packets. size: bytes of a message; for another framing
    than fixed of the longest. freq: messages per second of a sensor; None: it is not said. fields: as in
    config.toml."""

    name: str
    port: int
    framing: Framing
    size: int
    freq: float | None = None
    fields: tuple[FieldSection, ...] = ()

    @classmethod
    def parse(cls, table: object) -> "SensorStream":
        """Of what `table` gave. Raises ValueError."""
        return _StreamSection.model_validate(table).meant

    def table(self) -> dict[str, Any]:
        """Its entry in const.toml."""
        return {
            "name": self.name,
            "port": self.port,
            "framing": self.framing,
            "size" if self.framing == "fixed" else "max_size": self.size,
            **({} if self.freq is None else {"freq": self.freq}),
            **(
                {"field": [field.model_dump(exclude_unset=True) for field in self.fields]}
                if self.fields
                else {}
            ),
        }


@dataclass(frozen=True, slots=True)
class Topology:
    """All that const.toml says. standbys: further loggers. tos: the IPv4 TOS byte of marked packets, 0 for
    any. mtu: bytes of an IPv4 packet. streams: with their names, if config.toml gives any; where there are
    none, the only stream's messages are as each host's config.toml says. port, size: those of the first or
    only stream; size: bytes a message of fixed framing."""

    sensors: tuple[Host, ...]
    hardworker: Host
    logger: Host
    tos: int
    port: int
    mtu: int
    size: int
    standbys: tuple[Host, ...] = ()
    streams: tuple[SensorStream, ...] = ()

    @property
    def ports(self) -> dict[int, str]:
        """The name of the stream of each port."""
        return {stream.port: stream.name for stream in self.streams} or {self.port: DATA}

    def only(self, stream: SensorStream) -> "Topology":
        """As if this were the only stream."""
        return replace(self, port=stream.port, size=stream.size, streams=())

    @property
    def loggers(self) -> tuple[Host, ...]:
        """All loggers. The position of one here is its number as a destination (ebpf/records.py)."""
        return (self.logger, *self.standbys)

    def by_address(self) -> list[tuple[int, Host]]:
        """The sensors sorted by address, each with its position in const.toml."""
        return sorted(enumerate(self.sensors), key=lambda numbered: int(numbered[1].ip))


def load(path: str | Path) -> Topology:
    """Read const.toml. Raises ConfigError with a line for each fault."""
    path = Path(path)
    return _parse(
        read_text(path, advice="`midstream daemon` writes it, and for the lab `midstream lab up`"), path
    )


def dumps(topology: Topology) -> str:
    """The text of const.toml for a topology, without the header; `load` reads it back unchanged."""
    sensors, hardworker, logger = topology.sensors, topology.hardworker, topology.logger
    return (
        f"[mac]\nsensor = {_list(host.mac for host in sensors)}\n"
        f'hardworker = "{hardworker.mac}"\nlogger = "{logger.mac}"\n\n'
        f"[ip]\nsensor = {_list(str(host.ip) for host in sensors)}\n"
        f'hardworker = "{hardworker.ip}"\nlogger = "{logger.ip}"\n\n'
        + "".join(f'[[standby]]\nip = "{host.ip}"\nmac = "{host.mac}"\n\n' for host in topology.standbys)
        + f"[mark]\ntos = {topology.tos}\n"
        + ("" if topology.streams else f"port = {topology.port}\n")
        + f"\n[data]\nmtu = {topology.mtu}\n"
        + ("" if topology.streams else f"size = {topology.size}\n")
        + "".join(f"\n[[stream]]\n{_table(stream.table())}" for stream in topology.streams)
    )


def write(path: str | Path, topology: Topology, written_by: str) -> bool:
    """Write const.toml; False, and the file untouched, if it says the same already (header aside).

    A reader sees the old file or the new one, never a part, also after a power cut. Raises ConfigError for a
    topology that `load` would refuse, and for a file that cannot be written.
    """
    path = Path(path)
    body = dumps(topology)
    _parse(body, path)
    author = " ".join("".join(c if c.isprintable() else " " for c in written_by).split())
    time = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        if _body(path) == body:
            return False
        _replace(
            path, f"# Written by {author} at {time}.\n# Generated: changes by hand may be lost.\n\n{body}"
        )
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); check that its folder exists and is yours"
        ) from error
    return True


def find_interface(peer: IPv4Address) -> str:
    """The interface through which the kernel's routes reach peer. Raises NetworkError if none does."""
    # pyroute2 runs an event loop of its own, which a caller's running loop forbids: hence the thread.
    # A new thread is in the network namespace of the thread that starts it.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_route_interface, peer).result()


def _route_interface(peer: IPv4Address) -> str:
    # Imported here: compiling from const.toml works where there is no netlink.
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
    from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]  # likewise

    try:
        with IPRoute() as netlink:
            for route in netlink.route("get", dst=str(peer)):
                for link in netlink.get_links(route.get("oif")):
                    return str(link.get("ifname"))
    except (NetlinkError, OSError) as error:
        reason = os.strerror(error.code) if isinstance(error, NetlinkError) else error.strerror
        raise NetworkError(
            f"no route to {peer} ({reason}); bring the interface up and check `ip route get {peer}`, "
            "or name the interface in config.toml: network.interface"
        ) from error
    raise NetworkError(f"the route to {peer} has no interface; name it in config.toml: network.interface")


def _ip(value: object) -> IPv4Address:
    if not isinstance(value, str):
        raise ValueError("not a string")
    try:
        address = ip_address(value)
    except ValueError:
        raise ValueError("not an IPv4 address") from None
    if isinstance(address, IPv6Address):
        raise ValueError("an IPv6 address, and midstream works with IPv4 only")
    if address == IPv4Address("255.255.255.255"):
        raise ValueError("the broadcast address")
    if address.is_multicast:
        raise ValueError("a multicast address")
    if address.is_reserved or address in IPv4Network("0.0.0.0/8"):
        raise ValueError("an address that no host can have")
    return address


def _mac(value: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(([:-])[0-9A-Fa-f]{2})(\2[0-9A-Fa-f]{2}){4}", value):
        raise ValueError("not six bytes in hexadecimal with colons")
    mac = value.lower().replace("-", ":")
    if mac == "ff:ff:ff:ff:ff:ff":
        raise ValueError("the broadcast address")
    if mac == "00:00:00:00:00:00":
        raise ValueError("the zero address, which means that it is not known")
    if int(mac[:2], 16) & 1:
        raise ValueError("a multicast address")
    return mac


def _tos(value: int) -> int:
    """A TOS byte that can tell marked packets from all others; 0 stands for any."""
    reasons = []
    if not 0 <= value <= 255:
        reasons.append("the TOS field has 8 bits")
    elif value:
        if value & 1:
            reasons.append(
                "its lowest bit is set, but bits 0 and 1 are ECN's (RFC 3168) and change on the way"
            )
        elif value & 2:
            reasons.append("bit 1 is set, but bits 0 and 1 are ECN's (RFC 3168) and change on the way")
        if value < 32:
            reasons.append("precedence 000 is in use: routine traffic (RFC 791; class CS0, RFC 2474)")
        elif value < 64:
            reasons.append(
                "precedence 001 is in use: priority, background bulk (RFC 791; class CS1, RFC 2474)"
            )
    if reasons:
        raise ValueError("; ".join(reasons))
    return value


def _as_tuple(value: object) -> object:
    """The sensors' addresses; `sensor = "…"` is a list of one."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        if not 1 <= len(value) <= MAX_SENSORS:
            raise ValueError(f"{len(value)} sensors")
        return tuple(value)
    return value


Ip = Annotated[IPv4Address, BeforeValidator(_ip)]
Mac = Annotated[str, AfterValidator(_mac)]
_IP = 'a unicast IPv4 address such as "192.0.2.2", no other host\'s'
_MAC = 'a unicast MAC address such as "02:00:00:00:00:02", no other host\'s'
_Claim = tuple[str, Location, object]
"""The name of a host's address in the file, its place, and the address."""

_EACH = f"(sensor: one, or a list of 1 to {MAX_SENSORS})"


class _IpSection(Section):
    sensor: Annotated[tuple[Ip, ...], BeforeValidator(_as_tuple)] = Field(description=f"{_IP} {_EACH}")
    hardworker: Ip = Field(description=_IP)
    logger: Ip = Field(description=_IP)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _refuse_duplicates(_claims("ip", self))
        return self


class _MacSection(Section):
    sensor: Annotated[tuple[Mac, ...], BeforeValidator(_as_tuple)] = Field(description=f"{_MAC} {_EACH}")
    hardworker: Mac = Field(description=_MAC)
    logger: Mac = Field(description=_MAC)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _refuse_duplicates(_claims("mac", self))
        return self


class _StandbySection(Section):
    ip: Ip = Field(description=_IP)
    mac: Mac = Field(description=_MAC)


class _MarkSection(Section):
    tos: Annotated[int, AfterValidator(_tos)] = Field(
        default=104, description="0 (any TOS) or a multiple of 4 from 64 to 252"
    )
    port: int = Field(
        default=12345,
        ge=1,
        le=65535,
        description="an integer from 1 to 65535 (a TCP port), and only without [[stream]]",
    )


class _DataSection(Section):
    mtu: int = Field(
        ge=MIN_MTU,
        le=MAX_MTU,
        description=f"an integer from {MIN_MTU} to {MAX_MTU} (bytes an IPv4 packet; "
        "XDP needs the whole frame in one memory page)",
    )
    size: int | None = Field(
        default=None,
        ge=1,
        le=MAX_MESSAGE,
        description=f"an integer from 1 to {MAX_MESSAGE} (bytes a message), and only without [[stream]]",
    )


class _StreamSection(MessageSection):
    name: StreamName = Field(description=STREAM_NAME)
    port: int = Field(ge=1, le=65535, description=STREAM_PORT)

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.framing == "fixed" and self.size is None:
            raise FaultsError([(("size",), "its framing is fixed")])
        return self

    @property
    def meant(self) -> SensorStream:
        size = self.size if self.framing == "fixed" else self.max_size
        assert size is not None
        freq = self.freq if "freq" in self.model_fields_set else None
        return SensorStream(self.name, self.port, self.framing, size, freq, self.field)


class _File(Section):
    mac: _MacSection = Field(description="a table with sensor, hardworker and logger")
    ip: _IpSection = Field(description="a table with sensor, hardworker and logger")
    standby: Annotated[tuple[_StandbySection, ...], Field(strict=False)] = Field(
        default=(),
        max_length=MAX_LOGGERS - 1,
        description=f"at most {MAX_LOGGERS - 1} tables with ip and mac (loggers beside the first)",
    )
    mark: _MarkSection = Field(default=_MarkSection(), description="a table with tos and port")
    data: _DataSection = Field(description="a table with mtu and size")
    stream: Annotated[tuple[_StreamSection, ...], Field(strict=False)] = Field(
        default=(), max_length=MAX_STREAMS, description=f"at most {MAX_STREAMS} tables [[stream]]"
    )

    @model_validator(mode="after")
    def _in_one_form(self) -> Self:
        faults = claimed_twice(self.stream)
        if not self.stream and self.data.size is None:
            faults.append((("data", "size"), "no [[stream]] says it"))
        for table, key, section in (("mark", "port", self.mark), ("data", "size", self.data)):
            if self.stream and key in section.model_fields_set:
                faults.append(((table, key), "each [[stream]] says it for itself"))
        if faults:
            raise FaultsError(faults)
        return self

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.mac.sensor) != len(self.ip.sensor):
            counts = f"{len(self.mac.sensor)} in [mac] and {len(self.ip.sensor)} in [ip]"
            raise FaultsError([(("mac", "sensor"), f"not as many sensors in both tables: {counts}")])
        for table, section in (("ip", self.ip), ("mac", self.mac)):
            _refuse_duplicates(
                [
                    *_claims(table, section),
                    *(
                        (f"standby[{place}].{table}", ("standby", place, table), getattr(standby, table))
                        for place, standby in enumerate(self.standby)
                    ),
                ]
            )
        return self


def _claims(table: str, section: _IpSection | _MacSection) -> list[_Claim]:
    """Who has which address by one of the two tables."""
    return [
        (f"{table}.hardworker", ("hardworker",), section.hardworker),
        (f"{table}.logger", ("logger",), section.logger),
        *(
            (f"{table}.sensor[{index}]", ("sensor", index), address)
            for index, address in enumerate(section.sensor)
        ),
    ]


def _refuse_duplicates(claims: Iterable[_Claim]) -> None:
    owners: dict[object, str] = {}
    faults: list[tuple[Location, str]] = []
    for name, location, address in claims:
        owner = owners.setdefault(address, name)
        if owner != name:
            faults.append((location, f"the address of {owner} already"))
    if faults:
        raise FaultsError(faults)


@lru_cache(maxsize=4)
def _parse(text: str, path: Path) -> Topology:
    """A daemon asks several times a second what a file says that hardly ever changes."""
    file = parse_toml(text, path, _File)
    streams = tuple(stream.meant for stream in file.stream)
    size = streams[0].size if streams else file.data.size
    assert size is not None
    return Topology(
        sensors=tuple(Host(ip, mac) for ip, mac in zip(file.ip.sensor, file.mac.sensor, strict=True)),
        hardworker=Host(file.ip.hardworker, file.mac.hardworker),
        logger=Host(file.ip.logger, file.mac.logger),
        standbys=tuple(Host(standby.ip, standby.mac) for standby in file.standby),
        tos=file.mark.tos,
        port=streams[0].port if streams else file.mark.port,
        mtu=file.data.mtu,
        size=size,
        streams=streams,
    )


def _table(values: Mapping[str, Any]) -> str:
    """The lines of a TOML table."""
    return "".join(f"{key} = {literal(value)}\n" for key, value in values.items())


def _list(addresses: Iterator[str]) -> str:
    return "[\n" + "".join(f'    "{address}",\n' for address in addresses) + "]"


def _body(path: Path) -> str | None:
    """What a const.toml says below its header; None if there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return None
    return "".join(dropwhile(lambda line: line.startswith("#") or not line.strip(), lines))


def _replace(path: Path, text: str) -> None:
    """Put text in the place of a file in one step."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.chmod(0o644)  # mkstemp's 0600 would hide the file from a sensor without root
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the new name durable
    finally:
        os.close(folder)
