"""What a command does for several streams at once."""

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from midstream.cli.options import show

T = TypeVar("T")

_SWITCH = 1e-4  # seconds for which one thread keeps the others waiting, instead of Python's 5 ms

Stream = Annotated[str, typer.Option("--stream", metavar="NAME", help="This stream alone.")]


def together(runs: Mapping[str, Callable[[], T]], stop: Callable[[], object]) -> dict[str, T]:
    """What each gives, by stream. One runs here, several in a thread each. What one raises is raised, after
    `stop` has ended the others."""
    if len(runs) == 1:
        return {name: run() for name, run in runs.items()}
    with _switching_soon(), ThreadPoolExecutor(len(runs)) as threads:
        running = {name: threads.submit(run) for name, run in runs.items()}
        try:
            if any(each.exception() for each in wait(running.values(), return_when=FIRST_EXCEPTION).done):
                stop()
        except BaseException:
            stop()
            raise
        return {name: each.result() for name, each in running.items()}


def beside(path: Path, name: str, runs: int) -> Path:
    """The file of a stream, where there are several: FILE.NAME."""
    return path if runs == 1 else path.with_name(f"{path.name}.{name}")


def show_streams(whole: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    """As `show`, and where there are several streams what each has."""
    if len(each) == 1:
        show(whole, as_json)
    elif as_json:
        show({**whole, "streams": each}, as_json)
    else:
        of_each = {f"{name} {key}": value for name, one in each.items() for key, value in one.items()}
        show({**whole, **of_each}, as_json)


@contextmanager
def _switching_soon() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
