"""All commands of the command line, found by asking it."""

from collections.abc import Iterator
from typing import Any

import typer

from midstream import cli


def all_commands() -> list[tuple[tuple[str, ...], Any]]:
    """The words of each command, and the command."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if not hasattr(command, "commands"):
            yield words, command
            return
        for name, below in command.commands.items():
            yield from walk(below, (*words, name))

    return list(walk(typer.main.get_command(cli.app(cli.COMMANDS)), ()))
