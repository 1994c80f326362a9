"""midstream sensor."""

import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from midstream import config as configuration
from midstream import network, streams
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, until_signalled
from midstream.cli.together import beside, show_streams, together
from midstream.cli.waiting import patiently
from midstream.errors import ConfigError
from midstream.sensor import Sensor, SensorSummary, file_messages, numbered_lines, numbered_messages
from midstream.streams import ResolvedStream

app = typer.Typer()


@app.command()
def sensor(
    path: Config = DEFAULT_CONFIG,
    names: Annotated[
        list[str] | None,
        typer.Option("--stream", metavar="NAME", help="Send this stream; repeatable, or all."),
    ] = None,
    input_path: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Send this file's messages; - for stdin.")
    ] = None,
    count: Annotated[int | None, typer.Option("--messages", min=1, help="Send so many, then end.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Messages a second, instead of data.freq.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Write down what was sent (sensor.SENT_DTYPE); several streams: FILE.NAME."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Connect, then wait for a line on standard input before sending.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send numbered messages, or a file's, at a fixed rate.

    Each stream has a connection of its own. Of line framing numbered messages are texts.
    """
    if wait and input_path == Path("-"):
        raise ConfigError("--wait and --input -: both read standard input, use one of them")
    stop = Stop(0)
    with until_signalled(stop.set), _opened(input_path) as source, ExitStack() as opened:
        config = patiently(lambda: configuration.load(path), stop, then="starting")
        stop.limit(config.timeout)
        served = patiently(lambda: _served(config, names or [""]), stop, then="starting")
        if source and len(served) > 1:
            raise ConfigError(f"--input: its messages are of one stream; name one of {', '.join(served)}")
        then, runs = f"connected to the {config.sensor.target}", {}
        for name, stream in served.items():
            file = beside(record, name, len(served)) if record else None
            connection = patiently(partial(_connected, config, name, file), stop, then=then)
            opened.push(connection)
            freq = stream.config.data.freq if rate is None else rate
            runs[name] = partial(connection.run, _messages(stream, source, count), rate=freq, stop=stop)
        say(f"sensor: {then}")
        if wait:
            _wait_for_line(stop)
        sent = together(runs, stop.set)
    each = {name: asdict(summary) for name, summary in sent.items()}
    show_streams(_whole(list(sent.values())), each, as_json)


def _served(config: configuration.Config, names: list[str]) -> dict[str, ResolvedStream]:
    """The streams of these names; "": the only one; all: each that there is."""
    topology = network.load(config.const_path)
    if names == ["all"]:
        return streams.resolved(config, topology)
    found = [streams.only(config, topology, name) for name in names]
    return {stream.name: stream for stream in found}


def _connected(config: configuration.Config, stream: str, record: Path | None) -> Sensor:
    return Sensor(config, stream=stream, record=record).__enter__()


def _messages(stream: ResolvedStream, source: BinaryIO | None, count: int | None) -> Iterable[bytes]:
    data = stream.config.data
    size = stream.config.message_size(stream.topology.size)
    if source is not None:
        return _first(count, file_messages(source, data.framing, size, max_size=data.max_size))
    return numbered_lines(count) if data.framing == "line" else numbered_messages(size, count)


def _whole(sent: list[SensorSummary]) -> dict[str, object]:
    """A summary of all; of one, that one."""
    if len(sent) == 1:
        return asdict(sent[0])
    return {
        "sensor": sent[0].sensor,
        "messages": sum(each.messages for each in sent),
        "bytes": sum(each.bytes for each in sent),
        "seconds": max(each.seconds for each in sent),
        "clean": all(each.clean for each in sent),
    }


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
