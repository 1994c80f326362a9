"""Chaos: half an hour of faults on all hosts while two sensors send."""

import os
import signal
import time
from pathlib import Path
from random import Random

import pytest
from tests.lab.chaos import judge
from tests.lab.chaos.messages import DATA
from tests.lab.chaos.storm import Storm, small_disk
from tests.lab.mortal import is_drained
from tests.lab.triangle import PINS, command, wait_until

from midstream.lab import daemons
from midstream.lab import up as lab_up

SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seconds", [60, 1800])
def test_nothing_wrong_and_nothing_missing_but_what_is_allowed(tmp_path: Path, seconds: int) -> None:
    with small_disk(tmp_path / "disk", "2g") as disk:
        lab = lab_up(
            run_dir=tmp_path / "lab",
            sensors=2,
            bare=True,
            daemon={"key": "key"},
            data={"size": DATA.size, "freq": DATA.rate},
            hardworker={"ring_size": "1MiB", "spool": str(tmp_path / "spool" / "spool.db")},
            logger={"database": f"sqlite:///{disk / 'chaos.db'}"},
        )
        daemons.start(lab, sensors=2)
        storm = Storm(lab, tmp_path, disk, Random(SEED))
        before = os.umask(0)  # what the programs make has modes that are set, not inherited
        try:
            storm.revive()
            for client in storm.clients:
                client.revive()
            time.sleep(2)
            storm.rage(seconds)
            storm.revive()
            time.sleep(10)
            storm.stop.touch()
            for client in storm.clients:
                assert client.result(60) == 0
            wait_until(is_drained)
            for program in (*storm.applications, storm.logger):
                program.send(signal.SIGTERM)
                assert program.result(30) == 0
        finally:
            os.umask(before)
            for survivor in storm.everything():
                survivor.kill()
        verdict = judge.judge(
            judge.account(storm.accounts(DATA)),
            judge.lives(storm.rows(DATA)),
            judge.logged(disk / "chaos.db"),
            storm.events,
        )
        print(verdict, storm.counts, sep="\n")
        if verdict.faults:
            print(*storm.events, sep="\n")
        words = [*(pair for survivor in storm.everything() for pair in survivor.words())]
        assert not [name for name, text in words if "Traceback" in text]
        verified = command(lab, "logger", "log", "verify", "--config", lab.config, "--json")
        assert verified.code == 0, verified.out + verified.err
        assert not verdict.faults
        for place in (lab.run_dir, disk, PINS):
            assert not [path for path in place.rglob("*") if path.stat().st_mode & 0o022]
