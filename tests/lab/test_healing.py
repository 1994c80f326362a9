"""Single faults, many of them, and a log without holes: whatever dies, is killed, stopped or full."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.lab.chaos import healed, judge
from tests.lab.chaos.messages import DATA, MIX, Flow
from tests.lab.chaos.storm import FEW, HANDED_BACK, HANDFUL, SINGLE, Fault, Storm, small_disk
from tests.lab.mortal import is_drained
from tests.lab.test_chaos import SEED
from tests.lab.test_daemon import log as daemon_log
from tests.lab.triangle import command, wait_until

from midstream.lab import daemons
from midstream.lab import up as lab_up

SENSORS = 4
FAULTS = int(os.environ.get("CHAOS_FAULTS", "1000"))


streams = pytest.mark.parametrize("flows", [(DATA,), MIX], ids=["data", "mix"])


def test_a_handful_of_faults_over_several_streams(tmp_path: Path) -> None:
    all_is_there(tmp_path, HANDFUL, MIX)


@pytest.mark.slow
@streams
def test_few_faults(tmp_path: Path, flows: Sequence[Flow]) -> None:
    all_is_there(tmp_path, FEW, flows)


@pytest.mark.slow
@pytest.mark.timeout(20_000)
@streams
def test_many_faults(tmp_path: Path, flows: Sequence[Flow]) -> None:
    random = Random(SEED)
    all_is_there(tmp_path, [random.choice(SINGLE) for _ in range(FAULTS)], flows)


def all_is_there(tmp_path: Path, faults: Sequence[Fault], flows: Sequence[Flow]) -> None:
    """The log and the applications have all, each once, when the last of these has healed."""
    began = time.monotonic()
    with small_disk(tmp_path / "disk", "3g") as disk:
        lab = lab_up(
            run_dir=tmp_path / "lab",
            sensors=SENSORS,
            bare=True,
            daemon={"key": "key"},
            logger={"database": f"sqlite:///{disk / 'log.db'}"},
            hardworker={"spool": str(tmp_path / "spool" / "spool.db")},
            **sections(flows),
        )
        daemons.start(lab, sensors=SENSORS)
        storm = Storm(lab, tmp_path, disk, Random(SEED), SENSORS, flows)
        try:
            storm.begin()
            for fault in faults:
                storm.strike(fault)
            storm.stop.touch()
            for client in storm.clients:
                assert client.result(60) == 0
            wait_until(is_drained)
            stopped = time.monotonic()
            wait_until(lambda: storm.is_handed_back(tmp_path / "spool" / "spool.db"), HANDED_BACK)
            emptied = time.monotonic() - stopped
            for application in storm.applications:
                application.send(signal.SIGTERM)
                assert application.result(30) == 0
            verified = command(lab, "logger", "log", "verify", "--config", lab.config, "--json")
            storm.logger.send(signal.SIGTERM)
            assert storm.logger.result(30) == 0
        finally:
            for survivor in storm.everything():
                survivor.kill()
            print(daemon_log(lab, "hardworker"))
        found = {
            flow.name: healed.judge(
                judge.account(storm.accounts(flow)),
                judge.lives(storm.rows(flow)),
                judge.logged(disk / "log.db", flow),
                storm.events,
                judge.to_the_spool(disk / "log.db", flow),
                flow,
            )
            for flow in flows
        }
        print(*found.items(), storm.counts, sorted(storm.gaps, key=lambda gap: -gap[1])[:10], sep="\n")
        print(f"{time.monotonic() - began:.0f} s, the spool was empty {emptied:.1f} s after the last message")
        print(f"log verify: {verified.code}")
        faulty = {port for one in found.values() for port in one.ports}
        if faulty:
            print(verified.out, *judge.told_of(disk / "log.db", faulty), sep="\n")
        words = [pair for survivor in storm.everything() for pair in survivor.words()]
        words += [(f"daemon of {name}", daemon_log(lab, name)) for name in storm.hosts]
        assert not [name for name, text in words if "Traceback" in text]
        assert not [fault for one in found.values() for fault in one.faults]
        assert verified.code == 0, verified.out + verified.err


def sections(flows: Sequence[Flow]) -> dict[str, Any]:
    """Of config.toml what says of the messages."""
    if flows == (DATA,):
        return {"data": {"size": DATA.size, "freq": DATA.rate}}
    return {"stream": [flow.section for flow in flows]}
