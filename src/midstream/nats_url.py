"""nats:// URLs: the servers of a cluster, who logs in there, and the stream."""

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

EXPECTED = (
    "Expected nats://HOST:PORT/STREAM, also with several HOST:PORT separated by commas, with USER:PASSWORD@ "
    "in front, and with ?replicas=3 for a stream that three servers keep ([logger] database in config.toml)"
)
QUOTING = "@ : / ? # [ ] and % in a user or password are written %40 %3A %2F %3F %23 %5B %5D and %25"
_PORT = 4222


def is_nats(url: str) -> bool:
    """Does it name a stream of JetStream, and no SQL database?"""
    return url.startswith("nats://")


@dataclass(frozen=True, slots=True)
class NatsUrl:
    """The parts of a nats:// URL, decoded. user without password: a token; neither: nobody logs in."""

    servers: tuple[str, ...]  # nats://HOST:PORT
    stream: str
    replicas: int
    name: str  # of all, without user and password
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """ValueError if something is missing or cannot be; its text holds nothing of user and password."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ValueError(f"not a URL: a bracket is missing, or {QUOTING}") from error
        if parts.fragment or "@" in parts.path:
            raise ValueError(f"something follows the stream's name; {QUOTING}")
        credentials, at, hosts = parts.netloc.rpartition("@")
        servers = tuple(_server(host) for host in hosts.split(",")) if hosts else ()
        stream = parts.path.strip("/")
        if not servers or not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", stream):
            raise ValueError("no servers or no name of a stream")
        replicas = _replicas(parts.query)
        user, colon, password = credentials.partition(":")
        return cls(
            servers,
            stream,
            replicas,
            name=f"nats://{hosts}{parts.path}",
            user=_decoded(user) if at else None,
            password=_decoded(password) if colon else None,
        )


def _server(text: str) -> str:
    """HOST, HOST:PORT or [ADDRESS]:PORT as the NATS client takes it."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::([0-9]{1,5}))?", text)
    if not match:
        raise ValueError(f"a server is not HOST:PORT or [ADDRESS]:PORT; {QUOTING}")
    address, host, port = match[1], match[2], int(match[3] or _PORT)
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is not one from 1 to 65535")
    if address:
        address = _decoded(address)  # %25 in front of a link-local address's interface
        try:
            IPv6Address(address)
        except ValueError as error:
            raise ValueError("what stands in brackets is no IPv6 address") from error
        return f"nats://[{address}]:{port}"
    try:
        fits = bool(re.fullmatch(rb"[A-Za-z0-9_.-]+", host.encode("idna")))
    except UnicodeError:
        fits = False
    if not fits:
        raise ValueError(f"a server's name is none that a host can have; {QUOTING}")
    return f"nats://{host}:{port}"


def _replicas(query: str) -> int:
    options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    if any(name != "replicas" for name, _ in options):
        raise ValueError("not an option: ?replicas= is the only one")
    values = [value for _, value in options] or ["1"]
    if len(values) > 1 or values[0] not in ("1", "2", "3", "4", "5"):
        raise ValueError("not 1 to 5 replicas")
    return int(values[0])


def _decoded(text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ValueError(f"a % is not followed by two hexadecimal digits; {QUOTING}")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError("user or password is not UTF-8") from error
