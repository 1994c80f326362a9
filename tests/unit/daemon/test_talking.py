"""What a daemon says at its address, and what it makes of what it hears."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, Self

import pytest
from tests.support.announcements import announcement, word
from tests.support.events import collected

from midstream.config import Config, DaemonSection
from midstream.daemon import talking
from midstream.daemon.announcement import Announcement
from midstream.daemon.discovery import ANSWER, INTERVAL
from midstream.daemon.freshness import Voice
from midstream.daemon.heartbeat import Told
from midstream.daemon.peers import LIFETIME, Peers
from midstream.daemon.seal import Key
from midstream.daemon.talking import Hearing, Talker
from midstream.errors import NetworkError

HOME = IPv4Address("127.0.0.1")
KEY = Key(b"k" * 32)


class News:
    """Counts how often there was some."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


class Multicast:
    """Stands in for discovery.py. did: what was asked of it, in order."""

    did: list[str]
    refuses = False

    def __init__(self, said: Announcement) -> None:
        self.said = said

    @classmethod
    @asynccontextmanager
    async def open(cls, ip: IPv4Address, _: Key, said: Announcement, **__: Any) -> AsyncIterator[Self]:
        if cls.refuses:
            raise NetworkError("no multicast DNS there")
        assert ip == said.ip
        cls.did.append(f"hello {said.ip}")
        yield cls(said)
        cls.did.append(f"goodbye {said.ip}")

    def repeat(self) -> None:
        self.did.append("repeat")

    async def say(self, said: Announcement) -> None:
        self.said = said
        self.did.append(f"mtu {said.mtu}")


@pytest.fixture
def multicast(monkeypatch: pytest.MonkeyPatch) -> type[Multicast]:
    Multicast.did, Multicast.refuses = [], False
    monkeypatch.setattr(talking, "Discovery", Multicast)
    return Multicast


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((str(HOME), 0))
        return int(probe.getsockname()[1])


def own(**fields: Any) -> Announcement:
    return announcement(ip=str(HOME), port=free_port(), **fields)


def talker(*, key: Key | None = KEY, explore: bool = True, hearing: Hearing | None = None) -> Talker:
    config = Config(daemon=DaemonSection(explore=explore))
    return Talker(config, key, hearing or Hearing(Peers(10), News()), Told, lambda: 0.0)


# talking


def test_what_is_said_at_an_address_ends_when_it_moves(multicast: type[Multicast]) -> None:
    said = collected()

    async def run() -> None:
        made, first, second = talker(), own(), own().model_copy(update={"ip": IPv4Address("127.0.0.2")})
        assert (made.ip, made.heartbeat) == (None, None)
        await made.say(first)
        made.repeat()
        assert multicast.did == [], "it talks nowhere yet"
        await made.move(first, "eth0")
        before = made.heartbeat
        assert (made.ip, before is not None) == (HOME, True)
        await made.move(second, "eth0")
        assert (made.ip, made.heartbeat is not before) == (second.ip, True)
        await made.close()
        await made.close()
        assert (made.ip, made.heartbeat) == (None, None)

    asyncio.run(run())
    assert multicast.did == [
        "hello 127.0.0.1",
        "goodbye 127.0.0.1",
        "hello 127.0.0.2",
        "goodbye 127.0.0.2",
    ]
    assert [(each["event"], str(each["ip"])) for each in said] == [
        ("started", "127.0.0.1"),
        ("started", "127.0.0.2"),
    ]


def test_it_is_silent_where_it_cannot_be_heard_and_tries_again(multicast: type[Multicast]) -> None:
    """What was opened before something failed is closed again."""

    async def run() -> None:
        made, said = talker(), own()
        multicast.refuses = True
        for _ in range(2):  # the port was given back
            with pytest.raises(NetworkError, match="no multicast DNS there"):
                await made.move(said, "eth0")
            assert (made.ip, made.heartbeat) == (None, None)
        multicast.refuses = False
        await made.move(said, "eth0")
        assert made.ip == HOME
        await made.close()

    asyncio.run(run())
    assert multicast.did == ["hello 127.0.0.1", "goodbye 127.0.0.1"]


def test_a_port_that_is_taken_keeps_it_silent(multicast: type[Multicast]) -> None:
    async def run() -> None:
        made, said = talker(), own()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((str(HOME), said.port))
            with pytest.raises(NetworkError, match=f"UDP port {said.port} cannot be had"):
                await made.move(said, "eth0")
        assert made.ip is None

    asyncio.run(run())
    assert multicast.did == []


def test_only_news_is_said_at_once_and_the_rest_in_time(
    multicast: type[Multicast], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(talking, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    hearing = Hearing(Peers(10), News())
    hearing.peers.ear.challenge()  # nobody is asked just now

    async def run() -> None:
        made, said = talker(hearing=hearing), own()
        await made.move(said, "eth0")
        await made.say(said)
        await made.say(said.model_copy(update={"mtu": 1400}))
        now[0] += INTERVAL - 0.1
        made.repeat()
        now[0] += 0.1
        made.repeat()
        made.repeat()
        assert multicast.did[1:] == ["mtu 1400", "repeat"]
        hearing.peers.ear.judge("somebody", Voice().stamp())
        now[0] += ANSWER
        made.repeat()
        assert multicast.did[1:] == ["mtu 1400", "repeat", "repeat"], "who is new is asked at once"
        await made.close()

    asyncio.run(run())


@pytest.mark.parametrize(("key", "explore"), [(None, False), (KEY, False)])
def test_without_exploring_at_most_the_loggers_are_asked(
    multicast: type[Multicast], key: Key | None, explore: bool
) -> None:
    async def run() -> None:
        made = talker(key=key, explore=explore)
        await made.move(own(), "eth0")
        assert (made.ip, made.heartbeat is not None) == (HOME, key is not None)
        await made.close()

    asyncio.run(run())
    assert multicast.did == []


# hearing


def test_a_host_that_is_heard_is_news_once() -> None:
    said, news = collected(), News()
    hearing, voice, own_voice = Hearing(Peers(10**10), news), Voice(), Voice()
    voice.answer(hearing.stamp(own_voice).asks or "")
    hearing.hear(own_voice, word(voice))
    hearing.hear(own_voice, word(voice))
    assert news.count == 1
    assert [(each["event"], each["what"]) for each in said] == [("heard", "new")]
    hearing.hear(own_voice, word(voice, leaving=True))
    assert news.count == 2
    assert (said[-1]["event"], said[-1]["what"]) == ("heard", "leaving")
    assert hearing.rejected == {}


def test_who_asks_is_answered() -> None:
    hearing, own_voice, other = Hearing(Peers(10), News()), Voice(), Voice()
    asking = word(other)
    asking.stamp = other.stamp("0" * 16)
    hearing.hear(own_voice, asking)
    assert own_voice.owes
    assert hearing.stamp(own_voice).answers == ("0" * 16,)


def test_what_counts_for_nothing_is_counted_and_seldom_logged() -> None:
    said = collected()
    hearing, own_voice = Hearing(Peers(10), News()), Voice()
    for _ in range(3):
        hearing.reject("'somebody' without the key")
    hearing.hear(own_voice, word(own_voice))  # our own, from somebody else
    assert hearing.rejected == {"key": 3, "old": 1}
    assert [(each["event"], each["unsaid"]) for each in said] == [("rejected", 0)]


def test_a_clock_that_differs_is_named() -> None:
    said = collected()
    hearing, voice, own_voice = Hearing(Peers(10), News()), Voice(), Voice()
    voice.answer(hearing.stamp(own_voice).asks or "")
    hearing.hear(own_voice, word(voice, time=0.0))
    assert [each["event"] for each in said] == ["heard", "clock"]
    assert "behind this host's" in said[1]["reason"]


def test_a_silent_host_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(talking, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    said = collected()
    hearing, voice, own_voice = Hearing(Peers(10**10), News()), Voice(), Voice()
    voice.answer(hearing.stamp(own_voice).asks or "")
    hearing.hear(own_voice, word(voice))
    hearing.expire()
    now[0] += LIFETIME + 1
    hearing.expire()
    assert [each["event"] for each in said] == ["heard", "silent"]
    assert hearing.peers.all() == []
