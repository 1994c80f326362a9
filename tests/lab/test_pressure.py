"""An application that is slow, stopped, or not there: the sensor waits, and the logger gets nothing that the
hardworker does not hold."""

import mmap
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tests.lab.triangle import (
    SENSOR,
    collect,
    counted,
    counters,
    logged,
    messages_logged,
    sending,
    started,
    wait_until,
)

from midstream import config, network
from midstream.ebpf.sizing import ring_size
from midstream.hardworker import Hardworker
from midstream.hardworker.recording import recorded_dtype
from midstream.lab import Lab

SIZE = 1000
# The whole ring for one sensor: what is tested here is a full ring, not a full share of it.
WHOLE = {"quota": 1.0}
LAB = {"data": {"size": SIZE}, "hardworker": WHOLE}

tiny_ring = pytest.mark.parametrize(
    "lab",
    [
        pytest.param({"hardworker": {"ring_size": f"{size}KiB", **WHOLE}}, id=f"{size} KiB", marks=marks)
        for size, marks in (
            (mmap.PAGESIZE >> 10, [pytest.mark.slow]),
            (64, []),
        )  # three messages at a time: many time-outs
    ],
    indirect=True,
)


@tiny_ring
def test_a_stopped_application_stops_the_sensor(triangle: Lab, tmp_path: Path) -> None:
    """No more reaches the logger than the ring holds. When the application goes on, all arrives once."""
    data = os.urandom(300 * SIZE)
    record, database = tmp_path / "record", triangle.run_dir / "midstream.db"
    room = ring_size(config.load(triangle.config), network.load(triangle.const))
    arguments = ("hardworker", "--config", triangle.config, "--record", record, "--json")
    before = counters()
    with started(triangle, "hardworker", tmp_path, *arguments, ready="receiving") as application:
        application.process.send_signal(signal.SIGSTOP)
        with sending(triangle, "sensor", data) as sent:
            wait_until(lambda: refused(before) > 3)
            time.sleep(0.3)
            assert messages_logged(database) * SIZE < room
            assert not sent.done()
            application.process.send_signal(signal.SIGCONT)
            port, _ = sent.result()
        result = application.end()
    assert result.code == 0, result.err
    assert np.fromfile(record, recorded_dtype(SIZE))["message"]["payload"].tobytes() == data
    assert logged(database, (SENSOR, port)) == data
    ended = {"messages": 300, "opened": 1, "finished": 1, "reset": 0, "skipped": 0}
    assert {name: result.object[name] for name in ended} == ended


@pytest.mark.slow
def test_an_application_that_comes_late(triangle: Lab) -> None:
    """The stream is over, and logged, before anybody reads the ring."""
    data = os.urandom(1000 * SIZE)
    with sending(triangle, "sensor", data) as sent:
        port, _ = sent.result()
    assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == data
    with Hardworker(triangle.config) as application:
        assert application.fill > len(data) / 2**22
        assert collect(application, 1) == {(SENSOR, port): data}
        application.read()
        assert application.fill == 0


@pytest.mark.slow
def test_an_application_that_comes_in_the_middle(triangle: Lab) -> None:
    """More than the ring holds: the sensor is held up until somebody reads."""
    data = os.urandom(6000 * SIZE)
    before = counters()
    with sending(triangle, "sensor", data) as sent:
        wait_until(lambda: refused(before) > 3)
        assert not sent.done()
        with Hardworker(triangle.config) as application:
            assert application.fill > 0.5
            found = collect(application, 1)
        port, _ = sent.result()
    assert found == {(SENSOR, port): data}
    assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == data


def refused(before: list[dict[str, int]]) -> int:
    """Packets for which there was no room. A quota of the whole ring may speak before the ring does."""
    outcomes = counted(before)[0]
    return outcomes.get("ring_full", 0) + outcomes.get("quota_full", 0)
