"""Whom this host has heard of: bounded, the newest word counts, and none of another time is heard."""

from dataclasses import dataclass

from midstream.config import Role
from midstream.daemon.announcement import Announcement

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
    """The other hosts, by address. clock: seconds that another host's clock may differ from ours."""

    def __init__(self, clock: float) -> None:
        self._clock = clock
        self._peers: dict[object, Peer] = {}
        self.skewed: dict[object, str] = {}

    def hear(self, said: Announcement, *, wall: float, now: float) -> str:
        """Take an authenticated word. Returns "new" (the first of a daemon since it started), "changed" or
        "same", or why it was not taken: "old" (a repetition of an earlier one), "clock" or "full"."""
        ahead = said.time - wall
        known = self._peers.get(said.ip)
        # A repeated word is old before it is late: what somebody recorded must not read as a wrong clock.
        if known and (said.started, said.time) <= (known.said.started, known.said.time):
            return "old"
        if abs(ahead) > self._clock:
            self.skewed[said.ip] = (
                f"the clock of {said} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this "
                f"host's, more than daemon.clock = {self._clock:g}; set it (NTP or PTP on all hosts)"
            )
            return "clock"
        self.skewed.pop(said.ip, None)
        if said.leaving:
            self._peers.pop(said.ip, None)
            return "changed" if known else "same"
        if known is None and len(self._peers) >= MAX_PEERS:
            return "full"
        self._peers[said.ip] = Peer(said, now)
        if known is None or said.started != known.said.started:
            return "new"
        told = {"time"}
        return "same" if said.model_dump(exclude=told) == known.said.model_dump(exclude=told) else "changed"

    def expire(self, now: float) -> list[Announcement]:
        """Forget who has not been heard for LIFETIME."""
        gone = [peer.said for peer in self._peers.values() if now - peer.heard > LIFETIME]
        for said in gone:
            del self._peers[said.ip]
        return gone

    def of(self, role: Role) -> list[Announcement]:
        """The hosts of a role, by address."""
        found = [peer.said for peer in self._peers.values() if peer.said.role == role]
        return sorted(found, key=lambda said: said.ip)

    def all(self) -> list[Peer]:
        return list(self._peers.values())
