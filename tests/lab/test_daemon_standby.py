"""A standby logger takes the place of one that fails."""

import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tests.lab.test_daemon import BARE, flowing, state
from tests.lab.triangle import started, wait_until

from midstream.daemon.failover import STEADY
from midstream.lab import daemons
from midstream.lab import up as lab_up

STANDBY = "10.83.0.12"

pytestmark = pytest.mark.slow


def test_a_standby_takes_over(tmp_path: Path) -> None:
    lab = lab_up(run_dir=tmp_path / "lab", **BARE | {"sensors": 2})
    daemons.launch(lab, "sensor-2", role="logger", standby=True, sensors=1)
    daemons.start(lab, ["hardworker", "logger", "sensor"], sensors=1)
    wait_until(lambda: (found := daemons.state(lab, "sensor-2")) is not None and found["ready_after"])
    folder = daemons.folder(lab, "sensor-2")
    arguments = ("logger", "--config", folder / "config.toml")
    with flowing(lab, tmp_path) as flow:
        with started(lab, "sensor-2", tmp_path, *arguments, ready="listening"):
            time.sleep(3 * STEADY)  # it has to show that it works
            assert state(lab, "hardworker")["destination"] == "10.83.0.3"
            flow.ends.logger.process.send_signal(signal.SIGKILL)
            flow.ends.logger.process.wait()
            killed = time.monotonic()
            wait_until(lambda: state(lab, "hardworker")["destination"] == STANDBY, 3)
            flow.wait_for_fresh(3)
            print(f"fresh messages {time.monotonic() - killed:.2f} s after the logger was killed")
            found = state(lab, "hardworker")
            assert (found["destination"], found["spool"]) == (STANDBY, "off")
            ended = flow.sensor.end()
            assert ended.code == 0, ended.err
            flow.ends.hardworker.end()
            assert ended.object["clean"], "the standby has stored the rest"
        flow.assert_nothing_lost(repeated=ended.object["repeated"])
        with sqlite3.connect(f"file:{folder / 'midstream.db'}?mode=ro", uri=True) as store:
            (count,) = store.execute("SELECT count(*) FROM messages").fetchone()
        store.close()
        assert count > 0
