"""The daemon's small parts: log, status, notification, heartbeat, interface of the command line."""

import asyncio
import io
import json
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from midstream.daemon import heartbeat, status
from midstream.daemon.heartbeat import Heartbeat, is_listening
from midstream.daemon.log import Log, Seldom
from midstream.daemon.notify import notify
from midstream.daemon.resets import segment
from midstream.daemon.seal import Key
from midstream.ebpf.control import Open
from midstream.errors import ConfigError, NetworkError
from midstream.packet.headers import Flags, IPv4, Tcp

HOME = IPv4Address("127.0.0.1")
KEY = Key(b"k" * 32)


def test_a_line_for_people_and_one_for_programs() -> None:
    output = io.StringIO()
    Log(output=output)("repaired", level="warning", what="neighbour 192.0.2.3: missing", count=3, empty="")
    assert output.getvalue().split(" ", 1)[1] == (
        'warning repaired what="neighbour 192.0.2.3: missing" count=3 empty=""\n'
    )
    output = io.StringIO()
    Log(as_json=True, output=output)("heard", ip=IPv4Address("192.0.2.3"))
    found = json.loads(output.getvalue())
    assert (found.pop("time")[-6:], found) == (
        "+00:00",
        {"level": "info", "event": "heard", "ip": "192.0.2.3"},
    )


def test_what_is_said_seldom_is_counted() -> None:
    now = [100.0]
    seldom = Seldom(10.0, lambda: now[0])
    assert [seldom.admit() for _ in range(4)] == [0, None, None, None]
    now[0] += 10
    assert (seldom.admit(), seldom.admit()) == (3, None)


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


async def beat(answerer: Heartbeat, *, times: int = 3) -> tuple[Heartbeat, list[bool]]:
    port = free_port()
    changes: list[bool] = []
    asker = Heartbeat(KEY, lambda: False, lambda: changes.append(True))
    await answerer.start(HOME, port)
    await asker.start(HOME, free_port())
    asker.watch({str(HOME): port})
    for _ in range(times):
        asker.ask()
        await asyncio.sleep(0.02)
    for one in (asker, answerer):
        one.close()
    await asyncio.sleep(0)
    return asker, changes


def test_a_logger_that_serves_is_up() -> None:
    asker, changes = asyncio.run(beat(Heartbeat(KEY, lambda: True, lambda: None)))
    watched = asker.watched[str(HOME)]
    assert (watched.reason(watched.answered), watched.seen_up, changes) == ("", True, [True])
    assert watched.reason(watched.answered + 1) == "its daemon has not answered for 1.0 s"


def test_a_daemon_without_its_logger_says_so() -> None:
    asker, changes = asyncio.run(beat(Heartbeat(KEY, lambda: False, lambda: None)))
    watched = asker.watched[str(HOME)]
    assert watched.reason(watched.answered) == "no logger listens on the port"
    assert (watched.seen_up, changes) == (False, [])


def test_a_logger_that_was_silent_serves_anew() -> None:
    """It is back when it has served for a while, not because it did before."""

    async def run() -> None:
        port = free_port()
        answerer = Heartbeat(KEY, lambda: True, lambda: None)
        asker = Heartbeat(KEY, lambda: False, lambda: None)
        await answerer.start(HOME, port)
        asker.watch({str(HOME): port})
        watched = asker.watched[str(HOME)]

        async def ask() -> float:
            asker.ask()
            await asyncio.sleep(0.02)
            return watched.serving_since

        first = await ask()
        assert first and await ask() == first, "it has served all the time"
        watched.answered -= heartbeat.SILENCE + 0.1
        since = await ask()
        assert since == watched.answered > first
        assert not watched.is_steady(since + heartbeat.STEADY - 0.1)
        assert watched.is_steady(since + heartbeat.STEADY)
        for one in (asker, answerer):
            one.close()
        await asyncio.sleep(0)

    asyncio.run(run())


def test_an_answer_without_the_key_or_a_repeated_one_is_none() -> None:
    asker, _ = asyncio.run(beat(Heartbeat(Key(b"other" * 8), lambda: True, lambda: None)))
    watched = asker.watched[str(HOME)]
    assert watched.answered == 0
    said = {"from": str(HOME), "to": watched.own, "serving": True}
    asker.take(watched, KEY.seal("answer", json.dumps(said | {"number": "0" * 16}).encode()))
    assert watched.answered == 0, "nobody asked that"
    said["number"] = next(iter(watched.asked))
    asker.take(watched, KEY.seal("question", json.dumps(said).encode()))
    assert watched.answered == 0, "a question is no answer"
    for name in ("from", "to"):
        asker.take(watched, KEY.seal("answer", json.dumps(said | {name: "127.0.0.9"}).encode()))
        assert watched.answered == 0, "of another host, or to another"
    answer = KEY.seal("answer", json.dumps(said).encode())
    asker.take(watched, answer)
    assert watched.answered > 0
    watched.answered = 0.0
    asker.take(watched, answer)
    assert watched.answered == 0, "the second time it answers nothing"


@pytest.mark.parametrize("noise", [b"", b"x", bytes(2000)])
def test_noise_is_passed_over(noise: bytes) -> None:
    Heartbeat(KEY, lambda: True, lambda: None).datagram_received(noise, ("127.0.0.1", 1))


def test_a_port_that_is_taken() -> None:
    async def run() -> None:
        port = free_port()
        first, second = (Heartbeat(KEY, lambda: True, lambda: None) for _ in range(2))
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
    assert 3 * heartbeat.INTERVAL < heartbeat.SILENCE < 0.7


def test_a_host_without_its_daemon_leaves_the_logger_as_it_was() -> None:
    async def run() -> None:
        port = free_port()
        answerer = Heartbeat(KEY, lambda: True, lambda: None)
        asker = Heartbeat(KEY, lambda: False, lambda: None)
        await answerer.start(HOME, port)
        asker.watch({str(HOME): port})
        watched = asker.watched[str(HOME)]
        asker.ask()
        await asyncio.sleep(0.02)
        assert watched.answered
        answerer.close()
        await asyncio.sleep(0)
        asker.ask()
        await asyncio.sleep(0.02)
        late = watched.answered + heartbeat.SILENCE + 0.1
        assert watched.refused
        watched.refused = late - 0.1
        assert watched.reason(late) == ""
        assert watched.reason(late + heartbeat.SILENCE).startswith("its daemon has not answered")
        asker.close()

    asyncio.run(run())


# resets


@pytest.mark.parametrize(
    ("acknowledged", "sequence", "acknowledgement", "flags"),
    [(77, 77, 0, Flags.RST), (None, 0, 1001, Flags.RST | Flags.ACK)],
)
def test_a_reset_bears_the_numbers_that_are_believed(
    acknowledged: int | None, sequence: int, acknowledgement: int, flags: Flags
) -> None:
    ip, now = IPv4Address("192.0.2.11"), 10**9
    one = Open(ip, 4000, 1001, acknowledged, 0, 1, sensor=0, destination=0, opened_ns=now, seen_ns=now)
    found = segment(one, IPv4Address("192.0.2.2"), 12345)
    tcp = Tcp.parse(found)
    assert (tcp.source_port, tcp.destination_port, tcp.flags) == (12345, 4000, flags)
    assert (tcp.sequence, tcp.acknowledgment) == (sequence, acknowledgement)
    assert tcp.is_intact(IPv4(IPv4Address("192.0.2.2"), one.ip, 40), b"")
