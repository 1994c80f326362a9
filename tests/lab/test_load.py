"""The load between hosts: from each sensor its own connection, each message at its time."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from midstream.lab import Impairment, Lab, clear, impair
from midstream.lab.cpu import prefer
from midstream.lab.enter import NAMESPACES
from midstream.load import Connection, Incoming, Load, LoadSummary, Phase, Plan, Sink, SinkSummary
from midstream.load.mix import ROBOT, connections, counted, joint_plan, mixed_sendings

LAB = {"sensors": 4}
PORT = 4711


@pytest.fixture
def send(lab: Lab) -> Callable[[Plan], tuple[LoadSummary, SinkSummary]]:
    def run(plan: Plan) -> tuple[LoadSummary, SinkSummary]:
        address = str(lab.host("logger").ip)
        connections = [
            Connection(address, PORT, 104, f"{NAMESPACES}/{lab.sensors[number % 4].namespace}")
            for number in range(plan.sensors)
        ]
        with (
            Sink(address, [Incoming(PORT, plan.size)], launch=partial(lab.popen, "logger")) as sink,
            Load(plan, connections, launch=partial(lab.popen, "sensor")) as load,
        ):
            if not plan.is_flood:
                prefer(load.pid)
            load.start()
            while load.running:
                load.feed()
                time.sleep(0.02)
            return load.result(), sink.result()

    return run


@pytest.mark.slow
def test_rate_and_lateness(lab: Lab, send: Callable[[Plan], tuple[LoadSummary, SinkSummary]]) -> None:
    summary, arrived = send(Plan(sensors=16, rate=100, size=1024, seconds=1.5))
    assert (summary.messages, arrived.messages, arrived.wrong) == (2400, 2400, 0)
    assert summary.clean
    assert summary.rate == pytest.approx(1600, rel=0.01)
    # Whoever else runs on this core may keep the program from it for a while, but not on the whole.
    assert summary.late_p50_us < 500 and summary.late_max_us < 200_000
    peers = {connection["peer"] for connection in arrived.connections}
    assert peers == {str(host.ip) for host in lab.sensors}


@pytest.mark.slow
def test_all_at_once(send: Callable[[Plan], tuple[LoadSummary, SinkSummary]]) -> None:
    plan = Plan(sensors=8, rate=50, size=256, seconds=0.5, phase=Phase.ALIGNED, jitter=0.01, burst=5)
    summary, arrived = send(plan)
    assert (summary.messages, arrived.messages, arrived.wrong) == (200, 200, 0)


def test_a_bad_wire_delays_and_loses_nothing(
    lab: Lab, send: Callable[[Plan], tuple[LoadSummary, SinkSummary]]
) -> None:
    impair(lab, "sensors", Impairment(drop=0.02, seed=1))
    try:
        summary, arrived = send(Plan(sensors=4, rate=500, size=1024, seconds=0.5))
    finally:
        clear(lab)
    assert (summary.messages, arrived.messages, arrived.wrong) == (1000, 1000, 0)


@pytest.mark.parametrize("lab", [{"sensors": ROBOT.sensors, "stream": ROBOT.tables}], indirect=True)
def test_a_robot_straight_to_the_logger(lab: Lab) -> None:
    """All its streams at once, out of the sensors' hosts, each message verified."""
    sendings = mixed_sendings(ROBOT, 1.0)
    namespaces = [f"{NAMESPACES}/{host.namespace}" for host in lab.sensors]
    logger = str(lab.host("logger").ip)
    with (
        Sink(logger, ROBOT.incoming, launch=partial(lab.popen, "logger")) as sink,
        Load(
            joint_plan(sendings),
            connections(sendings, logger, 0, namespaces),
            launch=partial(lab.popen, "sensor"),
        ) as load,
    ):
        load.start()
        while load.running:
            load.feed()
            time.sleep(0.02)
        summary = load.result()
        deadline = time.monotonic() + 5
        while sink.received < summary.messages and time.monotonic() < deadline:
            time.sleep(0.02)
        arrived = sink.result()
    assert summary.clean and arrived.wrong == 0
    sent = counted(sendings, summary.counts)
    assert sent == {"imu": 1000, "joints": 500, "lidar": 10, "camera": 30, "gps": 10}
    assert arrived.messages == 1550
    assert len({connection["peer"] for connection in arrived.connections}) == ROBOT.sensors
    assert summary.late_p50_us < 2_000


@pytest.mark.parametrize(
    "lab",
    [{"sensors": ROBOT.sensors, "stream": ROBOT.tables, "sensor": {"target": "logger"}}],
    indirect=True,
)
def test_the_command_sends_a_mix(lab: Lab) -> None:
    """Each stream from its sensor's host; and those that are named alone."""
    load = [sys.executable, "-P", "-m", "midstream", "load", "--lab", "--seconds", "1", "--json"]
    with Sink(str(lab.host("logger").ip), ROBOT.incoming, launch=partial(lab.popen, "logger")) as sink:
        for arguments, sent in (
            (["--mix", "robot"], {"imu": 1000, "joints": 500, "lidar": 10, "camera": 30, "gps": 10}),
            (["--stream", "gps", "--stream", "camera"], {"gps": 10, "camera": 30}),
        ):
            done = subprocess.run(
                [*load, *arguments], capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["streams"] == sent
        arrived = sink.result()
    assert (arrived.messages, arrived.wrong) == (1590, 0)
    assert len(arrived.connections) == 7
