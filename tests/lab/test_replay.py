"""A hardworker whose ring is gone: the application gets from the logger what came before, and goes on.

The program is away for as long as it takes to load it, and no longer.
"""

import threading
from itertools import islice
from pathlib import Path

import pytest
from tests.lab.ends import sensor
from tests.lab.triangle import PATIENCE, PINS, Result, started, variant

from midstream.ebpf import loader
from midstream.hardworker import Hardworker
from midstream.lab import Lab, programs

LAB = {"sensors": 1}


@pytest.mark.slow
def test_a_ring_that_is_gone(attached: Lab, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    logger = {
        "database": f"sqlite:///{tmp_path}/logged.db",
        "replay_port": 12346,
    }
    config = variant(attached, "replay.toml", logger=logger, daemon={"key": str(key)})
    with started(attached, "logger", tmp_path, "logger", "--config", config, ready="listening") as ends:
        send(attached, config, 300)
        send(attached, config, 200)
        attached.call("hardworker", loader.detach, "hardworker", PINS / "hardworker")
        programs.attach(attached)
        send(attached, config, 100)
        got = attached.call("hardworker", replayed, config, 600)
        assert ends.end().code == 0
    connection, _ = got[-1]
    assert connection > 0
    before = [*((-1, n) for n in range(300)), *((-2, n) for n in range(200))]
    assert got == [*before, *((connection, n) for n in range(100))]


def send(lab: Lab, config: Path, messages: int) -> Result:
    sent = sensor(lab, config, "--messages", str(messages), "--rate", "0")
    assert sent.object["clean"]
    return sent


def replayed(config: Path, count: int) -> list[tuple[int, int]]:
    """Connection and sequence of the first `count` messages; what they hold is checked."""
    with Hardworker(config) as hardworker:
        give_up = threading.Timer(PATIENCE, hardworker.stop)
        give_up.start()
        got = list(islice(hardworker.replay(), count))
        give_up.cancel()
        assert all(int.from_bytes(message.payload[:8], "little") == message.sequence for message in got)
        more = hardworker.read()
        assert len(more) == 0
    return [(message.connection, message.sequence) for message in got]
