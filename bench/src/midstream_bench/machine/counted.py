"""What a receiver's window in the virtual hardworker gave: a record that is kept as it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from midstream.errors import ConfigError

KEPT_UP = 0.97
"""The share of its time that the guest's clock has to have gone; with less, too many came together."""
BUSY = 0.97
"""The share of its time from which on a guest is busy without a pause."""


@dataclass(frozen=True)
class Counted:
    """One receiver's window, in the guest.

    instructions: a message, without background. seconds: by the guest's clock; asked: what they should have
    been. busy: the share of them in which instructions were executed. slow: how many times slower than this
    machine's clock. problems: why this is not a figure. received: what the receiver said.
    """

    receiver: str
    instructions: float = 0.0
    messages: int = 0
    due: int = 0
    seconds: float = 0.0
    asked: float = 0.0
    busy: float = 0.0
    slow: int = 0
    interrupts: float = 0.0
    softirqs: float = 0.0
    switches: float = 0.0
    problems: tuple[str, ...] = ()
    received: Mapping[str, Any] | None = None

    @property
    def kept_up(self) -> bool:
        """Whether the guest's clock went as fast as it should, and the guest was idle now and then."""
        return self.seconds >= KEPT_UP * self.asked and self.busy < BUSY

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The window of a record that `as_json` made. Raises KeyError, TypeError."""
        return cls(**{**record, "problems": tuple(record["problems"])})

    def __str__(self) -> str:
        told = (
            f"{self.instructions / 1e3:8.2f} k instructions, {self.messages} of {self.due} messages in "
            f"{self.seconds:.2f} of {self.asked:.2f} s, {self.slow} times slower, {self.busy:.0%} busy, "
            f"{self.interrupts:.2f} interrupts and {self.switches:.2f} switches a message"
        )
        problems = "; ".join(self.problems)
        return f"{told}; {problems}" if self.due and problems else problems or told


def read(path: Path) -> dict[str, dict[str, Counted]]:
    """What a file holds, by scenario and receiver; nothing if there is none. Raises ConfigError."""
    try:
        found = json.loads(path.read_text())
        return {
            scenario: {receiver: Counted.from_json(record) for receiver, record in row.items()}
            for scenario, row in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected what `midstream bench --machine` counted ({error!r}); "
            "remove the file, or name another folder with --output"
        ) from error


def write(path: Path, found: Mapping[str, Mapping[str, Counted]]) -> None:
    """Into the file, a line for each window, as a whole or not at all. Raises ConfigError."""
    records = {
        scenario: _object({receiver: json.dumps(one.as_json()) for receiver, one in row.items()})
        for scenario, row in found.items()
        if row
    }
    new = path.with_suffix(".new")
    try:
        new.write_text(_object(records) + "\n")
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name another folder with --output") from error


def _object(members: Mapping[str, str]) -> str:
    """Of what is JSON already, each member on a line of its own."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "\n}"
