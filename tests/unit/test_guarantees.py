"""Each row of "Which host dies, and what is left" in docs/guarantees.md names the tests that hold it."""

import re
from pathlib import Path

import pytest

from midstream.ebpf.records import OUTCOMES

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
BOTH = "test_deaths"  # where midstream's sensor and a plain client send at once
NAMED = re.compile(r"`((?:\w+/)*test_\w+)` \(`(\w+)`\)")


def rows() -> list[list[str]]:
    """The cells of each row below the head of the table."""
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    section = text.partition("## Which host dies, and what is left\n")[2].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def functions(module: str) -> list[str]:
    """The tests in the files of that name."""
    text = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob(f"{module}.py"))
    return re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)


def test_each_counter_is_explained_once() -> None:
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    section = text.partition("## What becomes of a packet\n")[2].partition("\n#")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(name for cell in first for name in re.findall(r"`(\w+)`", cell)) == sorted(OUTCOMES)


def test_there_are_rows() -> None:
    assert len(rows()) > 10
    assert {len(row) for row in rows()} == {4}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_names_tests_that_there_are(row: list[str]) -> None:
    *claims, tests = row
    assert all(claims)
    assert re.sub(NAMED, "", tests).strip(", ") == ""
    assert BOTH in dict(NAMED.findall(tests))
    for module, words in NAMED.findall(tests):
        assert [name for name in functions(module) if words in name], f"{module} has no test {words}"


def test_each_test_of_deaths_is_in_the_table() -> None:
    named = [words for row in rows() for module, words in NAMED.findall(row[-1]) if module == BOTH]
    for name in functions(BOTH):
        assert [words for words in named if words in name], f"{name} is in no row"
