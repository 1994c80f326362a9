"""What is measured: how many sensors send how much how often, over which wires."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from midstream.config import DATA
from midstream.errors import ConfigError
from midstream.load import Incoming, Plan
from midstream.load.mix import MIXES, Mix, Sending, mixed_sendings

LOSS = 0.001  # of the frames on every wire, in the second form of each scenario


@dataclass(frozen=True)
class Scenario:
    """`rate` messages a second of `size` bytes from each sensor; 0: as many as TCP takes (saturation).

    loss: the share of the TCP frames that each wire loses. mix: the name of a mix of streams, each with a
    connection; sensors is then how many those are, rate what each sends on average, and size that of the
    longest message.
    """

    sensors: int
    rate: float
    size: int
    loss: float = 0.0
    mix: str = ""

    @classmethod
    def of(cls, mix: Mix) -> Self:
        """All streams of a mix at once."""
        rates = [stream.section.freq for stream in mix.streams]
        longest = max(each.size for each in mix.incoming)
        return cls(len(rates), sum(rates) / len(rates), longest, mix=mix.name)

    @property
    def name(self) -> str:
        """Short, and without spaces: "16x100x1024", "16x100x1024+loss", "4xmaxx1024", "robot"."""
        rate = f"{self.rate:g}" if self.rate else "max"
        return (self.mix or f"{self.sensors}x{rate}x{self.size}") + ("+loss" if self.loss else "")

    @property
    def title(self) -> str:
        """For a reader."""
        loss = f", {self.loss:.1%} loss" if self.loss else ""
        if self.mix:
            return f"{self.mix}: {MIXES[self.mix].title}{loss}"
        rate = f"{self.rate:g} Hz" if self.rate else "as fast as possible"
        size = f"{self.size // 1024} KiB" if self.size % 1024 == 0 else f"{self.size} B"
        return f"{self.sensors} × {rate} × {size}{loss}"

    @property
    def is_saturation(self) -> bool:
        return self.rate == 0

    @property
    def hosts(self) -> int:
        """Sensors' hosts."""
        return MIXES[self.mix].sensors if self.mix else self.sensors

    @property
    def tables(self) -> Mapping[str, Any]:
        """What config.toml says of the messages. All receivers look as often at each stream."""
        if not self.mix:
            return {"data": {"size": self.size, "freq": self.rate}}
        return {"stream": [_without_period(table) for table in MIXES[self.mix].tables]}

    def incoming(self, port: int) -> list[Incoming]:
        """What comes to the hardworker's ports; to `port` where no mix says otherwise."""
        return MIXES[self.mix].incoming if self.mix else [Incoming(port, self.size)]

    def sendings(self, seconds: float, port: int, *, slow: int = 1) -> list[Sending]:
        """The load, at rates that are `slow` times lower."""
        if self.mix:
            return mixed_sendings(MIXES[self.mix], seconds, slow=slow)
        return [Sending(DATA, port, Plan(self.sensors, self.rate / slow, self.size, seconds))]


def _without_period(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "period"}


_CLEAN = (
    Scenario(16, 100, 1024),
    Scenario(1, 1000, 1024),
    Scenario(64, 50, 256),
    Scenario(1, 100, 64),
    Scenario(4, 1000, 1024),
    Scenario(4, 0, 1024),
    *(Scenario.of(mix) for mix in MIXES.values()),
)

SCENARIOS = (*_CLEAN, *(replace(scenario, loss=LOSS) for scenario in _CLEAN))
QUICK = _CLEAN[:1]


_NAME = re.compile(r"([1-9][0-9]*)x([0-9]+(?:[.][0-9]+)?|max)x([1-9][0-9]*)([+]loss)?")


def find(names: Iterable[str]) -> list[Scenario]:
    """The scenarios of these names: the usual ones, or others by their numbers. Raises ConfigError."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    return [known.get(name) or _other(name, known) for name in names]


def _other(name: str, known: Iterable[str]) -> Scenario:
    if not (parts := _NAME.fullmatch(name)):
        raise ConfigError(
            f"no scenario {name!r}; there are: {', '.join(known)}, and any other SENSORSxRATExSIZE"
        )
    rate = 0.0 if parts[2] == "max" else float(parts[2])
    return Scenario(int(parts[1]), rate, int(parts[3]), LOSS if parts[4] else 0.0)
