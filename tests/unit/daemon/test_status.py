"""The socket of `midstream status`."""

import asyncio
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from midstream.daemon import status
from midstream.errors import ConfigError, NetworkError

HOME = IPv4Address("127.0.0.1")


def test_the_state_is_told_to_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.sock"

    async def run() -> list[dict[str, Any] | None]:
        server = await status.serve(path, lambda: {"ip": HOME})
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigError, match="another daemon answers there"):
            await asyncio.to_thread(asyncio.run, status.serve(path, dict))
        answers = [await asyncio.to_thread(status.ask, path) for _ in range(2)]
        server.close()
        return answers

    assert asyncio.run(run()) == [{"ip": "127.0.0.1"}] * 2
    assert status.ask(path) is None


def test_a_socket_that_a_killed_daemon_left_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert status.ask(path) is None

    async def run() -> dict[str, Any] | None:
        server = await status.serve(path, lambda: {"state": "working"})
        answer = await asyncio.to_thread(status.ask, path)
        server.close()
        return answer

    assert asyncio.run(run()) == {"state": "working"}


def test_a_daemon_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "daemon.sock"))
        hanging.listen()
        with pytest.raises(NetworkError, match=r"the daemon does not answer \(timed out\)"):
            status.ask(tmp_path / "daemon.sock")


@pytest.mark.parametrize("accepts", [False, True])
def test_a_daemon_that_ends_meanwhile_is_none(tmp_path: Path, accepts: bool) -> None:
    """Linux resets whoever was not accepted yet; who was sees the end."""
    path = tmp_path / "daemon.sock"
    ending = socket.socket(socket.AF_UNIX)
    ending.bind(str(path))
    ending.listen()

    def end() -> None:
        select.select([ending], [], [], 10)  # until somebody asks
        if accepts:
            ending.accept()[0].close()
        ending.close()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(end)
        assert status.ask(path) is None
        ended.result()
