"""What a backfill reaches that nothing bounds: `pytest -m slow -s` shows the figures."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.database import servers
from tests.database.test_backfill import configured, running
from tests.support import site as sites
from tests.support.site import wait_until
from tests.support.spools import batch, ended, opening, payloads, spool

from midstream.logger.spooled import spool_state


@pytest.fixture(scope="module")
def postgres() -> Iterator[servers.Postgres]:
    """As a user has it: it waits for the disk."""
    with servers.postgres(sync=True) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count"), [(64, 400_000), (1024, 100_000)])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "jetstream"])
def test_rate(
    kind: str,
    size: int,
    count: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sender, receiver and server on the same cores: from the first message to the last that has left."""
    url = f"sqlite:///{tmp_path}/midstream.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").new_database(f"rate{size}")
    elif kind == "jetstream":
        url = request.getfixturevalue("cluster").url(f"rate{size}")
        servers.patient(url).close()
        count //= 4
    monkeypatch.setattr(sites, "SIZE", size)
    monkeypatch.setattr("tests.database.test_backfill.SIZE", size)
    config = configured(tmp_path, url, "1024GiB")
    path = Path(str(config.spool_path))
    row, some = opening(1, first=1), payloads(10_000, size)
    with spool(config) as store:
        for start in range(0, count, len(some)):
            store.write(batch(row, some, sequence=start, offset=start * size))
        store.write(ended(row, count * size))
    before = _cpu()
    with running(config):
        wait_until(lambda: spool_state(path).messages < count)
        started, begun = time.monotonic(), spool_state(path).messages
        wait_until(lambda: not spool_state(path), 120)
        seconds = time.monotonic() - started
    cpu = (_cpu() - before) / count * 1e6
    rate = begun / seconds
    with capsys.disabled():
        print(
            f"\n{kind}, {size} B: {rate:,.0f} messages/s, {rate * size / 1e6:.1f} MB/s, "
            f"{cpu:.1f} µs of sender and receiver"
        )


def _cpu() -> float:
    """CPU seconds of child processes that have ended: those of sender and receiver."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
