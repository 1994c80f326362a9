"""Is an authentic message said now? What was recorded, and is repeated, must make nobody believe anything.

Every message bears a stamp: in which run of the sender it was said, the how-manieth it is, how long that run
has lasted, and answers to challenges. A challenge is a random number that a receiver says. Who answers it
speaks after it was said; so a run is believed when it answers, and from then on by its own clock, as long as
its messages come in order and no later than its first ones did. No clock has to be right.
"""

import re
import secrets
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LATE = 2.0  # seconds that a message may have been on its way longer than those before it
ANSWERED = 3.0  # seconds within which a challenge has to be answered
ASK = 1.0  # seconds between two challenges, unless somebody else is to answer
ANSWERS = 256  # challenges that one message answers: as many as fit into one, with what else it says
WAITING = 256  # runs of which it is remembered that they have not answered
OVERLAP = 64  # numbers behind the newest whose repetition is the network's

Verdict = Literal["first", "fresh", "repeated", "old", "unproven"]
CHALLENGE = "[0-9a-f]{16}"
Challenge = Annotated[str, Field(pattern=f"^{CHALLENGE}$")]


def boottime() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Stamp(BaseModel):
    """run: at random. number: of the message in it. seconds: since the run began. asks: a challenge."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    run: Challenge
    number: int = Field(ge=0)
    seconds: float = Field(ge=0)
    asks: Challenge | None = None
    answers: tuple[Challenge, ...] = Field(default=(), max_length=ANSWERS)


class Voice:
    """Makes the stamps of one run."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self.run, self._began, self._number = secrets.token_hex(8), clock(), 0
        self._owed: dict[str, None] = {}

    @property
    def owes(self) -> bool:
        """Does somebody wait for an answer?"""
        return bool(self._owed)

    def answer(self, challenge: str) -> None:
        """The next stamp is to answer this."""
        if len(self._owed) < ANSWERS and re.fullmatch(CHALLENGE, challenge):
            self._owed[challenge] = None

    def stamp(self, asks: str | None = None) -> Stamp:
        self._number += 1
        answers = tuple(self._owed)
        self._owed.clear()
        seconds = self._clock() - self._began
        return Stamp(run=self.run, number=self._number, seconds=seconds, asks=asks, answers=answers)


@dataclass(slots=True)
class _Run:
    """since: when it was first believed. offset: our clock less its own, of the quickest message."""

    name: str
    since: float
    number: int
    offset: float


class StampJudge:
    """Judges the stamps of others, of whom it knows at most `most`."""

    def __init__(self, most: int, clock: Callable[[], float] = boottime) -> None:
        self._most, self._clock = most, clock
        self._known: dict[Hashable, _Run] = {}
        self._asked: dict[str, float] = {}  # challenges, and when each was first said
        self._said = self._changed = float("-inf")  # when one was last said, and somebody last believed
        self._waiting: dict[tuple[Hashable, str], float] = {}  # runs that have not answered, and since when
        self._wants = True

    @property
    def wants(self) -> bool:
        """Should a challenge be said soon?"""
        return self._wants or (bool(self._waiting) and self._clock() - self._said > ASK)

    def challenge(self) -> str:
        """One that counts from now on."""
        moment = self._clock()
        self._wants, self._said = False, moment
        self._asked = {one: said for one, said in self._asked.items() if moment - said <= ANSWERED}
        newest = max(self._asked.values(), default=float("-inf"))
        if moment - newest > ASK or newest <= self._changed:
            self._asked[secrets.token_hex(8)] = moment
        return next(reversed(self._asked))

    def judge(self, sender: Hashable, stamp: Stamp) -> Verdict:
        """first: it is said now, by a run that was not believed before. fresh: now. unproven: it may be, once
        its run has answered a challenge. repeated: by the network, most likely. old: by somebody."""
        moment = self._clock()
        known = self._known.get(sender)
        if known is None or known.name != stamp.run:
            if not self._is_answered(stamp.answers, known.since if known else float("-inf"), moment):
                return self._wait(sender, stamp.run, moment)
            self._make_room(sender)
            self._known[sender] = _Run(stamp.run, moment, stamp.number, moment - stamp.seconds)
            self._changed = moment
            self._waiting.pop((sender, stamp.run), None)
            return "first"
        if stamp.number <= known.number:
            return "repeated" if stamp.number > known.number - OVERLAP else "old"
        late = moment - stamp.seconds - known.offset
        if late > LATE:
            if not self._is_answered(stamp.answers, float("-inf"), moment):
                return self._wait(sender, stamp.run, moment)
            known.offset += late  # its clock is slower than ours, or stood still
            self._waiting.pop((sender, stamp.run), None)
        known.number = stamp.number
        known.offset += min(moment - stamp.seconds - known.offset, 0.0)
        return "fresh"

    def ends(self, sender: Hashable, stamp: Stamp) -> bool:
        """Is this of the run that is believed, and new? If it says that the run ends, that stays true."""
        known = self._known.get(sender)
        return known is not None and known.name == stamp.run and stamp.number > known.number

    def forget(self, sender: Hashable) -> None:
        """The sender, and the challenges: nothing that was said until now makes anybody believed."""
        self._known.pop(sender, None)
        self._asked.clear()

    def unanswered(self) -> int:
        """How many runs have not answered in time since this was asked last: somebody repeats them."""
        moment = self._clock()
        late = [key for key, since in self._waiting.items() if moment - since > ANSWERED]
        for key in late:
            del self._waiting[key]
        return len(late)

    def _is_answered(self, answers: Sequence[str], since: float, moment: float) -> bool:
        said = [self._asked[one] for one in answers if one in self._asked]
        return any(since < one and moment - one <= ANSWERED for one in said)

    def _wait(self, sender: Hashable, run: str, moment: float) -> Verdict:
        if (sender, run) not in self._waiting and len(self._waiting) < WAITING:
            self._waiting[sender, run] = moment
            self._wants = True
        return "unproven"

    def _make_room(self, sender: Hashable) -> None:
        if sender not in self._known and len(self._known) >= self._most:
            self.forget(min(self._known, key=lambda one: self._known[one].since))
