"""The command line: each command reads its arguments, calls the library, and prints.

Results go to standard output, with --json as JSON; everything else goes to standard error. An error of
midstream is one message without a traceback, and the exit code of its class (see midstream.errors).
"""

import platform
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer

from midstream import modes
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
    try:
        _app(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))()
    except MidstreamError as error:
        print(f"midstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output, `head` perhaps, has enough
        sys.stderr.close()
        sys.exit(0)


def _app(command: str) -> typer.Typer:
    """The application with that command, or with all if there is none of that name.

    Only what is wanted is imported: each command starts quickly, and `compile` works where there is nothing
    of Linux to import.
    """
    app = typer.Typer(
        help="Sensor data with the guarantees of TCP, on a control computer that runs no TCP.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_options)
    for name in dict.fromkeys([_MODULES[command]] if command in _MODULES else _MODULES.values()):
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
