"""Stores of every kind, each with a database of its own."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.database import servers

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    with servers.postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/midstream.db"
    server: servers.Postgres = request.getfixturevalue("postgres")
    return server.new_database(f"test{next(_numbers)}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[servers.Nats]:
    with servers.nats() as running:
        yield running


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """The name of a stream that only this test has."""
    return "".join(letter for letter in request.node.name if letter.isalnum())
