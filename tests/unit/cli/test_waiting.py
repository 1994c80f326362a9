"""A command that is a service waits for what it lacks, and says what that is."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from midstream.cli import waiting
from midstream.cli.waiting import patiently
from midstream.errors import ConfigError, KernelError, NetworkError, StoreError


class Manager:
    """What a service manager hears."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        lines = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(waiting, "_PAUSE", 0.01)
    monkeypatch.setattr(waiting, "_LOOK", 0.005)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [ConfigError, KernelError, NetworkError, StoreError])
def test_it_waits_says_why_once_and_starts(
    kind: type[Exception], manager: Manager, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [kind("no logger\nanywhere"), kind("no logger\nanywhere"), kind("no sensor")]

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "works"

    assert patiently(attempt, lambda: False, then="listening") == "works"
    said = capsys.readouterr().err.splitlines()
    assert said == ["waiting: no logger", "anywhere", "waiting: no sensor", "listening"]
    heard = manager.heard()
    assert heard[:3] == ["READY=1", "STATUS=waiting: no logger anywhere", "WATCHDOG=1"]
    assert heard[-1] == "STATUS=listening"


def test_without_a_service_manager_the_error_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    def attempt() -> str:
        raise NetworkError("nobody")

    with pytest.raises(NetworkError, match="nobody"):
        patiently(attempt, lambda: False, then="")


def test_told_to_stop_it_ends_well(manager: Manager) -> None:
    def attempt() -> str:
        raise NetworkError("nobody")

    with pytest.raises(typer.Exit) as ended:
        patiently(attempt, lambda: True, then="")
    assert ended.value.exit_code == 0
    assert manager.heard()[0] == "READY=1"


def test_a_fault_of_ours_is_not_waited_for(manager: Manager) -> None:
    def attempt() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        patiently(attempt, lambda: False, then="")


def test_every_service_waits() -> None:
    """Each command that a unit starts, but those whose own loop does."""
    folder = Path(waiting.__file__).parent
    for name in ("daemon", "hardworker", "kernel", "logger", "sensor"):
        assert re.search(r"\bpatiently\(", (folder / f"{name}.py").read_text()), name
