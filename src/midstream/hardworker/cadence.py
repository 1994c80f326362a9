"""When an application looks for messages: once a period, or whenever something arrives."""

import time
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
    def of(cls, settings: HardworkerSection) -> Self:
        """As config.toml says."""
        follows = settings.period and settings.irq_mitigation and settings.receiver == "ebpf"
        return cls(settings.period, irq_mitigation.follow(settings.period) if follows else 0.0)

    def left(self, newest: int) -> float:
        """Seconds until the next look. newest: when the newest segment arrived, CLOCK_MONOTONIC nanoseconds;
        0: none has."""
        begun = newest / 1e9 + self.follow if self.follow and newest else 0.0
        return self.period - (time.monotonic() - begun) % self.period
