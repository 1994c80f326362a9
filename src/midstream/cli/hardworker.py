"""midstream hardworker."""

import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from midstream import config as configuration
from midstream import network, streams
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, until_signalled
from midstream.cli.together import Stream, beside, show_streams, together
from midstream.cli.waiting import patiently
from midstream.hardworker import Hardworker, Totals
from midstream.hardworker.recording import Recording

app = typer.Typer()


@app.command()
def hardworker(
    path: Config = DEFAULT_CONFIG,
    stream: Stream = "",
    record: Annotated[
        Path | None,
        typer.Option(help="Write down what was received (hardworker.recording); several streams: FILE.NAME."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the record of a process that was killed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Receive the sensors' messages, as an application does.

    Of several streams each is read by itself, as often as its period says.
    """
    stop = Stop(0)
    with until_signalled(stop.set):
        whole, parts = patiently(lambda: _opened(path, stream), stop, then="receiving")
    config = whole.config
    deadline = time.monotonic() + config.timeout if config.timeout else float("inf")
    started, cpu = time.monotonic(), time.process_time()
    with until_signalled(whole.stop), ExitStack() as opened:
        opened.push(whole)
        runs = {}
        for name, part in parts.items():
            recording = None
            if record:
                file = beside(record, name, len(parts))
                recording = opened.enter_context(Recording(file, part, resume=resume))
            runs[name] = partial(_receive, part, recording, deadline)
        say(f"hardworker: receiving ({config.hardworker.receiver})")
        together(runs, whole.stop)
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    totals = sum((part.totals for part in parts.values()), Totals())
    each = {name: asdict(part.totals) for name, part in parts.items()}
    show_streams({**asdict(totals), "seconds": seconds, "cpu_seconds": cpu}, each, as_json)


def _opened(path: Path, stream: str) -> tuple[Hardworker, dict[str, Hardworker]]:
    """A Hardworker, and those of its streams, by name."""
    config = configuration.load(path)
    names = [stream] if stream else streams.resolved(config, network.load(config.const_path))
    whole = Hardworker(config, stream=stream).__enter__()
    try:
        return whole, {name: whole.stream(name) for name in names}
    except BaseException:
        whole.close()
        raise


def _receive(receiver: Hardworker, recording: Recording | None, deadline: float) -> None:
    while not receiver.stopped and (left := deadline - time.monotonic()) > 0:
        receiver.wait(None if left == float("inf") else left)
        _take(receiver, recording)
    _take(receiver, recording)  # what arrived before the end


def _take(receiver: Hardworker, recording: Recording | None) -> None:
    if recording:
        recording.take()
    elif receiver.config.data.framing == "fixed":
        receiver.read()
    else:
        for _ in receiver.messages():
            pass
