"""Questions and answers between daemons."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from ipaddress import IPv4Address

import pytest

from midstream.daemon import heartbeat
from midstream.daemon.failover import MISSED
from midstream.daemon.heartbeat import WAITS, Heartbeat, Told, Watched
from midstream.daemon.seal import Key
from midstream.errors import NetworkError

HOME = IPv4Address("127.0.0.1")
KEY = Key(b"k" * 32)


def opened(
    port: int,
    tell: Callable[[], Told] = Told,
    *,
    key: Key = KEY,
    clock: Callable[[], float] = time.monotonic,
) -> AbstractContextManager[Heartbeat]:
    return Heartbeat.open(key, HOME, port, tell, clock)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((str(HOME), 0))
        return int(probe.getsockname()[1])


async def beat(tell: Callable[[], Told], key: Key = KEY, *, times: int = 3) -> Watched:
    """What an asker knows after it has asked so often."""
    port = free_port()
    with opened(port, tell, key=key), opened(free_port()) as asker:
        asker.watch({str(HOME): port})
        watched = asker.watched[str(HOME)]
        for _ in range(times):
            asker.ask()
            await asyncio.sleep(0.02)
        return watched


@pytest.mark.parametrize(
    ("told", "well"),
    [(Told(True), True), (Told(False), False), (Told(True, 0.4), True), (Told(True, WAITS), False)],
)
def test_what_a_logger_tells(told: Told, well: bool) -> None:
    watched = asyncio.run(beat(lambda: told))
    assert (watched.told, watched.answered is not None, watched.well is not None) == (told, True, well)


def test_a_logger_that_was_silent_serves_anew() -> None:
    """It is back when it has served for a while, not because it did before."""

    async def run() -> None:
        port = free_port()
        now = [100.0]
        with opened(port, lambda: Told(True)), opened(free_port(), clock=lambda: now[0]) as asker:
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

    asyncio.run(run())


def has_answered(watched: Watched) -> bool:
    return watched.answered is not None


@pytest.fixture
def silent() -> Iterator[Heartbeat]:
    """One that no event loop serves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answers:
        answers.bind((str(HOME), 0))
        yield Heartbeat(KEY, answers, Told, time.monotonic)


def test_an_answer_without_the_key_or_a_repeated_one_is_none(silent: Heartbeat) -> None:
    watched = asyncio.run(beat(lambda: Told(True), Key(b"other" * 8)))
    asker = silent
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
def test_noise_is_passed_over(silent: Heartbeat, noise: bytes) -> None:
    silent.answer(noise, ("127.0.0.1", 1))


def test_a_port_that_is_taken() -> None:
    async def run() -> None:
        port = free_port()
        taken = pytest.raises(NetworkError, match=f"UDP port {port} cannot be had")
        with opened(port), taken, opened(port):
            pass
        with opened(port):  # it is given back
            pass

    asyncio.run(run())


def test_a_daemon_waits_longer_than_three_heartbeats() -> None:
    assert 3 * heartbeat.INTERVAL < MISSED < 0.7
