"""The running logger keeps its database within keep_age and keep_size."""

import hashlib
import time
from pathlib import Path

import pytest
from tests.support.site import SIZE, Serving, Site, wait_until

from midstream import config
from midstream.errors import ConfigError
from midstream.log.verify import verify
from midstream.logger import Logger, pruning
from midstream.logger.companion import Companion
from midstream.storage.sql_log import SqlLog


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def fill(site: Site, messages: int) -> None:
    """A connection that has ended, in a database that keeps all. Bytes that come at once have one time."""
    with Serving(site.config), site.connect() as client:
        for _ in range(50):
            client.sendall(bytes(SIZE * messages // 50))
            time.sleep(0.005)


@pytest.mark.slow
def test_what_is_too_much_goes_while_the_logger_stores(site: Site) -> None:
    fill(site, 5000)
    site.configure(logger=f"keep_size = {4000 * SIZE}\n")
    sent = hashlib.sha256()
    with Serving(site.config) as serving, site.connect() as client:
        for number in range(400):
            message = number.to_bytes(4, "big") * (SIZE // 4)
            client.sendall(message)
            sent.update(message)
        wait_until(lambda: site.query("SELECT pruned > 900 FROM connections WHERE id = 1") == [(1,)])
    assert (serving.summary.messages, serving.summary.waits, serving.error) == (400, 0, None)
    with SqlLog(site.url) as database:
        pruned, new = verify(database, database.connections())
    assert (pruned.right, new.right, new.messages, new.digest) == (True, True, 400, "right")
    assert pruned.messages == 5000 - pruned.connection.pruned  # type: ignore[union-attr]
    assert 2000 < pruned.messages <= 4000


def test_what_is_too_old_goes(site: Site) -> None:
    fill(site, 100)
    site.configure(logger="keep_age = 0.001\n")
    with Serving(site.config):
        site.wait_for("SELECT count(*) FROM messages", [(0,)])
    assert site.query("SELECT pruned FROM connections") == [(100,)]


def test_nothing_runs_where_all_is_kept(site: Site) -> None:
    with Logger(site.config) as logger:
        assert logger._pruning is None


@pytest.mark.slow
def test_another_takes_the_place_of_one_that_died(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midstream.logger.companion.RESTART_DELAY", 0)
    site.configure(logger="keep_age = 3600\n")
    with Serving(site.config) as serving:
        process = serving.logger._pruning
        assert isinstance(process, Companion)
        first = process._child
        assert first is not None
        first.kill()
        wait_until(lambda: process._child is not first)
    assert process._child is not None and process._child.returncode is not None


def test_a_jetstream_has_limits_of_its_own(site: Site) -> None:
    site.url = "nats://127.0.0.1:1/log"
    site.configure(logger="keep_age = 60\n")
    with pytest.raises(ConfigError, match=r"config.toml: logger.keep_age: only SQL.*nats stream edit"):
        Logger(site.config).__enter__()


def test_a_fault_is_said_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.configure(logger="keep_age = 60\n")
    looks = iter(range(3))

    def sleep(seconds: float) -> None:
        assert seconds >= pruning.INTERVAL
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("midstream.logger.pruning.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        pruning.keep_within(config.load(site.config))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("logger: nothing is removed just now: sqlite:///") and "no such file" in line
