"""Parts of a stream into real databases: they go on where messages, or the beginning of one, end there."""

import time
from pathlib import Path

import pytest
from tests.database import servers
from tests.support.spools import Receiving, contents, drain, streams
from tests.unit.daemon.test_salvage import (
    at_once,
    configured,
    each_framing,
    ends,
    lost,
    messages,
    own,
    parts,
    salvage,
    stored,
    stream,
)

from midstream.framing import Framing
from midstream.logger import backfill
from midstream.storage.databases import open_store
from midstream.storage.store import Batch

__all__ = ["at_once"]  # a fixture


@pytest.fixture(params=["postgresql", "jetstream"])
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty database."""
    name = f"salvage{time.monotonic_ns()}"
    if request.param == "postgresql":
        server: servers.Postgres = request.getfixturevalue("postgres")
        return server.new_database(name)
    made = str(request.getfixturevalue("cluster").url(name))
    servers.patient(made).close()
    return made


@each_framing
@pytest.mark.parametrize("closed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("begun", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_page_by_page(
    tmp_path: Path, url: str, framing: Framing, begun: int, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page begins amid a message, and all is sent twice. closed: the logger knows an end already."""
    config, some = configured(tmp_path, framing, url, max_size=1 << 16), messages(framing, 20)
    data, row = stream(framing, some)[:-1], own()
    committed = stored(config, row, some, 3, begun)
    if closed:
        with open_store(config, streams(config)) as store:
            row.closed_ns, row.size, row.reason = row.opened_ns + 1, committed, "it was closed"
            row.unfinished = data[ends(framing, some)[2] : committed]
            store.resume([row])
            store.write(Batch(completed=[row], closed=[row]))
    monkeypatch.setattr(backfill, "PAGE_BYTES", 300)
    for _ in range(2):
        salvage(config, lost(parts(data, committed, [*range(0, len(data), 11)]), committed))
        with Receiving(config):
            drain(config)
        ((facts, rows),) = contents(url).values()
        assert [each[4] for each in rows] == some[:-1]
        assert facts[1] == len(data)
        assert facts[5] == data[ends(framing, some)[-2] :]
