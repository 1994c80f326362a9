"""What several commands have in common: options, the end on a signal, the way of printing a result."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from midstream.config import DEFAULT_CONFIG as DEFAULT_CONFIG
from midstream.config import SYSTEM_CONFIG, Role, nearest
from midstream.errors import ConfigError


def _find_config(context: typer.Context, option: typer.CallbackParam, path: Path) -> Path:
    """The file that was named; else config.toml of this folder, else that of this host's services."""
    source = context.get_parameter_source(option.name or "")
    asked = source is not None and source.name != "DEFAULT"
    found = path if asked else nearest()
    if found != path:
        say(f"midstream: there is no {path} here, so {found} is read")
    return found


Config = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"The user's file; where there is none here, {SYSTEM_CONFIG}.",
        callback=_find_config,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


class Stop:
    """Asked whether to stop: set by a signal, or by the clock after `timeout` seconds (0: never)."""

    def __init__(self, timeout: float) -> None:
        self._signalled = False
        self.limit(timeout)

    def limit(self, timeout: float) -> None:
        """Stop `timeout` seconds from now (0: never)."""
        self._deadline = time.monotonic() + timeout if timeout else float("inf")

    def set(self) -> None:
        self._signalled = True

    def __call__(self) -> bool:
        return self._signalled or time.monotonic() >= self._deadline


@contextmanager
def until_signalled(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call `stop` instead of ending the process."""
    previous = {
        number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """A line for the person who watches, on standard error."""
    print(text, file=sys.stderr, flush=True)


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """A result on standard output: JSON, or a line for each entry."""
    if as_json:
        print(json.dumps(result))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        print(f"{name.replace('_', ' '):{width}}  {value}")


def find_role(name: str) -> Role:
    """The role of that name. Raises ConfigError."""
    roles: tuple[Role, ...] = get_args(Role)
    for role in roles:
        if role == name:
            return role
    raise ConfigError(
        f"ROLE = {name!r}: must be sensor, hardworker or logger; name it, or set role in config.toml"
    )
