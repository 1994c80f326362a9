"""The logger's worker is killed at any moment: every message is stored once, and no connection notices."""

import threading
import time
from pathlib import Path
from random import Random

import pytest
from tests.unit.site import SIZE, Serving, Site, Workers, verify

from midstream.sensor import Sensor, numbered_messages


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(monkeypatch)


@pytest.mark.parametrize(
    ("kills", "messages", "rate"),
    [(4, 5000, 2000), pytest.param(100, 100_000, 2000, marks=pytest.mark.slow)],
)
def test_killed_again_and_again(
    site: Site, workers: Workers, kills: int, messages: int, rate: int, capsys: pytest.CaptureFixture[str]
) -> None:
    random = Random(5)
    with Serving(site.config) as serving, Sensor(site.config) as sensor:
        sending = threading.Thread(
            target=sensor.run, args=(numbered_messages(SIZE, messages),), kwargs={"rate": rate}
        )
        sending.start()
        seconds = messages / rate
        started = time.monotonic()
        for kill in range(kills):
            due = started + (kill + random.random()) * seconds / kills
            time.sleep(max(0.0, due - time.monotonic()))
            workers.kill()
        sending.join(30)
        sent = sensor.summary
    assert sent.clean
    assert sent.messages == messages
    assert verify(site) == {(sent.sensor, sent.port): sent.digest}
    assert site.query("SELECT count(*), max(sequence) FROM messages") == [(messages, messages - 1)]
    assert site.query("SELECT count(*), sum(reset) FROM connections") == [(1, 0)]
    assert serving.summary.restarts == kills
    assert (serving.summary.messages, serving.summary.bytes) == (messages, messages * SIZE)
    with capsys.disabled():
        print(serving.summary)
