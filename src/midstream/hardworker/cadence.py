"""When an application looks for messages: once a period, or whenever something arrives."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from midstream.config import HardworkerSection
from midstream.ebpf import irq_mitigation


@dataclass(frozen=True)
class Cadence:
    """period: seconds; 0: whenever something arrives. follow: seconds after the newest segment arrived at
    which a period begins, since the interface looks for packets then; 0: periods begin with the clock."""

    period: float
    follow: float = 0.0

    @classmethod
    def of(cls, read: Iterable[HardworkerSection], every: Iterable[HardworkerSection]) -> Self:
        """As config.toml says. read: of the streams that are read, as often as the fastest of them wants.
        every: of all streams; the interface looks for packets as often as the fastest of these wants."""
        period = min((each.period for each in read if each.period), default=0.0)
        looks = min(each.period if each.irq_mitigation and each.receiver == "ebpf" else 0.0 for each in every)
        return cls(period, irq_mitigation.follow(looks) if period and looks else 0.0)

    def left(self, newest: int) -> float:
        """Seconds until the next look. newest: when the newest segment arrived, CLOCK_MONOTONIC nanoseconds;
        0: none has."""
        begun = newest / 1e9 + self.follow if self.follow and newest else 0.0
        return self.period - (time.monotonic() - begun) % self.period
