"""The logger's service: does it listen, can it reach its database, and is there room?"""

import shutil
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from midstream.doctor.finding import Finding, fault, ok, warning
from midstream.doctor.subject import Subject
from midstream.errors import ConfigError
from midstream.nats_url import NatsUrl, is_nats
from midstream.streams import resolved

_LISTEN = "0A"  # in /proc/net/tcp
_LITTLE_ROOM = 1 << 30  # bytes, where the rate says nothing
_SHORT = 3600.0  # seconds

Socket = tuple[IPv4Address, int]


@dataclass(frozen=True, slots=True)
class ServiceState:
    """listening: the TCP sockets of this host that listen. database: its URL without password. problem: why
    it cannot be used, "" if it can. free: bytes on its disk, None if it is not on this host."""

    listening: frozenset[Socket]
    database: str
    exists: bool
    problem: str
    free: int | None


def read(subject: Subject) -> ServiceState:
    listening = _listening(Path("/proc/net/tcp").read_text())
    try:
        text = subject.config.database_url
    except ConfigError as error:
        return ServiceState(listening, "the database", False, str(error), None)
    if is_nats(text):
        servers = NatsUrl.parse(text)
        return ServiceState(listening, servers.name, True, _nats_problem(servers), None)
    url = make_url(text)
    name = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            return ServiceState(listening, name, True, "", None)
        path = Path(url.database or "")
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else None
        return ServiceState(listening, name, path.exists(), _sqlite_problem(path), free)
    return ServiceState(listening, name, True, _server_problem(subject.config.database_url), None)


def check(service: ServiceState, subject: Subject) -> Iterator[Finding]:
    yield _check_listening(service, subject)
    if service.problem:
        yield fault(
            "database",
            f"{service.database}: {service.problem}",
            "a database that can be opened",
            "correct config.toml: logger.database, or see that it runs and is reached",
        )
    else:
        yield ok("database", service.database if service.exists else f"{service.database}: will be made")
    if service.free is not None:
        yield _check_room(service.free, subject)


def _check_listening(service: ServiceState, subject: Subject) -> Finding:
    address, ports = subject.topology.logger.ip, list(subject.topology.ports)
    deaf = [port for port in ports if not {(address, port), (IPv4Address(0), port)} & service.listening]
    if not deaf:
        return ok("logger", f"listens on {address} port {', '.join(map(str, ports))}")
    return fault(
        "logger",
        f"nothing listens on {address} port {', '.join(map(str, deaf))}",
        "`midstream logger`",
        subject.command("logger"),
    )


def _check_room(free: int, subject: Subject) -> Finding:
    streams = resolved(subject.config, subject.topology).values()
    each = sum(one.config.data.freq * one.topology.size for one in streams)
    rate = each * len(subject.topology.sensors)
    room = f"{free / 1e9:.1f} GB free"
    fix = "make room on its disk, or name another in config.toml: logger.database"
    if not rate:
        if free < _LITTLE_ROOM:
            return warning("disk", room, "1 GiB or more", fix)
        return ok("disk", room)
    seconds = free / rate
    room += f", {seconds / 3600:.1f} hours at {rate / 1e6:.2f} MB a second"
    return ok("disk", room) if seconds >= _SHORT else warning("disk", room, "an hour or more", fix)


def _listening(table: str) -> frozenset[Socket]:
    """The listening sockets of a /proc/net/tcp: addresses in the machine's byte order, here little-endian."""
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if words[3] == _LISTEN:
            address, port = words[1].split(":")
            found.add((IPv4Address(bytes.fromhex(address)[::-1]), int(port, 16)))
    return frozenset(found)


def _sqlite_problem(path: Path) -> str:
    if not path.exists():
        return "" if path.parent.is_dir() else f"its folder {path.parent} does not exist"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
    return ""


def _nats_problem(url: NatsUrl) -> str:
    """Is none of the servers reached?"""
    problem = ""
    for server in url.servers:
        parts = urlsplit(server)
        try:
            socket.create_connection((parts.hostname or "", parts.port or 0), timeout=2.0).close()
        except OSError as error:
            problem = f"{parts.netloc}: {error.strerror or error}"
        else:
            return ""
    return problem


def _server_problem(url: str) -> str:
    try:
        engine = create_engine(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except DBAPIError as error:
        return str(error.orig or error).splitlines()[0]
    except (SQLAlchemyError, ImportError) as error:
        return str(error).splitlines()[0]
    return ""
