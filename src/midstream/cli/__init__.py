"""The command line: each command reads its arguments, calls the library, and prints.

Results go to standard output, with --json as JSON; everything else goes to standard error. An error of
midstream is one message without a traceback, and the exit code of its class (see midstream.errors).
"""

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Annotated, NamedTuple

import typer

from midstream import modes
from midstream.cli import output
from midstream.errors import ConfigError, MidstreamError


class Command(NamedTuple):
    """The module that has a command, or a group of them, in its `app`; and what `midstream --help` says.

    help: the first paragraph of its own help.
    """

    module: str
    help: str


def _own(name: str, help: str) -> Command:
    return Command(f"{__name__}.{name}", help)


COMMANDS: Mapping[str, Command] = {
    "demo": _own(
        "demo",
        "Run it all on this machine, and say what became of each message.",
    ),
    "sensor": _own("sensor", "Send numbered messages, or a file's, at a fixed rate."),
    "hardworker": _own(
        "hardworker",
        "Receive the sensors' messages, as an application does.",
    ),
    "logger": _own("logger", "Store in the database what the hardworker passes on."),
    "compile": _own(
        "compile", "Compile a host's eBPF program from const.toml. That needs no root, and no Linux."
    ),
    "attach": _own(
        "kernel", "Compile, load, pin and attach this host's program. What is attached already stays."
    ),
    "detach": _own("kernel", "Detach this host's program and remove its pins."),
    "status": _own(
        "kernel",
        "Say what this host's daemon and program do, and have counted.",
    ),
    "daemon": _own(
        "daemon",
        "Find the other hosts, attach, watch and heal.",
    ),
    "init": _own("init", "Write a commented config.toml for this host. It asks for role, interface and key."),
    "key": _own(
        "key",
        "Make the key that the hosts of one network share. Each host needs a copy that root alone may read.",
    ),
    "doctor": _own(
        "doctor",
        "Check this host and the way to its peers. What is wrong is printed with the command that mends it.",
    ),
    "load": _own(
        "load",
        "Send messages from many sensors at exact times. Rate and lateness are reported.",
    ),
    "config": _own("config", "Look at config.toml."),
    "lab": _own("lab", "Three hosts on one machine: sensors, hardworker, logger."),
    "log": _own("log", "Look at what the logger has stored."),
    "packet": _own("packet", "Craft, check, send and watch raw packets."),
    "service": _own("service", "The services of this host (systemd)."),
}

_OTHERS = "midstream.commands"
"""Entry points of other distributions: a command's name, and its module."""

_KNOWN_OTHERS = {"bench": "midstream-bench"}


def main() -> None:
    """Run the command that the arguments name, and leave with its exit code."""
    modes.restrain()
    output.prepare()
    try:
        try:
            app(_named())()
        finally:
            sys.stdout.flush()
    except MidstreamError as error:
        print(f"midstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _named() -> list[str]:
    """The command that the arguments name; none if they ask for help, or name none that there is.

    A shell that asks how a line may go on has the line in its environment: what is typed of the last word is
    where a command may begin.
    """
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    asked = "_MIDSTREAM_COMPLETE" in os.environ
    words = [word for word in (line.split()[1:] if asked else sys.argv[1:]) if not word.startswith("-")]
    is_typed = len(words) > 1 or not asked or line[-1].isspace()
    return words[:1] if is_typed else []


def app(wanted: Iterable[str]) -> typer.Typer:
    """The application with these commands, and of all others no more than name and help.

    Only what is wanted is imported: each command starts quickly, and `compile` works where there is nothing
    of Linux to import. Raises ConfigError for a command that another distribution adds, and which is missing.
    """
    made = typer.Typer(
        help="Sensor data with the guarantees of TCP, on a control computer that runs no TCP.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # to format help with rich would take half of its time
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback(invoke_without_command=True)(_options)
    wanted, known = set(wanted), COMMANDS
    if not wanted or not wanted <= COMMANDS.keys():
        known = {**COMMANDS, **_others()}
        for name in wanted & _KNOWN_OTHERS.keys() - known.keys():
            raise ConfigError(
                f"{name} is of a package of its own; install it with `pip install {_KNOWN_OTHERS[name]}`"
            )
    for name, command in known.items():
        if name in wanted:
            _add(made, name, _imported(name, command))
        else:
            made.command(name, help=command.help)(_nothing)
    return made


def _imported(name: str, command: Command) -> typer.Typer:
    try:
        found: typer.Typer = import_module(command.module).app
    except ImportError as error:
        if platform.system() == "Linux":
            raise
        raise ConfigError(f"midstream {name} needs Linux; `midstream compile` does not") from error
    return found


def _add(made: typer.Typer, name: str, commands: typer.Typer) -> None:
    for each in commands.registered_commands:
        if name in (each.name, each.callback.__name__ if each.callback else ""):
            made.registered_commands.append(each)
            return
    made.add_typer(commands, name=name)


def _others() -> dict[str, Command]:
    """The commands of other distributions."""
    from importlib.metadata import entry_points  # slow, and seldom needed

    return {
        found.name: Command(found.module, found.dist.metadata["Summary"] if found.dist else "")
        for found in entry_points(group=_OTHERS)
    }


def _nothing() -> None:
    """Of a command that was not asked for nothing but its help is shown."""


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if show_version:
        from importlib.metadata import version

        print(f"midstream {version('midstream')}")
        raise typer.Exit
