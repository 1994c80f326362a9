"""The time that has really passed, as far as it is known: what clocks say is not believed.

It is counted by the kernel's clock that nobody can set (CLOCK_BOOTTIME, which goes on while a host sleeps),
and written into the database. A host that starts again begins anew to count, since nothing that cannot be
set tells how long it was off. So what is counted is never more than what has passed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

STEP = 1.0  # seconds by which the clock must differ from what passed for it to be told


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class Clocks:
    """boot: which run of the kernel this is. running_ns: since it began. wall_ns: what the clock says."""

    boot: Callable[[], str] = _boot
    running_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    wall_ns: Callable[[], int] = time.time_ns


KERNEL = Clocks()


@dataclass(slots=True)
class Passed:
    """counted_ns: at the moment `running_ns` of the run `boot`, when the clock said `wall_ns`."""

    clocks: Clocks
    boot: str
    running_ns: int
    counted_ns: int
    wall_ns: int
    skipped_ns: int = field(default=0, init=False)  # by which the clock has gone further than what is counted

    @classmethod
    def begin(cls, clocks: Clocks) -> "Passed":
        return cls(clocks, clocks.boot(), clocks.running_ns(), 0, clocks.wall_ns())

    def now(self) -> int:
        """Nanoseconds counted until now."""
        boot, running, wall = self.clocks.boot(), self.clocks.running_ns(), self.clocks.wall_ns()
        more = max(0, running - self.running_ns) if boot == self.boot else 0
        self.skipped_ns += wall - self.wall_ns - more
        self.boot, self.running_ns, self.wall_ns = boot, running, wall
        self.counted_ns += more
        return self.counted_ns

    def told(self) -> str:
        """What a person should know of the clock since this was asked last; "" if it went right."""
        skipped, self.skipped_ns = self.skipped_ns, 0
        if abs(skipped) < STEP * 1e9:
            return ""
        return (
            f"the clock went {_duration(abs(skipped) / 1e9)} {'further' if skipped > 0 else 'less far'} than "
            "the time that was counted: it was set, or this host was off. Messages are removed by what was "
            "counted, so none goes too early"
        )


def _duration(seconds: float) -> str:
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.1f} seconds"
