"""Whom this host has heard of: bounded, the newest word counts, and none that is not said now."""

from collections.abc import Callable
from dataclasses import dataclass

from midstream.config import Role
from midstream.daemon.announcement import Announcement, Word
from midstream.daemon.freshness import StampJudge, boottime

MAX_PEERS = (
    4200  # all sensors that const.toml takes and some loggers: a holder of the key that errs is bounded
)
LIFETIME = 12.0  # seconds without a word after which a host counts as gone: more than two announcements


@dataclass
class Peer:
    """The newest word of a host, and when it came, by this host's monotonic clock."""

    said: Announcement
    heard: float


class Peers:
    """The other hosts, by address. clock: seconds by which another host's clock may differ from ours before
    it is named in `skewed`; nothing else depends on it."""

    def __init__(self, clock: float, timer: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._peers: dict[object, Peer] = {}
        self.ear = StampJudge(MAX_PEERS, timer)
        self.skewed: dict[object, str] = {}

    def hear(self, word: Word, *, wall: float, now: float) -> str:
        """Take an authenticated word. Returns "new" (the first of a daemon since it started), "changed" or
        "same", or why it was not taken: "repeated", "old", "unproven" (see StampJudge.judge) or "full"."""
        said, known = word.said, self._peers.get(word.said.ip)
        if said.leaving:
            if not self.ear.ends(said.ip, word.stamp):
                return "repeated"
            self._forget(said)
            return "changed" if known else "same"
        if known is None and len(self._peers) >= MAX_PEERS:
            return "full"
        verdict = self.ear.judge(said.ip, word.stamp)
        if verdict not in ("first", "fresh"):
            return verdict
        self._look_at_clock(said, said.time - wall)
        self._peers[said.ip] = Peer(said, now)
        if known is None or verdict == "first":
            return "new"
        told = {"time"}
        return "same" if said.model_dump(exclude=told) == known.said.model_dump(exclude=told) else "changed"

    def expire(self, now: float) -> list[Announcement]:
        """Forget who has not been heard for LIFETIME."""
        gone = [peer.said for peer in self._peers.values() if now - peer.heard > LIFETIME]
        for said in gone:
            self._forget(said)
        return gone

    def _forget(self, said: Announcement) -> None:
        self._peers.pop(said.ip, None)
        self.skewed.pop(said.ip, None)
        self.ear.forget(said.ip)

    def _look_at_clock(self, said: Announcement, ahead: float) -> None:
        self.skewed.pop(said.ip, None)
        if abs(ahead) > self._clock:
            self.skewed[said.ip] = (
                f"the clock of {said} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this "
                f"host's, more than daemon.clock = {self._clock:g}; set it (NTP or PTP on all hosts)"
            )

    def of(self, role: Role) -> list[Announcement]:
        """The hosts of a role, by address."""
        found = [peer.said for peer in self._peers.values() if peer.said.role == role]
        return sorted(found, key=lambda said: said.ip)

    def all(self) -> list[Peer]:
        return list(self._peers.values())
