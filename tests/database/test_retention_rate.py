"""keep_size holds at the highest rate that a database stores, and pruning does not starve storing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.database import servers
from tests.database.flood import Flooded, flood
from tests.support import site as sites
from tests.support.site import Site

MARGIN = (
    2.5  # seconds of what arrives, beside a sixteenth of keep_size, on a machine that does other work too
)
SHARE = 0.3  # of the rate without pruning that is left at least: each message is written, and removed


@pytest.fixture(scope="module")
def synced() -> Iterator[servers.Postgres]:
    with servers.postgres(sync=True) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 1024])
@pytest.mark.parametrize("connections", [1, 50])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_limit_holds(
    kind: str,
    connections: int,
    size: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sites, "SIZE", size)

    def run(name: str, logger: str, seconds: float) -> Flooded:
        folder = tmp_path / name
        folder.mkdir()
        url = ""
        if kind == "postgresql":
            server: servers.Postgres = request.getfixturevalue("synced")
            url = server.new_database(f"{name}{size}x{connections}")
        site = Site(folder, url)
        site.configure(interval=0.1, logger=logger)
        return flood(site, connections=connections, seconds=seconds)

    free = run("all", "", 5)
    keep = min(64 << 20, free.sent)  # four times the time, at a third of the rate or more, exceeds that
    limited = run("limited", f"keep_size = {keep}\n", 20)
    with capsys.disabled():
        print(
            f"\n{kind}, {size} B, {connections} connections: {limited.messages / limited.seconds:,.0f} of "
            f"{free.messages / free.seconds:,.0f} messages/s; kept {limited.most / 2**20:.0f} MiB at most, "
            f"{limited.left / 2**20:.0f} at the end, of {keep / 2**20:.0f}; {limited.rate * 1e-6:.1f} MB/s, "
            f"{limited.waits} waits"
        )
    assert limited.most <= keep + keep / 16 + MARGIN * limited.rate
    assert keep * 15 / 16 <= limited.left <= keep * 17 / 16
    assert limited.rate >= SHARE * free.rate
    assert limited.waits == 0


@pytest.mark.slow
def test_the_limit_holds_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form: 30 and more times the limit."""
    monkeypatch.setattr(sites, "SIZE", 1024)
    site = Site(tmp_path)
    keep = 2 << 20
    site.configure(interval=0.02, logger=f"keep_size = {keep}\n")
    found = flood(site, connections=2, seconds=3.0)
    assert found.sent > 10 * keep
    assert found.most <= keep + keep / 16 + MARGIN * found.rate
    assert found.left <= keep * 17 / 16
    assert found.waits == 0
