"""midstream hardworker."""

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from midstream import config as configuration
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.cli.waiting import patiently
from midstream.hardworker import Hardworker
from midstream.hardworker.recording import Recording

app = typer.Typer()


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
    """Receive the sensors' messages, as an application does."""
    stop = Stop(0)
    with until_signalled(stop.set):
        then = "receiving"
        receiver = patiently(lambda: Hardworker(configuration.load(path)).__enter__(), stop, then=then)
    config = receiver.config
    deadline = time.monotonic() + config.timeout if config.timeout else float("inf")
    started, cpu = time.monotonic(), time.process_time()
    with until_signalled(receiver.stop), ExitStack() as opened:
        opened.push(receiver)
        recording = opened.enter_context(Recording(record, receiver, resume=resume)) if record else None
        say(f"hardworker: receiving ({config.hardworker.receiver})")
        while not receiver.stopped and (left := deadline - time.monotonic()) > 0:
            receiver.wait(None if left == float("inf") else left)
            _take(receiver, recording)
        _take(receiver, recording)  # what arrived before the end
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    show({**asdict(receiver.totals), "seconds": seconds, "cpu_seconds": cpu}, as_json)


def _take(receiver: Hardworker, recording: Recording | None) -> None:
    if recording:
        recording.take()
    elif receiver.config.data.framing == "fixed":
        receiver.read()
    else:
        for _ in receiver.messages():
            pass
