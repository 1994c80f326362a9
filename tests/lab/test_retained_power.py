"""The logger's power goes: what its kernel had acknowledged, and its database not committed, comes again."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.lab.chaos import power
from tests.lab.test_daemon import BARE, SIZE, Flow, daemon_pid, state
from tests.lab.test_log_knows import LINE, again, assert_all_is_there, flowing, is_whole, log, numbers
from tests.lab.triangle import wait_until

from midstream.cli.log import HOLE
from midstream.lab import Lab, daemons
from midstream.lab import up as lab_up

LATE = 0.5  # seconds between two commits of the logger: so much is acknowledged and not committed at its end
KEY = "../key"


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["retain", "no-retain"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Lab, bool]]:
    retain: bool = request.param
    tables: dict[str, Any] = {
        "logger": {"replay_port": 12347, "batch_interval": LATE},
        "hardworker": {"retain": retain, "ring_size": "16MiB"},
    }
    built = lab_up(run_dir=tmp_path / "lab", **BARE | LINE | tables)
    daemons.start(built, key=KEY)
    yield built, retain
    for name in ("hardworker", "logger", "sensor"):
        assert "Traceback" not in (daemons.folder(built, name) / "daemon.log").read_text(), name


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, pytest.param(4, marks=pytest.mark.slow)], ids=["", "a late daemon"])
def test_power_is_cut(lab: tuple[Lab, bool], tmp_path: Path, late: float) -> None:
    """late: seconds for which that is stopped meanwhile."""
    built, retain = lab
    with flowing(built, tmp_path) as flow:
        time.sleep(2)
        daemon = daemon_pid("hardworker")
        if late:
            os.kill(daemon, signal.SIGSTOP)
        power.cut(built, "logger")
        flow.ends.logger.process.wait()
        time.sleep(late)
        os.kill(daemon, signal.SIGCONT)
        wait_until(lambda: state(built, "hardworker")["destination"] == "spool", 10)
        flow.wait_for_fresh(5)
        stored = numbers(flow.ends.database)
        power.switch_on(built, "logger")
        daemons.launch(built, "logger", key=KEY)
        again(flow, tmp_path)
        wait_until(lambda: state(built, "hardworker")["destination"] != "spool", 30)
        time.sleep(1)
        flow.sensor.end()
        if retain:
            _assert_all_is_there(built, flow, max(stored))
        else:
            _assert_some_is_lost(built, flow)


def _assert_all_is_there(lab: Lab, flow: Flow, stored: int) -> None:
    """stored: the latest number in the database when the power went."""
    wait_until(lambda: is_whole(lab, flow.ends, set()), 60)
    assert_all_is_there(flow)
    assert _first_connection(flow.ends.database) > stored + 1
    assert state(lab, "hardworker")["forfeited"] == 0


def _assert_some_is_lost(lab: Lab, flow: Flow) -> None:
    wait_until(lambda: log(lab, flow.ends, "verify")[0] == HOLE, 60)
    assert set(flow.numbers().tolist()) - numbers(flow.ends.database)


def _first_connection(database: Path) -> int:
    """How many messages it has, which are each there once and in their place."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        rows = opened.execute(
            "SELECT sequence, stream_offset FROM messages WHERE connection_id = 1 ORDER BY sequence"
        ).fetchall()
    assert rows == [(number, number * SIZE) for number in range(len(rows))]
    return len(rows)
