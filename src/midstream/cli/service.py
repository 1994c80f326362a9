"""midstream service: the services of this host."""

import json
from typing import Annotated

import typer

from midstream.cli.options import Json, find_role, say
from midstream.systemd import installation, run, state

app = typer.Typer(no_args_is_help=True, help="The services of this host (systemd).")


@app.command()
def install(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="sensor, hardworker or logger.")],
    as_json: Json = False,
) -> None:
    """Make user, folders, key, config.toml and units, enable and start them. Again, it changes nothing."""
    done: list[str] = []
    installation.install(find_role(role), _teller(done, as_json))
    _end(done, as_json, "everything was there already")


@app.command()
def uninstall(
    purge: Annotated[
        bool, typer.Option("--purge", help="Configuration, key, database and user, too. They are gone then.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stop, detach and remove the services. Configuration, key, database and user stay."""
    done: list[str] = []
    installation.uninstall(_teller(done, as_json), purge=purge)
    _end(done, as_json, "there was nothing to remove")


@app.command()
def status(as_json: Json = False) -> None:
    """Each service: whether it is enabled and active, since when, its own words, and its last error."""
    run.require()
    units = state.read()
    if as_json:
        print(json.dumps({"units": units}))
        return
    for unit in units:
        print(f"{unit['unit']}: {unit['active']} since {unit['since'] or 'never'}, {unit['enabled']}")
        if unit["status"]:
            print(f"    {unit['status']}")
        if unit["last_error"]:
            print(f"    last error: {unit['last_error']}")
    if not units:
        say("no service of midstream is installed; `midstream service install ROLE`")


def _teller(done: list[str], as_json: bool) -> installation.Say:
    def tell(what: str) -> None:
        done.append(what)
        if not as_json:
            print(what, flush=True)

    return tell


def _end(done: list[str], as_json: bool, otherwise: str) -> None:
    if as_json:
        print(json.dumps({"done": done}))
    elif not done:
        print(otherwise)
