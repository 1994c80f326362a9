"""A logger, and a hardworker's daemon and spool, on loopback: the log says what it lacks."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest
from tests.support.exchanges import exchanging, message
from tests.support.logs import LogFile
from tests.support.site import SIZE, Serving, Site, wait_until

from midstream.cli import main
from midstream.cli.log import HOLE, PENDING
from midstream.config import load
from midstream.daemon.teller import Teller
from midstream.ebpf.control import Ended, Open
from midstream.ebpf.records import HERE, RECORD
from midstream.logger.backfill import Sender

SENSOR = "127.0.0.11"


class Program:
    """Stands for the hardworker's: what it has held of each connection, by port."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.first: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self._ends: list[Ended] = []
        patch.setattr("midstream.ebpf.control.connections", lambda _: self._opened())
        patch.setattr("midstream.ebpf.control.ended", lambda _: self._ended())

    def end(self, port: int, *, reset: bool = False, destination: int = 0) -> None:
        address, first, size = IPv4Address(SENSOR), self.first.get(port, 7), self.held.pop(port)
        self._ends.append(Ended(address, port, first, size, 1, 0, destination, self._now, reset))

    def _opened(self) -> list[Open]:
        address = IPv4Address(SENSOR)
        return [
            Open(address, port, self.first.get(port, 7), 1, size, 1, 0, 0, self._now, self._now)
            for port, size in self.held.items()
        ]

    def _ended(self) -> list[Ended]:
        ends, self._ends = self._ends, []
        return ends

    @property
    def _now(self) -> int:
        return time.monotonic_ns() // 10**12 * 10**12  # the same for a test


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = exchanging(Site(tmp_path))
    text = made.config.read_text()
    made.config.write_text(text.replace("spool = ", f'spool = "{tmp_path}/spool.db"\n# ', 1))
    return made


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(monkeypatch)


@pytest.fixture
def look(site: Site, program: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """What the daemon does each second."""
    monkeypatch.setattr("midstream.ebpf.heads.RingHeads.read", lambda _: np.empty(0, RECORD))
    teller = Teller(load(site.config), Path("pins"), lambda: ["127.0.0.1"])
    yield teller.look
    teller.close()


def waited(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@contextmanager
def sending(site: Site, count: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", site.port), 10, (SENSOR, 0)) as client:
        client.sendall(b"".join(map(message, range(count))))
        site.wait_for("SELECT count(*) FROM messages", [(count,)])
        yield client


@pytest.fixture
def verify(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], int]:
    """`midstream log verify`: its exit code."""

    def ended() -> int:
        monkeypatch.setattr(sys, "argv", ["midstream", "log", "verify", "--config", str(site.config)])
        with pytest.raises(SystemExit) as left:
            main()
        print(capsys.readouterr())
        return int(left.value.code or 0)

    return ended


def test_a_connection_that_ends(
    site: Site, program: Program, look: Callable[[], None], verify: Callable[[], int]
) -> None:
    with Serving(site.config):
        with sending(site, 100) as client:
            port = client.getsockname()[1]
            ((program.first[port],),) = site.query("SELECT first FROM connections")
            program.held[port] = 100 * SIZE
            look()
            assert verify() == 0
            program.held[port] += 5 * SIZE
            look()
            assert verify() == PENDING, "they may be on their way"
        site.wait_for("SELECT closed_ns IS NULL FROM connections", [(0,)])
        program.end(port)
        look()
        assert verify() == HOLE
        assert site.query("SELECT held_bytes, state FROM held") == [(105 * SIZE, "closed")]


@pytest.mark.slow
def test_a_connection_that_goes_to_the_spool(
    site: Site, program: Program, look: Callable[[], None], verify: Callable[[], int]
) -> None:
    spool = LogFile(site.folder / "spool.db")
    spool.add(map(message, range(50)), sensor=SENSOR, port=4000, first=7, start_ns=time.time_ns(), step_ns=1)
    program.held[4000] = 50 * SIZE
    program.end(4000, destination=HERE)
    config = load(site.config)
    with Serving(site.config):
        look()
        assert site.query("SELECT stream_start, stream_end, messages FROM pending") == [(0, 50 * SIZE, 50)]
        assert verify() == PENDING
        Sender(config, lambda: ["127.0.0.1"], print).run(waited, drain=True)
        look()
        assert verify() == 0
        assert site.query("SELECT count(*) FROM pending") == [(0,)]
    spool.close()


@pytest.mark.slow
def test_a_logger_that_is_started_later_hears_of_it(
    site: Site, program: Program, look: Callable[[], None], verify: Callable[[], int]
) -> None:
    with Serving(site.config), sending(site, 10) as client:
        port = client.getsockname()[1]
        ((program.first[port],),) = site.query("SELECT first FROM connections")
    program.held[port] = 10 * SIZE
    program.end(port, reset=True)
    look()  # nobody is there
    assert site.query("SELECT count(*) FROM held") == [(0,)]
    with Serving(site.config):

        def told() -> bool:
            look()
            return site.query("SELECT state FROM held") == [("reset",)]

        wait_until(told)
        assert verify() == 0
