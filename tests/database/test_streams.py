"""Several streams at once from one port of a sensor, in every kind of database."""

from pathlib import Path

import pytest
from tests.database import servers
from tests.support.site import Serving, Site, Workers
from tests.unit.logger.test_streams import ROBOT, check, send_all


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
