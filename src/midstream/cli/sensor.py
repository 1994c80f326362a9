"""midstream sensor."""

import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from midstream import config as configuration
from midstream import network
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.cli.waiting import patiently
from midstream.errors import ConfigError
from midstream.sensor import Sensor, file_messages, numbered_messages

app = typer.Typer()


@app.command()
def sensor(
    path: Config = DEFAULT_CONFIG,
    input_path: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Send this file's messages; - for stdin.")
    ] = None,
    count: Annotated[int | None, typer.Option("--messages", min=1, help="Send so many, then end.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Messages a second, instead of data.freq.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write down what was sent (sensor.SENT_DTYPE).")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Connect, then wait for a line on standard input before sending.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send numbered messages, or a file's, at a fixed rate."""
    if wait and input_path == Path("-"):
        raise ConfigError("--wait and --input -: both read standard input, use one of them")
    stop = Stop(0)
    with until_signalled(stop.set), _opened(input_path) as stream, ExitStack() as opened:
        messages: Iterable[bytes]
        config = patiently(lambda: configuration.load(path), stop, then="starting")
        data = config.data
        stop.limit(config.timeout)
        size = patiently(
            lambda: config.message_size(network.load(config.const_path).size), stop, then="starting"
        )
        if stream is None:
            messages = numbered_messages(size, count)
        else:
            messages = _first(count, file_messages(stream, data.framing, size, max_size=data.max_size))
        then = f"connected to the {config.sensor.target}"
        connection = patiently(lambda: Sensor(config, record=record).__enter__(), stop, then=then)
        opened.push(connection)
        say(f"sensor: {then}")
        if wait:
            _wait_for_line(stop)
        summary = connection.run(messages, rate=data.freq if rate is None else rate, stop=stop)
    show(asdict(summary), as_json)


def _wait_for_line(stop: Stop) -> None:
    """Return on a line or a stop. The end of the input is a stop: whoever would give the line is gone."""
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    while not stop():
        if poll.poll(100):
            if not sys.stdin.buffer.readline():
                stop.set()
            return


def _opened(path: Path | None) -> BinaryIO | nullcontext[BinaryIO | None]:
    if path is None:
        return nullcontext(None)
    if path == Path("-"):
        return nullcontext(sys.stdin.buffer)
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"--input {path}: cannot be read ({error.strerror}); name another file") from error


def _first(count: int | None, messages: Iterator[bytes]) -> Iterator[bytes]:
    for number, message in enumerate(messages):
        if number == count:
            return
        yield message
