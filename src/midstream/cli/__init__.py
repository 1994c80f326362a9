"""The command line: each command reads its arguments, calls the library, and prints.

Results go to standard output, with --json as JSON; everything else goes to standard error. An error of
midstream is one message without a traceback, and the exit code of its class (see midstream.errors).
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from midstream.cli import demo, kernel, lab, packet, programs
from midstream.errors import MidstreamError

app = typer.Typer(
    help="Sensor data with the guarantees of TCP, on a control computer that runs no TCP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (programs.app, kernel.app, demo.app):
    app.registered_commands += commands.registered_commands
app.add_typer(lab.app, name="lab")
app.add_typer(packet.app, name="packet")


def main() -> None:
    """Run the command that the arguments name, and leave with its exit code."""
    try:
        app()
    except MidstreamError as error:
        print(f"midstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output, `head` perhaps, has enough
        sys.stderr.close()
        sys.exit(0)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"midstream {version('midstream')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del show_version
