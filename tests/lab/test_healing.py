"""Single faults, many of them, and a log without holes: whatever dies, is killed, stopped or full."""

import os
import signal
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from tests.lab.chaos import healed, judge
from tests.lab.chaos.messages import SIZE
from tests.lab.chaos.storm import FEW, HANDED_BACK, RATE, SINGLE, Fault, Storm, small_disk
from tests.lab.mortal import is_drained
from tests.lab.test_chaos import SEED
from tests.lab.test_daemon import log as daemon_log
from tests.lab.triangle import command, wait_until

from midstream.lab import daemons
from midstream.lab import up as lab_up

SENSORS = 4
FAULTS = int(os.environ.get("CHAOS_FAULTS", "1000"))


@pytest.mark.slow
def test_few_faults(tmp_path: Path) -> None:
    all_is_there(tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.timeout(20_000)
def test_many_faults(tmp_path: Path) -> None:
    random = Random(SEED)
    all_is_there(tmp_path, [random.choice(SINGLE) for _ in range(FAULTS)])


def all_is_there(tmp_path: Path, faults: Sequence[Fault]) -> None:
    """The log and the application have all, each once, when the last of these has healed."""
    began = time.monotonic()
    with small_disk(tmp_path / "disk", "3g") as disk:
        lab = lab_up(
            run_dir=tmp_path / "lab",
            sensors=SENSORS,
            bare=True,
            daemon={"key": "key"},
            data={"size": SIZE, "freq": RATE},
            logger={"database": f"sqlite:///{disk / 'log.db'}"},
            hardworker={"spool": str(tmp_path / "spool" / "spool.db")},
        )
        daemons.start(lab, sensors=SENSORS)
        storm = Storm(lab, tmp_path, disk, Random(SEED), SENSORS)
        try:
            storm.begin()
            for fault in faults:
                storm.strike(fault)
            storm.stop.touch()
            for client in storm.clients:
                assert client.result(60) == 0
            wait_until(is_drained)
            stopped = time.monotonic()
            wait_until(lambda: spooled(tmp_path / "spool" / "spool.db") == 0, HANDED_BACK)
            emptied = time.monotonic() - stopped
            storm.application.send(signal.SIGTERM)
            assert storm.application.result(30) == 0
            verified = command(lab, "logger", "log", "verify", "--config", lab.config, "--json")
            storm.logger.send(signal.SIGTERM)
            assert storm.logger.result(30) == 0
        finally:
            for survivor in storm.everything():
                survivor.kill()
            print(daemon_log(lab, "hardworker"))
        found = healed.judge(
            judge.account(storm.accounts),
            judge.lives(storm.rows),
            judge.logged(disk / "log.db"),
            storm.events,
            judge.to_the_spool(disk / "log.db"),
        )
        print(found, storm.counts, sorted(storm.gaps, key=lambda gap: -gap[1])[:10], sep="\n")
        print(f"{time.monotonic() - began:.0f} s, the spool was empty {emptied:.1f} s after the last message")
        print(f"log verify: {verified.code}")
        if found.faults:
            print(verified.out, *judge.told_of(disk / "log.db", found.ports), sep="\n")
        words = [pair for survivor in storm.everything() for pair in survivor.words()]
        words += [(f"daemon of {name}", daemon_log(lab, name)) for name in storm.hosts]
        assert not [name for name, text in words if "Traceback" in text]
        assert not found.faults
        assert verified.code == 0, verified.out + verified.err


def spooled(path: Path) -> int:
    """How many messages wait in the spool."""
    if not path.exists():
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as spool:
        (count,) = spool.execute("SELECT count(*) FROM messages").fetchone()
    spool.close()
    return int(count)
