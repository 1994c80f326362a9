"""A logger that hardworkers may ask, and a ring that says which connections it had first."""

import socket
from pathlib import Path

from tests.support.fake_ring import FakeRing, RingSource
from tests.support.site import SIZE, Site

from midstream.config import load
from midstream.hardworker.source import Beginning
from midstream.line import Line

KEY = b"k" * 32


class Young(RingSource):
    """A ring that had these connections first."""

    def __init__(self, ring: FakeRing, *first: Beginning) -> None:
        super().__init__(ring)
        self.noted = list(first)

    def beginnings(self) -> list[Beginning]:
        return self.noted


def exchanging(site: Site, hardworker: str = "") -> Site:
    """The same, with a free port for hardworkers and a key; `hardworker` is a part of config.toml."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    site.configure(logger=f'replay_port = {port}\n[daemon]\nkey = "key"\n', hardworker=hardworker)
    write_key(site.folder / "key", KEY)
    return site


def write_key(path: Path, key: bytes) -> None:
    path.write_bytes(key)
    path.chmod(0o600)


def asking(site: Site) -> Line:
    port = load(site.config).logger.replay_port
    return Line(socket.create_connection(("127.0.0.1", port), 10), KEY, asks=True)


def message(number: int) -> bytes:
    return number.to_bytes(4, "little").ljust(SIZE, b".")


def send(site: Site, numbers: range) -> int:
    """As one connection of the sensor of const.toml; its port."""
    with socket.create_connection(("127.0.0.1", site.port), 10, ("127.0.0.11", 0)) as client:
        client.sendall(b"".join(map(message, numbers)))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        port: int = client.getsockname()[1]
        return port
