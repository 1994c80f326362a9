"""What this host says, asks and hears: announcements of all, heartbeats of the loggers.

What is said and asked is bound to the host's address. If that changes, everything that was opened there ends,
and begins anew. What was heard stays.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address

from midstream.config import Config
from midstream.daemon.announcement import Announcement, Word
from midstream.daemon.discovery import ANSWER, INTERVAL, Discovery
from midstream.daemon.freshness import Stamp, Voice
from midstream.daemon.heartbeat import Heartbeat, Told
from midstream.daemon.log import Seldom, log
from midstream.daemon.peers import Peers
from midstream.daemon.seal import Key

_SELDOM = 10.0  # seconds between two lines of what was rejected


class Hearing:
    """Lives as long as the daemon, whatever address the host has. changed() is called when there is news.

    rejected: how often something was said that counts for nothing, by kind.
    """

    def __init__(self, peers: Peers, changed: Callable[[], None]) -> None:
        self.peers = peers
        self.rejected: Counter[str] = Counter()
        self._changed = changed
        self._seldom = Seldom(_SELDOM, time.monotonic)

    def stamp(self, voice: Voice) -> Stamp:
        """The next of ours, with a challenge if one is due."""
        ear = self.peers.ear
        return voice.stamp(ear.challenge() if ear.wants else None)

    def hear(self, voice: Voice, word: Word) -> None:
        """Take an authentic word; what it asks our voice answers."""
        said = word.said
        if word.stamp.run == voice.run:
            self.rejected["old"] += 1  # our own, from somebody else
            return
        if word.stamp.asks:
            voice.answer(word.stamp.asks)
        verdict = self.peers.hear(word, wall=time.time(), now=time.monotonic())
        if verdict in ("new", "changed"):
            log("heard", host=said, mac=said.mac, what="leaving" if said.leaving else verdict)
            self._changed()
            if skewed := self.peers.skewed.get(said.ip):
                log("clock", level="warning", reason=skewed)
        elif verdict in ("old", "full"):
            self.rejected[verdict] += 1

    def reject(self, reason: str) -> None:
        """Count a word that was said without the key."""
        self.rejected["key"] += 1
        if (unsaid := self._seldom.admit()) is not None:
            log("rejected", level="warning", reason=reason, unsaid=unsaid)

    def expire(self) -> None:
        """Forget hosts that have fallen silent, and count runs that have not proven themselves."""
        for said in self.peers.expire(time.monotonic()):
            log("silent", level="warning", host=said)
        if repeated := self.peers.ear.unanswered():
            self.rejected["old"] += repeated


@dataclass(frozen=True, slots=True)
class _Talk:
    """What is open at one address: nothing without a key, and no discovery with `explore = false`."""

    ip: IPv4Address | None = None
    voice: Voice = field(default_factory=Voice)
    heartbeat: Heartbeat | None = None
    discovery: Discovery | None = None


class Talker:
    """Says nothing until it has moved to an address. tell() says what there is to say of this host's logger.

    now: this daemon's own time (awake.py).
    """

    def __init__(
        self,
        config: Config,
        key: Key | None,
        hearing: Hearing,
        tell: Callable[[], Told],
        now: Callable[[], float],
    ) -> None:
        self._config, self._key, self._tell, self._now = config, key, tell, now
        self.hearing = hearing
        self._talk, self._opened = _Talk(), AsyncExitStack()
        self._announced = time.monotonic()

    @property
    def ip(self) -> IPv4Address | None:
        """Where it talks; None: nowhere."""
        return self._talk.ip

    @property
    def heartbeat(self) -> Heartbeat | None:
        """What asks the loggers; None: nobody is asked."""
        return self._talk.heartbeat

    async def move(self, said: Announcement, interface: str) -> None:
        """Say this at the address that it names, and at no other. Raises NetworkError: then it is silent."""
        await self.close()
        daemon, voice, heartbeat, discovery = self._config.daemon, Voice(), None, None
        async with AsyncExitStack() as opening:
            if self._key:
                heartbeat = opening.enter_context(
                    Heartbeat.open(self._key, said.ip, said.port, self._tell, self._now)
                )
            if daemon.explore and not daemon.rewrite_const:
                log(
                    "rewrite_const",
                    level="warning",
                    reason="daemon.rewrite_const = false, but with explore = true const.toml is rewritten "
                    "all the same; set explore = false to keep a file of your own",
                )
            if daemon.explore and self._key:
                discovery = await opening.enter_async_context(
                    Discovery.open(
                        said.ip,
                        self._key,
                        said,
                        stamp=partial(self.hearing.stamp, voice),
                        heard=partial(self.hearing.hear, voice),
                        rejected=self.hearing.reject,
                    )
                )
            self._opened = opening.pop_all()
        self._talk = _Talk(said.ip, voice, heartbeat, discovery)
        log("started", role=said.role, name=said.name, interface=interface, ip=said.ip)

    async def close(self) -> None:
        """Say goodbye, and be silent."""
        self._talk = _Talk()
        await self._opened.aclose()

    async def say(self, said: Announcement) -> None:
        """Announce this from now on, and at once if it is news."""
        if (discovery := self._talk.discovery) and discovery.said != said:
            await discovery.say(said)

    def repeat(self) -> None:
        """Announce it again if it is time. Whether somebody speaks now is asked and answered at once."""
        talk, now = self._talk, time.monotonic()
        urgent = talk.voice.owes or self.hearing.peers.ear.wants
        if talk.discovery and now >= self._announced + (ANSWER if urgent else INTERVAL):
            self._announced = now
            talk.discovery.repeat()
