"""The logger's worker is killed again and again while a sensor sends through the hardworker."""

import json
import os
import signal
import time
from pathlib import Path
from random import Random

import pytest
from tests.lab.ends import running
from tests.lab.mortal import Before
from tests.lab.triangle import Program, command, started, wait_until

from midstream.lab import Lab

LAB = {"sensors": 1}
RATE = 2000  # messages a second


@pytest.mark.parametrize(
    ("kills", "messages"), [(3, 2000), pytest.param(100, 100_000, marks=pytest.mark.slow)]
)
def test_every_message_once(attached: Lab, tmp_path: Path, kills: int, messages: int) -> None:
    random, before = Random(7), Before(attached)
    with running(attached, tmp_path) as ends:
        options = ("--config", ends.config, "--rate", str(RATE), "--messages", str(messages), "--json")
        with started(attached, "sensor", tmp_path, "sensor", *options, ready="connected") as sensor:
            begun = time.monotonic()
            for moment in sorted(random.uniform(0, 0.95 * messages / RATE) for _ in range(kills)):
                time.sleep(max(0.0, begun + moment - time.monotonic()))
                kill_worker(ends.logger)
            assert sensor.process.poll() is None, "the sensor was done before the last kill"
            sensor.process.wait(2 * messages / RATE)
            sent = sensor.result()
        received, stored = ends.end()
    assert (sent.code, sent.object["clean"], sent.object["messages"]) == (0, True, messages), sent.err
    assert stored.object["restarts"] == kills
    assert (stored.object["messages"], received.object["messages"]) == (messages, messages)
    before.assert_no_connection_ended()
    verified = command(attached, "logger", "log", "verify", "--config", ends.config, "--json")
    assert verified.code == 0, verified.err
    (verdict,) = json.loads(verified.out)
    assert (verdict["state"], verdict["messages"], verdict["missing"]) == ("closed", messages, 0)
    assert verdict["sha256"] == sent.object["digest"]


def kill_worker(logger: Program) -> None:
    """kill -9 the worker that works now, or the next one."""
    wait_until(lambda: workers(logger))
    for pid in workers(logger):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in workers(logger))


def workers(logger: Program) -> list[int]:
    """The processes that the logger has started and that live."""
    pid = logger.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes()]
