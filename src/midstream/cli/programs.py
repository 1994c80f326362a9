"""midstream sensor, hardworker, logger: the three programs."""

import select
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from midstream import config as configuration
from midstream import network
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, say, show, until_signalled
from midstream.errors import ConfigError
from midstream.hardworker import Hardworker
from midstream.hardworker.recording import Recording
from midstream.logger import Logger
from midstream.sensor import Sensor, file_messages, numbered_messages

app = typer.Typer()


class _Stop:
    """Set by a signal, or by the clock."""

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout if timeout else float("inf")
        self._signalled = False

    def set(self) -> None:
        self._signalled = True

    def __call__(self) -> bool:
        return self._signalled or time.monotonic() >= self._deadline


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
    """Send numbered, time-stamped messages, or a file's, at a fixed rate."""
    if wait and input_path == Path("-"):
        raise ConfigError("--wait and --input -: both read standard input, use one of them")
    config = configuration.load(path)
    data = config.data
    stop = _Stop(config.timeout)
    with until_signalled(stop.set), _opened(input_path) as stream:
        messages: Iterable[bytes]
        size = config.message_size(network.load(config.const_path).size)
        if stream is None:
            messages = numbered_messages(size, count)
        else:
            messages = _first(count, file_messages(stream, data.framing, size, max_size=data.max_size))
        with Sensor(config, record=record) as connection:
            say(f"sensor: connected to the {config.sensor.target}")
            if wait:
                _wait_for_line(stop)
            summary = connection.run(messages, rate=data.freq if rate is None else rate, stop=stop)
    show(asdict(summary), as_json)


@app.command()
def hardworker(
    path: Config = DEFAULT_CONFIG,
    record: Annotated[
        Path | None, typer.Option(help="Write down what was received (hardworker.recording).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the record of a process that was killed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Receive the sensors' messages from the attached program, or with the user-mode handler."""
    config = configuration.load(path)
    receiver = Hardworker(config)
    deadline = time.monotonic() + config.timeout if config.timeout else float("inf")
    started, cpu = time.monotonic(), time.process_time()
    with (
        until_signalled(receiver.stop),
        receiver,
        Recording(record, receiver, resume=resume) if record else nullcontext() as recording,
    ):
        say(f"hardworker: receiving ({config.hardworker.receiver})")
        while not receiver.stopped and (left := deadline - time.monotonic()) > 0:
            receiver.wait(None if left == float("inf") else left)
            _take(receiver, recording)
        _take(receiver, recording)  # what arrived before the end
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    show({**asdict(receiver.totals), "seconds": seconds, "cpu_seconds": cpu}, as_json)


@app.command()
def logger(path: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Receive what the hardworker passes on and store it in the database."""
    config = configuration.load(path)
    stop = _Stop(config.timeout)
    with until_signalled(stop.set), Logger(config) as server:
        say("logger: listening")
        summary = server.serve(stop)
    show(asdict(summary), as_json)


def _wait_for_line(stop: _Stop) -> None:
    """Return on a line or a stop. The end of the input is a stop: whoever would give the line is gone."""
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    while not stop():
        if poll.poll(100):
            if not sys.stdin.buffer.readline():
                stop.set()
            return


def _take(receiver: Hardworker, recording: Recording | None) -> None:
    if recording:
        recording.take()
    elif receiver.config.data.framing == "fixed":
        receiver.read()
    else:
        for _ in receiver.messages():
            pass


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
