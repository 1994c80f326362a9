"""What is measured: how many sensors send how much how often, over which wires."""

from dataclasses import dataclass, replace

from midstream.errors import ConfigError
from midstream.load import Plan

LOSS = 0.001  # of the frames on every wire, in the second form of each scenario


@dataclass(frozen=True)
class Scenario:
    """`rate` messages a second of `size` bytes from each sensor; 0: as many as TCP takes (saturation).

    loss: the share of the TCP frames that each wire loses.
    """

    sensors: int
    rate: float
    size: int
    loss: float = 0.0

    @property
    def name(self) -> str:
        """Short, and without spaces: "16x100x1024", "16x100x1024+loss", "4xmaxx1024"."""
        rate = f"{self.rate:g}" if self.rate else "max"
        return f"{self.sensors}x{rate}x{self.size}" + ("+loss" if self.loss else "")

    @property
    def title(self) -> str:
        """For a reader."""
        rate = f"{self.rate:g} Hz" if self.rate else "as fast as possible"
        size = f"{self.size // 1024} KiB" if self.size % 1024 == 0 else f"{self.size} B"
        loss = f", {self.loss:.1%} loss" if self.loss else ""
        return f"{self.sensors} × {rate} × {size}{loss}"

    @property
    def is_saturation(self) -> bool:
        return self.rate == 0

    def plan(self, seconds: float) -> Plan:
        """The load."""
        return Plan(self.sensors, self.rate, self.size, seconds)


_CLEAN = (
    Scenario(16, 100, 1024),
    Scenario(1, 1000, 1024),
    Scenario(64, 50, 256),
    Scenario(1, 100, 64),
    Scenario(4, 1000, 1024),
    Scenario(4, 0, 1024),
)

SCENARIOS = (*_CLEAN, *(replace(scenario, loss=LOSS) for scenario in _CLEAN))
QUICK = _CLEAN[:1]


def find(names: list[str]) -> list[Scenario]:
    """The scenarios of these names. Raises ConfigError."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no scenario {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in names]
