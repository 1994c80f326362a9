"""The daemon's small parts: status, notification, heartbeat, interface of the command line."""

import asyncio
import json
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from midstream.daemon import heartbeat, status
from midstream.daemon.backlog import is_listening
from midstream.daemon.failover import MISSED
from midstream.daemon.heartbeat import WAITS, Heartbeat, Told, Watched
from midstream.daemon.notify import notify
from midstream.daemon.resets import segment
from midstream.daemon.seal import Key
from midstream.ebpf.control import Open
from midstream.errors import ConfigError, NetworkError
from midstream.packet.headers import Flags, IPv4, Tcp

HOME = IPv4Address("127.0.0.1")
KEY = Key(b"k" * 32)


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


# status


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


# heartbeat


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((str(HOME), 0))
        return int(probe.getsockname()[1])


async def beat(answerer: Heartbeat, *, times: int = 3) -> Watched:
    """What an asker knows after it has asked so often."""
    port = free_port()
    asker = Heartbeat(KEY, Told)
    await answerer.start(HOME, port)
    await asker.start(HOME, free_port())
    asker.watch({str(HOME): port})
    for _ in range(times):
        asker.ask()
        await asyncio.sleep(0.02)
    for one in (asker, answerer):
        one.close()
    await asyncio.sleep(0)
    return asker.watched[str(HOME)]


@pytest.mark.parametrize(
    ("told", "well"),
    [(Told(True), True), (Told(False), False), (Told(True, 0.4), True), (Told(True, WAITS), False)],
)
def test_what_a_logger_tells(told: Told, well: bool) -> None:
    watched = asyncio.run(beat(Heartbeat(KEY, lambda: told)))
    assert (watched.told, watched.answered is not None, watched.well is not None) == (told, True, well)


def test_a_logger_that_was_silent_serves_anew() -> None:
    """It is back when it has served for a while, not because it did before."""

    async def run() -> None:
        port = free_port()
        now = [100.0]
        answerer = Heartbeat(KEY, lambda: Told(True))
        asker = Heartbeat(KEY, Told, lambda: now[0])
        await answerer.start(HOME, port)
        asker.watch({str(HOME): port})
        watched = asker.watched[str(HOME)]

        async def ask() -> float | None:
            asker.ask()
            await asyncio.sleep(0.02)
            return watched.well

        assert await ask() == 100.0
        now[0] += MISSED
        assert await ask() == 100.0, "it has served all the time"
        now[0] += MISSED + 0.1
        assert await ask() == now[0]
        for one in (asker, answerer):
            one.close()
        await asyncio.sleep(0)

    asyncio.run(run())


def has_answered(watched: Watched) -> bool:
    return watched.answered is not None


def test_an_answer_without_the_key_or_a_repeated_one_is_none() -> None:
    watched = asyncio.run(beat(Heartbeat(Key(b"other" * 8), lambda: Told(True))))
    asker = Heartbeat(KEY, Told)
    assert not has_answered(watched)
    said = {"from": str(HOME), "to": watched.own, "serving": True}
    asker.take(watched, KEY.seal("answer", json.dumps(said | {"number": "0" * 16}).encode()))
    assert not has_answered(watched), "nobody asked that"
    said["number"] = next(iter(watched.asked))
    asker.take(watched, KEY.seal("question", json.dumps(said).encode()))
    assert not has_answered(watched), "a question is no answer"
    for name in ("from", "to"):
        asker.take(watched, KEY.seal("answer", json.dumps(said | {name: "127.0.0.9"}).encode()))
        assert not has_answered(watched), "of another host, or to another"
    answer = KEY.seal("answer", json.dumps(said).encode())
    asker.take(watched, answer)
    assert has_answered(watched)
    watched.answered = None
    asker.take(watched, answer)
    assert not has_answered(watched), "the second time it answers nothing"


@pytest.mark.parametrize("noise", [b"", b"x", bytes(2000)])
def test_noise_is_passed_over(noise: bytes) -> None:
    Heartbeat(KEY, Told).datagram_received(noise, ("127.0.0.1", 1))


def test_a_port_that_is_taken() -> None:
    async def run() -> None:
        port = free_port()
        first, second = (Heartbeat(KEY, Told) for _ in range(2))
        await first.start(HOME, port)
        try:
            with pytest.raises(NetworkError, match=f"UDP port {port} cannot be had"):
                await second.start(HOME, port)
        finally:
            first.close()

    asyncio.run(run())


def test_whether_a_port_is_listened_on() -> None:
    with socket.socket() as listener:
        listener.bind((str(HOME), 0))
        port = listener.getsockname()[1]
        assert not is_listening(port)
        listener.listen()
        assert is_listening(port)
    assert not is_listening(port)


def test_a_daemon_waits_longer_than_three_heartbeats() -> None:
    assert 3 * heartbeat.INTERVAL < MISSED < 0.7


# resets


@pytest.mark.parametrize(
    ("acknowledged", "sequence", "acknowledgement", "flags"),
    [(77, 77, 0, Flags.RST), (None, 0, 1001, Flags.RST | Flags.ACK)],
)
def test_a_reset_bears_the_numbers_that_are_believed(
    acknowledged: int | None, sequence: int, acknowledgement: int, flags: Flags
) -> None:
    one = Open(
        IPv4Address("192.0.2.11"),
        4000,
        first=1001,
        acknowledged=acknowledged,
        next=0,
        number=1,
        sensor=0,
        destination=0,
        opened_ns=0,
        seen_ns=0,
    )
    found = segment(one, IPv4Address("192.0.2.2"), 12345)
    tcp = Tcp.parse(found)
    assert (tcp.source_port, tcp.destination_port, tcp.flags) == (12345, 4000, flags)
    assert (tcp.sequence, tcp.acknowledgment) == (sequence, acknowledgement)
    assert tcp.is_intact(IPv4(IPv4Address("192.0.2.2"), one.ip, 40), b"")
