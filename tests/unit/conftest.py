"""A log to look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.logs import LogFile


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    opened = LogFile(tmp_path / "log.db")
    yield opened
    opened.close()
