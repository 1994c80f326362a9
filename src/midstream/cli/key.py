"""midstream key."""

from pathlib import Path
from typing import Annotated

import typer

from midstream.cli.options import Json, say, show
from midstream.key import make

app = typer.Typer()


@app.command()
def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
    as_json: Json = False,
) -> None:
    """Make the key that the hosts of one network share. Each host needs a copy that root alone may read."""
    make(path)
    if as_json:
        show({"file": str(path)}, as_json)
    say(f"{path}: a new key; copy it to the other hosts, and name it in config.toml: daemon.key")
