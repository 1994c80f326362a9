"""Where the sensors' new connections go: the first logger of a list that takes them, else this host's spool.

Nothing here asks a clock or a kernel. Evidence holds all that is known of a logger; `fault` tells from it
whether the logger is a destination, and `choose` which one is taken. A logger is judged by the data first:
one to which a stream advances lives, whatever its daemon says. One whose daemon is silent is gone only if
sensors repeat themselves too, and go on doing so while questions that were asked later stay unanswered. So a
daemon that is stopped changes nothing, and neither does a cable that comes back: the answer comes with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midstream.ebpf.records import HERE

MISSED = 0.6  # seconds without an answer after which a daemon is silent: five answers were missed
SURE = 0.4  # seconds of repeating without progress that a lost packet does not explain: Linux waits 0.2
CONFIRM = 0.1  # seconds without progress that confirm a daemon that says that nobody listens
REPEATS = 2  # segments sent again that confirm a silence: of one sensor the second comes after 0.6 s
STEADY = 0.5  # seconds for which a logger must have served, and taken what came, before it is one again,
PATIENT = 60.0  # and at most so many, after it has failed again and again
UNWATCHED = "no key: the logger is not watched"


@dataclass(frozen=True, slots=True)
class Limits:
    """config.toml's daemon.silence and daemon.stall, in seconds."""

    silence: float = 2.0
    stall: float = 2.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a logger. All times are seconds of this daemon's own time (awake.py).

    watched: since its daemon was first asked. silent: since it answered last, or was first asked. answered:
    did it ever? serves: did it say that a logger listens? served: did it ever? waits: for so long the logger
    had taken nothing of what its kernel held, or let nobody in. steady: for so long all of that was well.
    failures: how often it was left since it last worked for a while.

    still: since a stream to it advanced, or a connection was answered. repeats: segments that sensors have
    sent again since, and connections that nobody has answered; probes: packets without data; repeating: since
    the first of all these.
    """

    watched: float = 0.0
    silent: float = 0.0
    answered: bool = True
    serves: bool = True
    served: bool = True
    waits: float = 0.0
    steady: float = 0.0
    failures: int = 0
    still: float = 0.0
    repeats: int = 0
    probes: int = 0
    repeating: float = 0.0

    @property
    def answers(self) -> bool:
        return self.answered and self.silent <= MISSED


@dataclass(frozen=True, slots=True)
class Choice:
    """reason: why the destination before is none, also where there is no other."""

    destination: int
    reason: str = ""


def fault(found: Evidence, limits: Limits) -> str:
    """Why the logger that is in use is no destination; "" if it is one."""
    heard = found.repeats + found.probes
    if found.answers:
        # One that has never listened boots: it may hold the data up for as long as one that takes nothing.
        boots = not found.served and found.watched < limits.stall
        if not found.serves and not boots and found.still >= CONFIRM:
            return "no logger listens on each stream's port"
        if heard and min(found.waits, found.still) >= limits.stall:
            return f"it has taken nothing for {found.waits:.1f} s"
        return ""
    if min(found.still, found.repeating) < SURE:
        return ""
    if found.repeats >= (REPEATS if found.answered else 1) or (
        heard and min(found.silent, found.still) >= limits.silence
    ):
        return f"its daemon has not answered for {found.silent:.1f} s, and sensors repeat themselves"
    return ""


def is_ready(found: Evidence) -> bool:
    """May new connections go there? The more often it has failed, the longer it has to show that it works."""
    wanted = min(STEADY * 2.0 ** max(0, found.failures - 1), PATIENT)
    return found.answers and found.serves and found.steady >= wanted


def choose(
    current: int, order: Sequence[int], evidence: Mapping[int, Evidence], limits: Limits, *, spool: bool
) -> Choice:
    """The destination that is to be. order: the loggers, the preferred one first. spool: is there one?

    A logger that works is kept, also if a preferred one comes back: a change costs connections.
    """
    reason = "" if current == HERE else fault(evidence[current], limits)
    if current != HERE and not reason:
        return Choice(current)
    for destination in order:
        if destination != current and is_ready(evidence[destination]):
            return Choice(destination, reason)
    if spool:
        return Choice(HERE, reason)
    return Choice(order[0] if current == HERE else current, reason)
