"""A logger that is away for minutes, or takes nothing, or only seems to: for how long the application waits.

Afterwards the log has all, each message once.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.lab.chaos import power
from tests.lab.chaos.clock import Clock
from tests.lab.chaos.storm import fill, small_disk
from tests.lab.test_daemon import BARE, RATE, Flow, daemon_pid, set_port, state
from tests.lab.test_daemon import log as daemon_log
from tests.lab.test_daemon_failover import busy
from tests.lab.test_log_knows import LINE, again, assert_all_is_there, flowing, is_whole, pending
from tests.lab.triangle import LOGGER, wait_until

from midstream.daemon.way import SPOOL
from midstream.lab import Lab, daemons
from midstream.lab import up as lab_up

pytestmark = pytest.mark.slow

KEY = "../key"
SETTLED = 10.0  # seconds that nothing happens: what latency is compared with
PATIENCE = 900.0  # seconds for the backfill, on a machine that has other work


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """One for each test: a logger that ended in the one before had to show for longer that it works."""
    built = lab_up(run_dir=tmp_path / "lab", **BARE | LINE)
    daemons.start(built, key=KEY)
    yield built
    print(daemon_log(built, "hardworker"))  # shown if a test fails
    for name in ("hardworker", "logger", "sensor"):
        assert "Traceback" not in daemon_log(built, name), name


def minutes(short: int, long: int) -> pytest.MarkDecorator:
    """A short form, and the one that docs tell of."""
    return pytest.mark.parametrize("seconds", [short, pytest.param(long, marks=pytest.mark.timeout(3000))])


@minutes(5, 300)
def test_the_loggers_disk_is_full(lab: Lab, tmp_path: Path, seconds: int) -> None:
    with small_disk(tmp_path / "disk", "2g") as disk, flowing(lab, tmp_path, disk=disk) as flow:
        switches, began = Switches(lab), time.time_ns()
        make_room = fill(disk)
        time.sleep(seconds)
        print(f"full for {seconds} s: no message for {flow.longest_gap(began):.2f} s at most")
        make_room()
        wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER, 90)
        wait_until_sent(lab)
        gap = flow.longest_gap(began)
        print(f"no message for {gap:.2f} s at most; {switches.said()}")
        assert_each_is_there_once(lab, flow)
    assert gap < 3.5, "daemon.stall, and the second of data that the logger's kernel takes before"


@minutes(5, 600)
def test_the_logger_is_away(lab: Lab, tmp_path: Path, seconds: int) -> None:
    with flowing(lab, tmp_path) as flow:
        time.sleep(min(seconds, SETTLED))
        cut = time.time_ns()
        power.cut(lab, "logger")
        flow.ends.logger.process.wait()
        wait_until(lambda: state(lab, "hardworker")["destination"] == SPOOL, 10)
        time.sleep(1)
        away = time.time_ns()
        time.sleep(seconds)
        power.switch_on(lab, "logger")
        daemons.launch(lab, "logger", key=KEY)
        again(flow, tmp_path)
        wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER, 30)
        back, waiting = time.time_ns(), sum(each["messages"] for each in pending(lab))
        wait_until_sent(lab)
        sent = time.time_ns()
        took = (sent - back) / 1e9
        print(f"backfill: {waiting} messages in {took:.1f} s, {waiting / took:.0f} per second")
        phases = {"before": (0, cut), "switch": (cut, away), "away": (away, back), "backfill": (back, sent)}
        for name, phase in phases.items():
            print(f"{name}: {latency(flow, *phase)}")
        assert_each_is_there_once(lab, flow)
    assert waiting > seconds * RATE * 0.9


def wait_until_sent(lab: Lab) -> None:
    """Until nothing waits in the spool."""
    deadline = time.monotonic() + PATIENCE
    while waiting := pending(lab):
        assert time.monotonic() < deadline, waiting
        time.sleep(0.5)


@contextmanager
def stopped(lab: Lab, name: str) -> Iterator[None]:
    """A host's daemon stands still."""
    pid = daemon_pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def unplugged(lab: Lab, name: str) -> Iterator[None]:
    set_port(lab, name, "disabled")
    try:
        yield
    finally:
        set_port(lab, name, "forwarding")


@contextmanager
def restarted(lab: Lab, name: str) -> Iterator[None]:
    """As by an upgrade: its daemon ends, and another one starts."""
    os.kill(daemon_pid(name), signal.SIGTERM)
    wait_until(lambda: daemons.state(lab, name) is None, 10)
    daemons.start(lab, [name], key=KEY)
    yield


@contextmanager
def loaded(lab: Lab, name: str) -> Iterator[None]:
    """All hosts: these two have all cores."""
    with busy(lab, "hardworker"), busy(lab, "logger"):
        yield


# What is done to whom, and for how long.
DISTURBANCES: list[tuple[Callable[[Lab, str], AbstractContextManager[None]], str, float]] = [
    (stopped, "logger", 10),
    (stopped, "hardworker", 10),
    (loaded, "all", 20),
    (unplugged, "sensor", 5),
    (unplugged, "hardworker", 5),
    (restarted, "logger", 1),
    (restarted, "hardworker", 1),
]


def test_what_is_no_death_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    with flowing(lab, tmp_path) as flow, unchanged(flow) as check:
        for disturbed, host, seconds in DISTURBANCES:
            with disturbed(lab, host):
                time.sleep(seconds)
            check(f"{host} {disturbed.__name__} for {seconds} s")


STEPS = (3600, -3600, 10 * 365 * 86400, -10 * 365 * 86400, 1, 0)  # seconds from the right time


def test_a_clock_that_steps_changes_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both hosts at once. The application's own clock, by which this test measures, stays."""
    clock = Clock(tmp_path)
    with monkeypatch.context() as environment:
        for name, value in clock.environment.items():
            environment.setenv(name, value)
        for name in ("hardworker", "logger"):
            with restarted(lab, name):
                pass
    launcher = ["/usr/bin/env", *(f"{name}={value}" for name, value in clock.environment.items())]
    with flowing(lab, tmp_path, launcher=launcher) as flow, unchanged(flow) as check:
        for step in STEPS:
            clock.set(step)
            time.sleep(0.7)
        check("clocks that step")


@contextmanager
def unchanged(flow: Flow) -> Iterator[Callable[[str], None]]:
    """Gives a check that what happened until now has switched nothing. Afterwards the flow is at its end, and
    no connection was reset, nothing lost."""
    switches, since = Switches(flow.lab), [time.time_ns()]

    def check(what: str) -> None:
        flow.wait_for_fresh(10)
        time.sleep(2.5)  # daemon.silence and more
        print(f"{what}: no message for {flow.longest_gap(since[0]):.2f} s at most")
        assert switches.said() == [], what
        assert state(flow.lab, "hardworker")["spool"] == "off", what
        since[0] = time.time_ns()

    yield check
    assert_each_is_there_once(flow.lab, flow, reconnects=0)


class Switches:
    """What a hardworker's daemon has decided from now on."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._before = lab, len(daemon_log(lab, "hardworker"))

    def said(self) -> list[str]:
        lines = daemon_log(self._lab, "hardworker")[self._before :].splitlines()
        return [line for line in lines if " way " in line]


def latency(flow: Flow, begin: int, end: int) -> str:
    """From the sensor's sending to the application, of what was sent between two moments (ns since 1970)."""
    rows = flow.delivered()
    sent = np.ascontiguousarray(rows["message"]["payload"][:, 8:16]).view("<i8")[:, 0]
    some = (sent >= begin) & (sent < end)
    found = (rows["delivered"][some].astype(np.int64) - sent[some]) / 1e6
    figures = ", ".join(f"p{q:g} {np.percentile(found, q):.2f} ms" for q in (50, 99, 99.9))
    gap = np.diff(rows["delivered"][some]).max(initial=0) / 1e9
    return f"{len(found)} messages, {figures}, none for {gap:.2f} s at most"


def assert_each_is_there_once(lab: Lab, flow: Flow, *, reconnects: int | None = None) -> None:
    """At the end of the flow, in application and log; but for what a sensor repeats when it reconnects."""
    ended = flow.sensor.end()
    assert ended.code == 0, ended.err
    seen: set[int] = set()
    wait_until(lambda: is_whole(lab, flow.ends, seen), PATIENCE)
    summary = ended.object
    print(f"reconnects: {summary['reconnects']}, sent again: {summary['repeated']}, verify: {seen}")
    assert reconnects is None or summary["reconnects"] == reconnects
    flow.assert_nothing_lost(repeated=summary["repeated"])
    assert_all_is_there(flow)
    with closing(sqlite3.connect(f"file:{flow.ends.database}?mode=ro", uri=True)) as database:
        count, places = database.execute(
            "SELECT count(*), count(DISTINCT connection_id || ' ' || stream_offset) FROM messages"
        ).fetchone()
    assert count == places
    assert count - len(np.unique(flow.numbers())) <= summary["repeated"]
