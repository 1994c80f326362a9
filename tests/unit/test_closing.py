"""The one way in which what is opened in a `with` statement is closed."""

from pathlib import Path

import pytest

from midstream.closing import Closing

SOURCES = Path(__file__).parents[2] / "src/midstream"


class Door(Closing):
    def __init__(self) -> None:
        self.said: list[str] = []

    def close(self) -> None:
        self.said.append("closed")


def test_it_closes_however_the_block_ends() -> None:
    with Door() as door:
        door.said.append("open")
    with pytest.raises(KeyboardInterrupt), door:
        raise KeyboardInterrupt
    assert door.said == ["open", "closed", "closed"]


def test_nobody_writes_it_again() -> None:
    """But the hardworker's reader, which commits if all went well."""
    texts = {
        str(path.relative_to(SOURCES)): path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py")
    }
    found = {name for name, text in texts.items() if "def __exit__" in text}
    assert found == {"closing.py", "hardworker/hardworker.py"}
