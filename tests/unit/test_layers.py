"""Imports point down, in the order that docs/architecture.md draws."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "midstream"
DRAWN = re.search(r"^```\ncli .*?```", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE | re.DOTALL)


def order() -> list[str]:
    """The packages and modules that the drawing names, from the top."""
    assert DRAWN
    return re.findall(r"(?:^| {2,})(\w+)(?= {2,}|$)", DRAWN[0], re.MULTILINE)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("midstream"):
            module = node.module.split(".")
            yield from module[1:2] or (alias.name for alias in node.names)


def test_no_module_imports_what_stands_above_it() -> None:
    places = {name: place for place, name in enumerate(order())}
    wrong = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for name in imported(path)
        if places.get(name, 99) < places.get(path.relative_to(SOURCE).parts[0].removesuffix(".py"), -1)
    ]
    assert {"cli", "daemon", "doctor", "network", "errors"} <= places.keys()
    assert not wrong


def test_a_class_name_means_one_thing() -> None:
    """In the whole of the package: a reader who has found a name has found what it names."""
    places: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}
