"""midstream init."""

from pathlib import Path
from typing import Annotated, Any

import typer

from midstream import config as configuration
from midstream import initial, modes
from midstream import key as keys
from midstream.cli.options import Json, find_role, say, show
from midstream.config import Role
from midstream.errors import ConfigError

app = typer.Typer()


@app.command()
def init(
    path: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A file that does not exist yet.")
    ] = Path("config.toml"),
    role: Annotated[str | None, typer.Option(help="sensor, hardworker or logger.")] = None,
    interface: Annotated[
        str | None, typer.Option(help="The one to the peers.", show_default="the only one with an address")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What the hosts share.", show_default="/etc/midstream/key"),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: take the defaults, and make a missing key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a commented config.toml for this host. It asks for role, interface and key.

    The hardworker's key is made if it is missing; the other hosts need a copy of it.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already, and is not replaced; name another file with --output")
    if yes and role is None:
        raise ConfigError("--role: is needed with --yes; name sensor, hardworker or logger")
    try:
        found = find_role(role) if role is not None else _asked_role()
        default = configuration.Config().daemon.key
        chosen = {
            "network.interface": _interface(interface, ask=not yes),
            "daemon.key": key if key is not None else default if yes else _ask("Key", default),
        }
        text = initial.written(found, {name: value for name, value in chosen.items() if value})
        key_path = configuration.parse(text, path).key_path  # what was typed may be no name
        is_made = found == "hardworker" and not key_path.exists() and (yes or _is_wanted(key_path))
    except typer.Abort:
        raise ConfigError(
            "no answer, and nothing was written; answer the questions, or use --yes with --role"
        ) from None
    if is_made:
        keys.make(key_path)
        say(f"{key_path}: a new key; every other host needs a copy")
    elif not key_path.exists():
        say(f"{key_path}: not there yet; copy it from the host that has it")
    _write(path, text)
    if as_json:
        show({"file": str(path), "role": found, "key": str(key_path), "key_made": is_made}, as_json)


def _asked_role() -> Role:
    while True:
        try:
            return find_role(_ask("Role of this host (sensor, hardworker, logger)", None))
        except ConfigError as error:
            say(str(error))


def _interface(named: str | None, *, ask: bool) -> str:
    """The one that was named, or the person's choice; "": the only one that has an address."""
    if named is not None:
        return named
    from midstream.daemon.interface import addresses  # only Linux has them

    there = addresses()
    if len(there) == 1 or not ask:
        return ""
    say("Interfaces: " + (", ".join(f"{name} ({ip})" for name, ip in there.items()) or "none has an address"))
    return _ask("Interface to the peers", next(iter(there), ""))


def _ask(question: str, default: str | None) -> str:
    answer: Any = typer.prompt(question, default=default, err=True)
    return str(answer).strip()


def _is_wanted(key: Path) -> bool:
    return typer.confirm(f"{key}: there is no key. Make it?", default=True, err=True)


def _write(path: Path, text: str) -> None:
    try:
        modes.make_folder(path.parent)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error
    say(f"{path}: written; `midstream daemon --config {path}` goes on from here")
