"""What is wrong with a wire of the lab, and which wire is meant.

A leg leads from one host to another. A link names one or several legs:

sensor              everything that this host sends
sensor-hardworker   both ways between two hosts
sensor:hardworker   from the first to the second only
sensors             every sensor; alone or in place of a host in the forms above
all                 every leg
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from midstream.errors import ConfigError

ALL, SENSORS = "all", "sensors"

PROBABILITIES = ("drop", "duplicate", "reorder", "corrupt")
TIMES = ("delay", "hold")
_LONGEST = 10_000.0  # milliseconds


class LabLeg(NamedTuple):
    """The way from one host to another, by their names."""

    source: str
    destination: str


@dataclass(frozen=True)
class Impairment:
    """What happens to the TCP frames of a leg; the default is nothing.

    drop, duplicate, reorder, corrupt: probabilities, each drawn for each frame. A dropped frame suffers
    nothing else, the other faults combine. duplicate: a second, sound copy. corrupt: one byte of the TCP
    header or (half of the times, if there is any) of the payload is changed, and the checksum is not
    corrected. delay: of every frame, milliseconds. hold: how much longer a reordered frame takes,
    milliseconds. seed: which frames are hit; with the same seed and leg the n-th frame meets the same faults.

    Raises ConfigError for what is no probability, no time, or no seed (0 to 2^64 - 1).
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    hold: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a probability from 0 to 1")
        for name in TIMES:
            if not 0 <= getattr(self, name) <= _LONGEST:
                raise ConfigError(
                    f"{name} = {getattr(self, name)}: expected milliseconds from 0 to {_LONGEST:g}"
                )
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed = {self.seed}: expected an integer from 0 to 2^64 - 1")

    @property
    def is_harmless(self) -> bool:
        """Whether nothing happens to any frame."""
        return not any(getattr(self, name) for name in (*PROBABILITIES, "delay"))

    @property
    def needs_hold(self) -> bool:
        """Whether frames have to be kept for a while."""
        return self.delay > 0 or (self.reorder > 0 and self.hold > 0)

    def __str__(self) -> str:
        told = [f"{name}={getattr(self, name):g}" for name in PROBABILITIES if getattr(self, name)]
        told += [f"delay={self.delay:g}ms"] if self.delay else []
        told += [f"hold={self.hold:g}ms"] if self.reorder else []
        return " ".join([*told, f"seed={self.seed}"])


def parse_impairment(text: str) -> tuple[str, Impairment]:
    """Link and impairment of `drop=0.01,reorder=0.02,seed=7,link=sensor-hardworker`.

    The keys are those of `Impairment`, and link (default: all). Raises ConfigError.
    """
    values: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"impairment {text!r}: {item!r} is not of the form NAME=VALUE")
        if name in values:
            raise ConfigError(f"impairment {text!r}: {name} is given twice")
        values[name] = value.strip()
    link = values.pop("link", ALL)
    known = [field.name for field in fields(Impairment)]
    if unknown := sorted(values.keys() - set(known)):
        raise ConfigError(f"impairment {text!r}: no {unknown[0]!r}; there are {', '.join(known)} and link")
    seed = int(_number(text, "seed", values.pop("seed", "0"), int))
    return link, Impairment(
        **{name: _number(text, name, value, float) for name, value in values.items()}, seed=seed
    )


def find_legs(link: str, hosts: Sequence[str]) -> list[LabLeg]:
    """The legs that a link names, in the order of `hosts`. Raises ConfigError if it names none."""
    groups = {host: [host] for host in hosts}
    groups[SENSORS] = [host for host in hosts if host not in ("hardworker", "logger")]
    groups[ALL] = list(hosts)
    pairs: set[tuple[str, str]] = set()
    if link in groups:
        pairs = {(source, other) for source in groups[link] for other in hosts}
    else:
        for position, separator in enumerate(link):
            left, right = groups.get(link[:position]), groups.get(link[position + 1 :])
            if separator in ":-" and left and right:
                pairs = {(source, destination) for source in left for destination in right}
                pairs |= {(b, a) for a, b in pairs} if separator == "-" else set()
    legs = [LabLeg(a, b) for a in hosts for b in hosts if a != b and (a, b) in pairs]
    if not legs:
        raise ConfigError(
            f"no link {link!r}: expected all, HOST, HOST-HOST for both ways, or HOST:HOST for one way; "
            f"hosts: {', '.join(hosts)}, or sensors for all of them"
        )
    return legs


def _number(text: str, name: str, value: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(value)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        raise ConfigError(f"impairment {text!r}: {name} = {value!r}, expected {expected}") from None
