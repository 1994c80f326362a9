"""What one run gave: a record that is kept as it is, and the figures that tables show."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from midstream_bench.receiver import Receiver
from midstream_bench.scenario import Scenario

TOLERANCE = 0.01  # of the planned rate that may be missed
LAG = 0.05  # of a window's messages that may be delivered after it
FOREIGN = 0.01  # share of the window that other processes may take of the hardworker's core
FORKS = 20  # processes that the machine may start in a window

FIGURES = {
    "cpu_us": "CPU time of NAPI thread and application, µs a message",
    "napi_us": "of that the NAPI thread",
    "application_us": "of that the application",
    "busy_us": "time in which the hardworker's core was not idle, µs a message",
    "busy": "the same as a share of the time",
    "interrupts": "interrupts on the core, a message",
    "switches": "context switches of the application and the NAPI thread, a message",
    "involuntary": "of those the involuntary ones",
    "wakeups": "returns of the application's wait, a message",
    "rss_mib": "most resident memory of the application, MiB",
    "p50_us": "delivery latency, median, µs",
    "p99_us": "99 % of the messages, µs",
    "p999_us": "99.9 %, µs",
    "max_us": "the slowest, µs",
    "rate": "messages a second, of all sensors",
    "late_p99_us": "how late 99 % of the messages were sent at most, µs",
}
"""Every figure and what it means."""


@dataclass(frozen=True)
class Run:
    """`problems`: why the figures do not count; `disturbed`: what else ran, so that they are doubtful.

    raw: what load, receiver, logger and kernel said, as it was.
    """

    receiver: str
    scenario: str
    repetition: int
    figures: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    disturbed: tuple[str, ...] = ()
    attempt: int = 0
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether its figures are shown."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The run of a record that `as_json` made."""
        tuples = {name: tuple(record[name]) for name in ("problems", "disturbed")}
        return cls(**{**record, **tuples})


@dataclass(frozen=True)
class Observation:
    """What was seen during a run, before it is judged. Times in nanoseconds.

    sent, due: messages that were sent in the window, and that should have been (0: no plan). received: what
    the receiver said; None for the floor, which has no program. logged: messages that the logger has, and how
    many of them are wrong.
    """

    seconds: float
    sent: int
    due: int
    total_sent: int
    napi_ns: int
    application_ns: int
    busy_ns: int
    interrupts: int
    voluntary: int
    involuntary: int
    forks: int
    foreign: Mapping[str, int]
    received: Mapping[str, Any] | None
    logged: int
    logged_wrong: int
    late_p99_us: float
    memory: Mapping[str, int]


def judge(receiver: Receiver, scenario: Scenario, repetition: int, seen: Observation) -> Run:
    """Figures, and whether they count: nothing lost or wrong, the rate kept, nobody else on the core."""
    return Run(
        receiver=receiver.name,
        scenario=scenario.name,
        repetition=repetition,
        figures=_figures(seen),
        problems=tuple(_problems(receiver, scenario, seen)),
        disturbed=tuple(_disturbances(seen)),
        raw=asdict(seen),
    )


def _figures(seen: Observation) -> dict[str, float]:
    received = seen.received or {}
    messages = received.get("window_messages") or seen.sent
    if not messages:
        return {}
    figures = {
        "cpu_us": (seen.napi_ns + seen.application_ns) / messages / 1e3,
        "napi_us": seen.napi_ns / messages / 1e3,
        "application_us": seen.application_ns / messages / 1e3,
        "busy_us": seen.busy_ns / messages / 1e3,
        "busy": seen.busy_ns / (seen.seconds * 1e9),
        "interrupts": seen.interrupts / messages,
        "switches": (seen.voluntary + seen.involuntary) / messages,
        "involuntary": seen.involuntary / messages,
        "rate": messages / seen.seconds,
        "late_p99_us": seen.late_p99_us,
    }
    if "wakeups" in received:
        figures["wakeups"] = received["wakeups"] / messages
    if "peak" in seen.memory:
        figures["rss_mib"] = seen.memory["peak"] / 2**20
    for name, value in (received.get("latency_ns") or {}).items():
        if f"{name}_us" in FIGURES:
            figures[f"{name}_us"] = value / 1e3
    return {name: round(value, 4) for name, value in figures.items()}


def _problems(receiver: Receiver, scenario: Scenario, seen: Observation) -> list[str]:
    problems = []
    if seen.due and abs(seen.sent - seen.due) > max(2 * scenario.sensors, TOLERANCE * seen.due):
        problems.append(f"missed its rate: {seen.sent} messages sent in the window, {seen.due} due")
    if seen.received is not None:
        if (lost := seen.total_sent - int(seen.received["messages"])) != 0:
            problems.append(f"{lost} of {seen.total_sent} messages missing at the hardworker")
        if wrong := seen.received["errors"]:
            problems.append(f"{wrong} messages wrong at the hardworker")
        window = seen.received.get("window_messages", 0)
        if window < (1 - LAG) * seen.sent:
            problems.append(
                f"did not keep up: {window} of {seen.sent} messages of the window were delivered in it"
            )
        if not seen.received["verified"]:
            problems.append("no message was verified")
    if receiver.is_logged and (lost := seen.total_sent - seen.logged) != 0:
        problems.append(f"{lost} of {seen.total_sent} messages missing at the logger")
    if seen.logged_wrong:
        problems.append(f"{seen.logged_wrong} messages wrong at the logger")
    return problems


def _disturbances(seen: Observation) -> list[str]:
    found = []
    share = sum(seen.foreign.values()) / (seen.seconds * 1e9)
    if share > FOREIGN:
        names = sorted(seen.foreign, key=lambda name: -seen.foreign[name])[:3]
        found.append(f"{share:.1%} of the hardworker's core went to {', '.join(names)}")
    if seen.forks > FORKS:
        found.append(f"the machine started {seen.forks} processes")
    return found
