"""What was recorded, and is repeated in whatever order and direction, makes nobody believe it.

A model of daemons on one network, where somebody without the key records everything, holds back what he
likes, and delivers anything to anybody at any time.
"""

import json
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.announcements import announcement

from midstream.daemon.announcement import Word, unseal
from midstream.daemon.freshness import ANSWERED, ANSWERS, LATE, WAITING, StampJudge, Voice
from midstream.daemon.heartbeat import ASKERS, Heartbeat, Told, Watched
from midstream.daemon.peers import LIFETIME, Peers
from midstream.daemon.seal import Key

KEY = Key(b"k" * 32)
HOSTS = 3
NOW = LATE + ANSWERED  # seconds that "now" may be ago


class Daemon:
    """As talking.py puts the parts together. newest: when what it knows of the others was said."""

    def __init__(self, network: "Network", number: int) -> None:
        self.network, self.number = network, number
        self.ip = IPv4Address(f"192.0.2.{number + 1}")
        self.mac, self.skew = 0, 0.0
        self.slowness = 1.0
        self.start()

    def clock(self) -> float:
        return self.network.now * self.slowness

    def start(self) -> None:
        self.voice, self.peers = Voice(self.clock), Peers(10.0, self.clock)
        self.newest: dict[object, float] = {}
        self.there = True

    def say(self, leaving: bool = False) -> None:
        if not self.there:
            return
        ear = self.peers.ear
        stamp = self.voice.stamp(ear.challenge() if ear.wants else None)
        said = announcement(ip=self.ip, mac=f"02:00:00:00:{self.number:02x}:{self.mac:02x}", leaving=leaving)
        said = said.model_copy(update={"time": 1e9 + self.network.now + self.skew})
        self.network.said_at[stamp.run, stamp.number] = self.network.now
        self.network.recorded.append(Word(said=said, stamp=stamp).sealed(KEY))

    def leave(self) -> None:
        self.say(leaving=True)
        self.there = False

    def die(self) -> None:
        self.there = False

    def change(self) -> None:
        self.mac = (self.mac + 1) % 256

    def hear(self, text: bytes) -> None:
        if not self.there:
            return
        word = unseal(KEY, text)
        if word.stamp.run == self.voice.run:
            return
        if word.stamp.asks:
            self.voice.answer(word.stamp.asks)
        verdict = self.peers.hear(word, wall=1e9 + self.network.now + self.skew, now=self.network.now)
        if verdict in ("new", "changed") or (verdict == "same" and not word.said.leaving):
            said = self.network.said_at[word.stamp.run, word.stamp.number]
            assert said >= self.newest.get(word.said.ip, 0.0), f"{word} was said before what is known"
            assert word.said.leaving or said >= self.network.now - NOW * 1.01, f"{word} is not said now"
            self.newest[word.said.ip] = said

    def expire(self) -> None:
        """What was said before that does not count any more."""
        for said in self.peers.expire(self.network.now):
            self.newest[said.ip] = self.network.now

    def believes(self) -> dict[object, int]:
        self.expire()
        return {peer.said.ip: int(str(peer.said.mac)[-2:], 16) for peer in self.peers.all()}


class Network:
    def __init__(self) -> None:
        self.now = 100.0
        self.recorded: list[bytes] = []
        self.said_at: dict[tuple[str, int], float] = {}
        self.daemons = [Daemon(self, number) for number in range(HOSTS)]

    def deliver(self, which: int) -> None:
        for daemon in self.daemons:
            daemon.hear(self.recorded[which])

    def quiet(self, rounds: int = 12) -> None:
        """Everybody says what is due, and hears the others; nobody else does anything."""
        for number in range(rounds):
            self.now += 0.25
            before = len(self.recorded)
            for daemon in self.daemons:
                if daemon.voice.owes or daemon.peers.ear.wants or not number:
                    daemon.say()
            for which in range(before, len(self.recorded)):
                self.deliver(which)


Act = Callable[[Network], None]
WHO = st.integers(0, HOSTS - 1)


def of(name: str, who: int) -> Act:
    return lambda network: getattr(network.daemons[who], name)()


def replay(who: int, which: float, count: int) -> Act:
    """Some that were recorded, from anywhere on, to one host."""

    def act(network: Network) -> None:
        begin = int(which * len(network.recorded))
        for text in network.recorded[begin : begin + count]:
            network.daemons[who].hear(text)

    return act


def after(seconds: float) -> Act:
    def act(network: Network) -> None:
        network.now += seconds
        for daemon in network.daemons:
            daemon.expire()

    return act


def skewed(who: int, seconds: float) -> Act:
    def act(network: Network) -> None:
        network.daemons[who].skew += seconds

    return act


ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(of, st.sampled_from(["say", "say", "leave", "die", "start", "change"]), WHO),
    st.builds(replay, WHO, st.floats(0, 1, exclude_max=True), st.integers(1, 30)),
    st.builds(after, st.sampled_from([0.0, 0.1, 0.5, 1.5, 4.0, LIFETIME + 1])),
    st.builds(skewed, WHO, st.sampled_from([-5.0, 3600.0, -1e8, 1e8])),
    st.just(lambda network: network.quiet(4)),
)


def live(acts: list[Act]) -> None:
    network = Network()
    for number, daemon in enumerate(network.daemons):
        daemon.slowness = 1 + number * 1e-4
    network.quiet()
    for act in acts:
        act(network)
    network.quiet()
    truth = {daemon.ip: daemon.mac for daemon in network.daemons if daemon.there}
    network.now += 0.1
    for daemon in network.daemons:
        if daemon.there:
            believed = daemon.believes()
            expected = {ip: mac for ip, mac in truth.items() if ip != daemon.ip}
            assert {ip: believed.get(ip) for ip in expected} == expected, "honest hosts are heard in 3 s"


@pytest.mark.slow
@settings(max_examples=100)
@given(st.lists(ACTS, max_size=25))
def test_nobody_believes_what_is_not_said_now(acts: list[Act]) -> None:
    live(acts)


@pytest.mark.slow
@settings(max_examples=1000)
@given(st.lists(ACTS, max_size=60))
def test_nobody_believes_what_is_not_said_now_in_many_histories(acts: list[Act]) -> None:
    live(acts)


def test_a_clock_set_back_with_a_restart_costs_a_second() -> None:
    network = Network()
    network.quiet()
    first, other = network.daemons[:2]
    first.leave()
    network.deliver(-1)
    assert first.ip not in other.believes()
    first.skew -= 5.0
    first.start()
    network.quiet(5)
    assert first.ip in other.believes()


def test_the_bounds_hold_against_floods() -> None:
    """Of words that were recorded, of runs that are no more, and of challenges."""
    assert NOW <= 5
    now = [100.0]
    ear = StampJudge(8, lambda: now[0])
    for number in range(3 * WAITING):
        assert ear.judge(number, Voice().stamp()) == "unproven"
    assert len(ear._waiting) == WAITING
    for number in range(20):
        now[0] += 0.01
        voice = Voice(lambda: now[0])
        voice.answer(ear.challenge())
        assert ear.judge(number, voice.stamp()) == "first"
    assert len(ear._known) == 8
    for _ in range(1000):
        now[0] += 0.5
        ear.challenge()
    assert len(ear._asked) <= 8
    voice = Voice()
    for number in range(3 * ANSWERS):
        voice.answer(f"{number:016x}")
    text = Word(said=announcement(name="n" * 63, version="v" * 63), stamp=voice.stamp("0" * 16)).sealed(KEY)
    assert len(text) < 8000, "it fits into one message of multicast DNS"
    assert len(unseal(KEY, text).stamp.answers) == ANSWERS


# heartbeats


class Leg:
    """What a heartbeat at `ip` would send; from is the address that the kernel names."""

    def __init__(self, ip: str = "") -> None:
        self._ip = ip
        self.sent: list[tuple[bytes, tuple[str, int]]] = []

    def getsockname(self) -> tuple[str, int]:
        return self._ip, 1

    def sendto(self, data: bytes, addr: tuple[str, int]) -> None:
        self.sent.append((data, addr))

    def send(self, data: bytes) -> None:
        self.sent.append((data, ("", 0)))

    def last(self) -> bytes:
        return self.sent[-1][0]


def answering(ip: str, *, serving: bool = True) -> tuple[Heartbeat, Leg]:
    wire = Leg(ip)
    return Heartbeat(KEY, wire, lambda: Told(serving), time.monotonic), wire  # type: ignore[arg-type]


def asking(ip: str, own: str = "192.0.2.2") -> tuple[Heartbeat, Watched, Leg]:
    wire = Leg()
    made = Heartbeat(KEY, wire, Told, time.monotonic)  # type: ignore[arg-type]
    made.watched[ip] = Watched((ip, 1), 0.0, link=wire, own=own)  # type: ignore[arg-type]
    return made, made.watched[ip], wire


LOGGER, STANDBY, HARDWORKER = "192.0.2.3", "192.0.2.4", "192.0.2.2"


def exchanged() -> tuple[Heartbeat, Watched, Leg, Heartbeat, Leg]:
    """An asker whom the logger has believed."""
    asker, watched, out = asking(LOGGER)
    answerer, back = answering(LOGGER)
    asker.ask()
    answerer.answer(out.last(), (HARDWORKER, 5))
    assert "challenge" in json.loads(KEY.open("answer", back.last()))
    asker.take(watched, back.last())
    answerer.answer(out.last(), (HARDWORKER, 5))
    asker.take(watched, back.last())
    assert watched.answered
    return asker, watched, out, answerer, back


def test_an_answer_of_another_host_is_none() -> None:
    """A standby's answers, to a question that was asked of it or relayed to it, for the dead logger's."""
    asker, watched, out, _, _ = exchanged()
    watched.answered = 0.0
    standby, back = answering(STANDBY)
    to_standby, second, relayed = asking(STANDBY)
    asker.ask()
    standby.answer(out.last(), (HARDWORKER, 5))
    assert back.sent == [], "it was not asked"
    to_standby.ask()
    for _ in range(2):
        standby.answer(relayed.last(), (HARDWORKER, 5))
        to_standby.take(second, back.last())
    assert second.answered
    number = next(iter(watched.asked))
    forged: dict[str, Any] = json.loads(KEY.open("answer", back.last())) | {"number": number}
    for data in (back.last(), KEY.seal("answer", json.dumps(forged).encode())):
        asker.take(watched, data)
    assert watched.answered == 0.0


def test_a_repeated_question_is_not_answered() -> None:
    """Nor one from elsewhere, nor any of an earlier run of the asker, nor to an answerer that is new."""
    _, _, out, answerer, back = exchanged()
    count = len(back.sent)
    for data, _ in out.sent[1:]:
        answerer.answer(data, (HARDWORKER, 5))
        answerer.answer(data, (STANDBY, 5))
    assert len(back.sent) == count
    _, _, later, _, _ = exchanged()
    other, told = answering(LOGGER)
    for data, _ in (*out.sent, *later.sent):
        other.answer(data, (HARDWORKER, 5))
    assert all("serving" not in json.loads(KEY.open("answer", data)) for data, _ in told.sent)


def test_a_reflected_question_or_answer_is_none() -> None:
    asker, watched, out, answerer, back = exchanged()
    watched.answered = 0.0
    before = len(out.sent), len(back.sent)
    asker.ask()
    asker.take(watched, out.last())
    asker.answer(out.last(), (LOGGER, 5))
    answerer.answer(back.last(), (HARDWORKER, 5))
    assert (len(out.sent), len(back.sent)) == (before[0] + 1, before[1])
    assert not watched.answered


def test_askers_are_bounded() -> None:
    answerer, back = answering(LOGGER)
    for number in range(ASKERS + 5):
        own = f"10.0.0.{number}"
        asker, watched, out = asking(LOGGER, own)
        asker.ask()
        for _ in range(2):
            answerer.answer(out.last(), (own, 5))
            asker.take(watched, back.last())
        assert watched.answered
    assert len(answerer._ear._known) <= ASKERS
