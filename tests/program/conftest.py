"""Programs for the tests, loaded once a session: each test uses source ports of its own."""

from collections.abc import Iterator

import pytest
from tests.program.bench import TOPOLOGY, Bench


@pytest.fixture(scope="session")
def session_bench() -> Iterator[Bench]:
    bench = Bench(TOPOLOGY)
    yield bench
    bench.close()


@pytest.fixture
def bench(session_bench: Bench) -> Iterator[Bench]:
    """The hardworker's program, as the lab would have it. Nothing is left in its ring."""
    yield session_bench
    session_bench.ring.take()
