"""The logger's worker is killed again and again while a sensor sends through the hardworker."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from tests.lab.ends import running
from tests.lab.mortal import Before
from tests.lab.triangle import Program, command, messages_logged, started, wait_until

from midstream.lab import Lab

LAB = {"sensors": 1}
RATE = 2000  # messages a second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "messages"), [(3, 2000), pytest.param(100, 100_000, marks=pytest.mark.slow)]
)
def test_every_message_once(attached: Lab, tmp_path: Path, kills: int, messages: int) -> None:
    """The sensor sends until the last kill, and at least so many messages."""
    random, before = Random(7), Before(attached)
    with running(attached, tmp_path) as ends:
        options = ("--config", ends.config, "--rate", str(RATE), "--json")
        with started(attached, "sensor", tmp_path, "sensor", *options, ready="connected") as sensor:
            for _ in range(kills):
                time.sleep(2 * random.random() * messages / RATE / kills)
                kill_worker(ends.logger)
            wait_until(lambda: messages_logged(ends.database) >= messages, 2 * messages / RATE)
            sent = sensor.end()
        received, stored = ends.end()
    sent_messages = sent.object["messages"]
    assert (sent.code, sent.object["clean"]) == (0, True), sent.err
    assert sent_messages >= messages
    assert stored.object["restarts"] == kills
    assert (stored.object["messages"], received.object["messages"]) == (sent_messages, sent_messages)
    before.assert_no_connection_ended()
    verified = command(attached, "logger", "log", "verify", "--config", ends.config, "--json")
    assert verified.code == 0, verified.err
    (verdict,) = json.loads(verified.out)
    assert (verdict["state"], verdict["messages"], verdict["missing"]) == ("closed", sent_messages, 0)
    assert verdict["sha256"] == sent.object["digest"]


def kill_worker(logger: Program) -> None:
    """kill -9 the worker that works now, or the next one."""
    wait_until(lambda: workers(logger.process.pid))
    for pid in workers(logger.process.pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in workers(logger.process.pid))


def workers(pid: int) -> list[int]:
    """The processes that a logger has started and that live."""
    living = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just been waited for
            if Path(f"/proc/{child}/cmdline").read_bytes():  # empty: dead, and not waited for yet
                living.append(int(child))
    return living
