"""Every receiver of the benchmark: each message delivered once, verified, and relayed bit for bit."""

import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from tests.lab.triangle import HARDWORKER, LOGGER, PORT, TOS, variant, wait_until

from midstream.lab import Lab
from midstream.load import Connection, Incoming, Load, Plan, Sink
from midstream.load.load import await_ready, end, finish
from midstream_bench.receiver import Receiver, Setting
from midstream_bench.receivers import RECEIVERS

QUICK = ("midstream-deferred-numpy", "c-epoll-relay")
SENSORS, RATE, SIZE = 2, 100.0, 1024
LAB = {"sensors": SENSORS, "data": {"size": SIZE}}
SECONDS = 0.9
WINDOW = (0.4, 0.3)  # seconds of load before it, and its length


@pytest.fixture(autouse=True)
def configured(lab: Lab) -> Iterator[None]:
    """The lab's config.toml is as before afterwards."""
    before = lab.config.read_text()
    yield
    lab.config.write_text(before)


@pytest.mark.parametrize(
    "receiver",
    [
        pytest.param(one, id=one.name, marks=[] if one.name in QUICK else [pytest.mark.slow])
        for one in RECEIVERS
    ],
)
def test_delivers_and_relays_everything(lab: Lab, receiver: Receiver) -> None:
    assert not receiver.missing()
    received, logged, counts = run(lab, receiver)
    total = sum(counts)
    assert total == SENSORS * round(RATE * SECONDS)
    if received:
        assert received["messages"] == total
        assert received["bytes"] == total * SIZE
        assert received["connections"] == SENSORS
        assert received["errors"] == 0
        assert 0 < received["verified"] < total
        assert 0 < received["window_messages"] < total - received["verified"] + 1
        latency = received["latency_ns"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"] <= latency["max"] < 10**9
        assert sum(count for _, count in latency["histogram"]) == received["window_messages"]
        assert received["cpu_ns"] >= 0
        if receiver.name.startswith("midstream-deferred"):
            # Half of one on an idle machine.
            assert latency["p50"] < 2 * receiver.tables["hardworker"]["period"] * 1e9
    if receiver.is_logged:
        assert logged.messages == total
        assert logged.wrong == 0
        assert all(connection["clean"] for connection in logged.connections)


def run(lab: Lab, receiver: Receiver) -> tuple[dict[str, Any], Any, tuple[int, ...]]:
    """What the receiver says, what the logger got, and how many messages each sensor sent."""
    variant(lab, "config.toml", **receiver.tables)
    undo = receiver.attach(lab) if receiver.attach else lambda: None
    process: subprocess.Popen[Any] | None = None
    setting = Setting(lab.config, lab.const, SENSORS, [Incoming(PORT, SIZE)], HARDWORKER, LOGGER)
    try:
        if receiver.command:
            process = lab.popen(
                "hardworker",
                receiver.command(setting),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            await_ready(process, receiver.name, 30)
        connections = [
            Connection(HARDWORKER, PORT, TOS, f"/run/netns/{host.namespace}") for host in lab.sensors
        ]
        plan = Plan(sensors=SENSORS, rate=RATE, size=SIZE, seconds=SECONDS)
        launch = partial(lab.popen, "logger")
        logger = Sink(LOGGER, [Incoming(PORT, SIZE)], joined=receiver.joined, launch=launch)
        with logger as sink, Load(plan, connections) as load:
            load.start()
            before, window = WINDOW
            for pause, number in ((before, signal.SIGUSR1), (window, signal.SIGUSR2)):
                time.sleep(pause)
                if process:
                    process.send_signal(number)
            wait_until(lambda: not load.running)
            counts = load.result().counts
            if receiver.is_logged:
                wait_until(lambda: sink.received == sum(counts))
            time.sleep(0.2)  # for the last of what was received, and its end
            received = {}
            if process:
                process.terminate()
                received = finish(process, receiver.name, 30)
            return received, sink.result(), counts
    finally:
        if process:
            end(process)
        undo()
