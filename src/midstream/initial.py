"""A first config.toml: every key with its comment, and set are only those that a person has chosen."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files

from midstream.config import Role

_OF_OTHERS: Mapping[Role, tuple[str, ...]] = {
    "sensor": ("hardworker", "logger"),
    "hardworker": ("sensor",),
    "logger": ("sensor", "hardworker"),
}
"""Tables in which a host of this role finds nothing."""


def written(role: Role, chosen: Mapping[str, str]) -> str:
    """The text of a config.toml. chosen: strings by key, such as `network.interface`; others are comments."""
    values = {"role": role, **chosen}
    lines = files("midstream").joinpath("config.example.toml").read_text(encoding="utf-8").splitlines()
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(_lines(lines[2:], role, values))).strip()
    return f"# config.toml of this {role}. Where a key is a comment, its default holds.\n{body}\n"


def _lines(lines: list[str], role: Role, values: Mapping[str, str]) -> Iterator[str]:
    table, is_list = "", False
    for line in lines:
        if found := re.fullmatch(r"\[(\w+)\]", line):
            table = found[1]
        if table in _OF_OTHERS[role]:
            continue
        key = re.match(r"(\w+) = ", line)
        name = f"{table}.{key[1]}".removeprefix(".") if key else ""
        if key and name in values:
            yield f"{key[1]} = {json.dumps(values[name], ensure_ascii=False)}"
        elif key or is_list:
            yield f"# {line}"
        else:
            yield line
        is_list = line.endswith("[") or (is_list and line != "]")
