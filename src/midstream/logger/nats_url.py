"""nats:// URLs: the servers of a cluster, and the stream."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from midstream.errors import StoreError

EXPECTED = (
    "Expected nats://HOST:PORT/STREAM, also with several HOST:PORT separated by commas, and with ?replicas=3 "
    "for a stream that three servers keep ([logger] database in config.toml)"
)


@dataclass(frozen=True, slots=True)
class NatsUrl:
    """The parts of a nats:// URL."""

    servers: tuple[str, ...]
    stream: str
    replicas: int
    name: str  # of all, without user and password

    @classmethod
    def parse(cls, url: str) -> Self:
        """StoreError if something is missing or cannot be."""
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        prefix = f"{credentials}@" if credentials else ""
        name = f"nats://{hosts}{parts.path}"
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        replicas = options.pop("replicas", "1")
        stream = parts.path.strip("/")
        if not hosts or not stream.replace("_", "").replace("-", "").isalnum():
            raise StoreError(f"{name}: no servers or no name of a stream. {EXPECTED}")
        if options or replicas not in ("1", "2", "3", "4", "5"):
            raise StoreError(f"{name}?{parts.query}: not an option, or not 1 to 5 replicas. {EXPECTED}")
        servers = tuple(f"nats://{prefix}{host}" for host in hosts.split(","))
        return cls(servers, stream, int(replicas), name)
