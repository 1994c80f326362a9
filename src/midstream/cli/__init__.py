"""The command line: each command reads its arguments, calls the library, and prints.

Results go to standard output, with --json as JSON; everything else goes to standard error. An error of
midstream is one message without a traceback, and the exit code of its class (see midstream.errors).
"""

import os
import platform
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer

from midstream import modes
from midstream.cli import output
from midstream.errors import MidstreamError

_MODULES = {
    "demo": "demo",
    "lab": "lab",
    "sensor": "sensor",
    "hardworker": "hardworker",
    "logger": "logger",
    "log": "log",
    "compile": "compile",
    "attach": "kernel",
    "detach": "kernel",
    "status": "kernel",
    "packet": "packet",
    "daemon": "daemon",
    "key": "key",
    "service": "service",
    "doctor": "doctor",
    "load": "load",
    "bench": "bench",
}
"""Which module of this package has a command."""


def main() -> None:
    """Run the command that the arguments name, and leave with its exit code."""
    modes.restrain()
    output.prepare()
    try:
        try:
            _app(_wanted())()
        finally:
            sys.stdout.flush()
    except MidstreamError as error:
        print(f"midstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _wanted() -> list[str]:
    """The commands that the arguments can mean: all if they ask for help or name an unknown one.

    A shell that asks how a line may go on has the line in its environment: what is typed of the last word is
    where a command may begin.
    """
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    asked = "_MIDSTREAM_COMPLETE" in os.environ
    words = [word for word in (line.split()[1:] if asked else sys.argv[1:]) if not word.startswith("-")]
    if asked and len(words) == 1 and not line[-1].isspace():
        return [name for name in _MODULES if name.startswith(words[0])]
    if not words and {"--version", "--show-completion", "--install-completion"} & set(sys.argv):
        return []
    return words[:1] if words and words[0] in _MODULES else list(_MODULES)


def _app(wanted: Iterable[str]) -> typer.Typer:
    """The application with those commands, and those that are in the same modules.

    Only what is wanted is imported: each command starts quickly, and `compile` works where there is nothing
    of Linux to import.
    """
    app = typer.Typer(
        help="Sensor data with the guarantees of TCP, on a control computer that runs no TCP.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_options)
    for name in dict.fromkeys(_MODULES[command] for command in wanted):
        try:
            commands: typer.Typer = import_module(f"midstream.cli.{name}").app
        except ImportError:
            if platform.system() == "Linux":
                raise
            continue
        if len(commands.registered_commands) > 1 and name in _MODULES:
            app.add_typer(commands, name=name)
        else:
            app.registered_commands += commands.registered_commands
    return app


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if show_version:
        print(f"midstream {version('midstream')}")
        raise typer.Exit
