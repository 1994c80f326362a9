"""A stream is added while all runs: its sensors are served before anybody starts the logger again."""

import os
import signal
import sqlite3
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.test_daemon import daemon_pid, is_well, log, state
from tests.lab.triangle import Program, wait_until

from midstream import network
from midstream.daemon.way import SPOOL
from midstream.lab import Lab, daemons
from midstream.lab import up as lab_up
from midstream.lab.state import toml

IMU = {"name": "imu", "port": 12345, "size": 64}
GPS = {"name": "gps", "port": 12349, "framing": "line", "max_size": 100}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    built = lab_up(run_dir=tmp_path / "lab", sensors=1, bare=True, stream=[IMU])
    daemons.start(built, ["hardworker", "logger", "sensor"])
    yield built
    print(log(built, "hardworker"))  # shown if the test fails


@pytest.mark.slow
def test_until_the_logger_has_a_door_the_spool_has(lab: Lab, tmp_path: Path) -> None:
    configs = {host: str(daemons.folder(lab, host) / "config.toml") for host in ("logger", "sensor")}
    arguments = "logger", "--config", configs["logger"], "--json"

    def send(stream: str) -> None:
        words = "--messages", "20", "--rate", "100", "--config", configs["sensor"]
        assert Program(lab, "sensor", tmp_path, ("sensor", "--stream", stream, *words)).result().code == 0

    logger = Program(lab, "logger", tmp_path, arguments)
    logger.wait_for("listening")
    wait_until(lambda: is_well(lab))
    send("imu")

    os.kill(daemon_pid("hardworker"), signal.SIGKILL)
    wait_until(lambda: daemons.state(lab, "hardworker") is None)
    settings = tomllib.loads(lab.config.read_text())
    lab.config.write_text(toml(settings | {"stream": [IMU, GPS]}))
    daemons.launch(lab, "hardworker")
    sensors_own = daemons.folder(lab, "sensor") / "const.toml"
    wait_until(lambda: len(network.load(sensors_own).streams) == 2)
    wait_until(lambda: state(lab, "hardworker")["destination"] == SPOOL)
    send("gps")
    send("imu")

    assert logger.end().code == 0
    logger = Program(lab, "logger", tmp_path, arguments)
    logger.wait_for("listening")
    wait_until(lambda: is_well(lab))
    send("gps")
    database = daemons.folder(lab, "logger") / "midstream.db"
    wait_until(lambda: counts(database) == {"imu": 40, "gps": 40})
    assert logger.end().code == 0


def counts(path: Path) -> dict[str, int]:
    """The messages of each stream in a database."""
    with sqlite3.connect(path) as database:
        return dict(database.execute("SELECT stream, count(*) FROM log GROUP BY 1"))
