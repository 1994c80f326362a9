"""midstream key."""

from pathlib import Path
from typing import Annotated

import typer

from midstream.cli.options import say
from midstream.key import make

app = typer.Typer()


@app.command()
def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
) -> None:
    """Make the key that the hosts of one network share; each host needs a copy that root alone may read."""
    make(path)
    say(f"{path}: a new key; copy it to the other hosts, and name it in config.toml: daemon.key")
