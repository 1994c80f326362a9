"""Several streams at once from one port of a sensor, in every kind of database."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from tests.database import servers
from tests.support.batches import batch_of, end
from tests.support.site import Serving, Site, Workers
from tests.unit.logger.test_streams import ROBOT, check, send_all

from midstream.fields import Field, Layout
from midstream.storage.formats import StreamFormat
from midstream.storage.pruning import prune
from midstream.storage.sql import SqlStore
from midstream.storage.store import ConnectionRow


@pytest.fixture(params=["postgresql", "jetstream"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "postgresql":
        server: servers.Postgres = request.getfixturevalue("postgres")
        url = server.new_database(tmp_path.name.replace("-", "_").lower())
    else:
        url = request.getfixturevalue("cluster").url(tmp_path.name)
        servers.patient(url).close()
    return Site(tmp_path, url, streams=ROBOT)


def test_they_stay_apart_though_the_worker_is_killed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(monkeypatch)
    with Serving(site.config) as serving:
        where = send_all(site, 100, [workers])
    check(site, where, 100)
    assert serving.summary.messages == 400
    if site.url.startswith("postgresql"):
        assert site.query("SELECT number, gyro FROM readings_imu ORDER BY sequence") == [
            (at, at / 8) for at in range(100)
        ]


def test_what_is_removed_to_make_room_goes_from_the_table_of_its_stream(url: str) -> None:
    layout = Layout(4, (Field("number", "<u4", 0),))
    streams = {name: StreamFormat("fixed", 4, layout) for name in ("imu", "joints")}
    with SqlStore(url, batch_size=9, streams=streams) as store:
        for number, name in enumerate(streams):
            row = ConnectionRow(f"a.{number}", "10.83.0.11", 40000, 1 + number, stream=name)
            batch = batch_of(row, [bytes(4)] * 3)
            batch.closed.append(end(row, 12))
            store.write(batch)
    assert prune(url, keep_ns=None, keep_bytes=12).messages == 3
    engine = create_engine(url)
    with engine.connect() as database:
        for name in streams:
            own = database.execute(text(f"SELECT count(*) FROM log WHERE stream = '{name}'")).scalar()
            assert database.execute(text(f"SELECT count(*) FROM readings_{name}")).scalar() == own != 3
    engine.dispose()
