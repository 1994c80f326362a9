"""Runs of a benchmark as they are recorded, made up: for tests of what is done with them."""

from typing import Any

from midstream.load import JointPlan
from midstream_bench.receiver import Family, Job, Receiver, Setting
from midstream_bench.run import Observation, Run
from midstream_bench.scenario import Scenario

BUSY = Scenario(16, 100, 1024)
LOSSY = Scenario(16, 100, 1024, loss=0.001)
FULL = Scenario(4, 0, 1024)
SCENARIOS = (BUSY, LOSSY, FULL)


def command(_setting: Setting) -> list[str]:
    return ["program"]


def sender(_setting: Setting, _plan: JointPlan) -> list[str]:
    return ["sender"]


FLOOR = Receiver("floor", "the floor", Family.FLOOR, Job.FORWARD, "eBPF", None)
OURS = Receiver("ours", "midstream, NumPy", Family.MIDSTREAM, Job.RELAY, "Python", command)
HANDLER = Receiver("handler", "C, epoll", Family.HANDLER, Job.RELAY, "C", command)
ALONE = Receiver("alone", "C, epoll", Family.HANDLER, Job.RECEIVE, "C", command)
QUEUE = Receiver(
    "queue",
    "A <queue> & more",
    Family.MIDDLEWARE,
    Job.RECEIVE,
    "Python",
    command,
    sender=sender,
    partner=command,
    over_udp=True,
    note="the broker runs on the logger",
)
ABSENT = Receiver(
    "absent",
    "Absent",
    Family.MIDDLEWARE,
    Job.RECEIVE,
    "Python",
    command,
    sender=sender,
    missing=lambda: "not installed: absent",
)
RECEIVERS = (FLOOR, OURS, HANDLER, ALONE, QUEUE, ABSENT)


def run(
    receiver: Receiver, scenario: Scenario = BUSY, repetition: int = 1, cpu: float = 10.0, **more: Any
) -> Run:
    figures = {
        "cpu_us": cpu,
        "napi_us": 0.4 * cpu,
        "application_us": 0.6 * cpu,
        "busy_us": 1.5 * cpu,
        "busy": 1.5 * cpu * 1600 / 1e6,
        "interrupts": 0.5,
        "switches": 1.0,
        "rate": 1600.0,
        "p50_us": 5 * cpu,
        "p99_us": 9 * cpu,
        "p999_us": 20 * cpu,
        "rss_mib": 30.0,
    }
    return Run(receiver.name, scenario.name, repetition, **{"figures": figures, **more})


def observation(**changed: Any) -> Observation:
    """A run without fault: 16 × 100 Hz for 5 s."""
    received = {
        "messages": 10_560,
        "bytes": 10_813_440,
        "connections": 16,
        "errors": 0,
        "verified": 2_560,
        "window_messages": 8_000,
        "latency_ns": {"p50": 100_000, "p99": 200_000, "p999": 300_000, "max": 400_000},
        "wakeups": 4_000,
    }
    fields: dict[str, Any] = {
        "seconds": 5.0,
        "sent": 8_000,
        "due": 8_000,
        "total_sent": 10_560,
        "napi_ns": 40_000_000,
        "application_ns": 120_000_000,
        "busy_ns": 240_000_000,
        "interrupts": 16_000,
        "voluntary": 8_000,
        "involuntary": 800,
        "forks": 0,
        "foreign": {},
        "received": received | changed.pop("received", {}),
        "logged": 10_560,
        "logged_wrong": 0,
        "late_p99_us": 50.0,
        "memory": {"rss": 1 << 20, "pss": 1 << 20, "peak": 2 << 20},
    }
    return Observation(**fields | changed)
