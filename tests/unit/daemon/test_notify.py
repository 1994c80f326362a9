"""What the service manager is told."""

import socket
from pathlib import Path

import pytest

from midstream.daemon.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")  # nobody wants to know
    name = f"@midstream-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=works")
        assert manager.recv(100) == b"READY=1\nSTATUS=works"
    notify("WATCHDOG=1")  # the manager is gone: no reason to fail
