"""The hardworker's application, of one stream: it acts on a message by writing a row, and commits.

    python application.py CONFIG FILE LIFE FLOW

Rows are of `ROW`. A row with `committed` tells that all rows before it in this life are committed.
"""

import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.lab.chaos.messages import FLOWS, Flow

from midstream import Hardworker, MidstreamError

ROW = np.dtype(
    [
        ("life", "<u4"),
        ("committed", "<u4"),
        ("connection", "<u4"),
        ("port", "<u4"),
        ("offset", "<u8"),
        ("sensor", "<i8"),
        ("number", "<i8"),
        ("time", "<f8"),
    ]
)
"""port: the sensor's. offset: in the connection's stream, in `Flow.unit`. sensor, number: what the payload
is, or -1 if nobody has sent it from there. time: CLOCK_MONOTONIC."""


def main(config: str, path: Path, life: int, flow: Flow) -> None:
    print("started", time.monotonic(), file=sys.stderr, flush=True)
    with (
        path.open("ab", buffering=0) as file,
        Hardworker(config, stream=flow.name, autocommit=False) as hardworker,
    ):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: hardworker.stop())
        print("receiving", time.monotonic(), file=sys.stderr, flush=True)
        read = _fixed if flow.framing == "fixed" else _framed
        while not hardworker.stopped:
            hardworker.wait(1.0)
            given = read(hardworker, flow)
            if not len(given):
                continue
            rows = np.append(given, np.zeros(1, ROW))
            rows["life"], rows["time"] = life, time.monotonic()
            rows[-1]["committed"] = 1
            file.write(rows[:-1].tobytes())
            hardworker.commit()
            file.write(rows[-1:].tobytes())


def _fixed(hardworker: Hardworker, flow: Flow) -> np.ndarray:
    batch = hardworker.read()
    rows = np.zeros(len(batch), ROW)
    for name in ("connection", "port", "offset"):
        rows[name] = batch[name]
    for row, port, payload in zip(rows, batch["port"], batch["payload"], strict=True):
        found = flow.identity(payload.tobytes())
        row["sensor"], row["number"] = found[:2] if found and found.port == port else (-1, -1)
    return rows


def _framed(hardworker: Hardworker, flow: Flow) -> np.ndarray:
    """A message does not tell from which port it came, but what was sent does."""
    messages = list(hardworker.messages())
    rows = np.zeros(len(messages), ROW)
    for row, message in zip(rows, messages, strict=True):
        row["connection"], row["offset"] = message.connection, message.sequence
        sensor, number, port = flow.identity(message.payload) or (-1, -1, 0)
        row["sensor"], row["number"], row["port"] = sensor, number, port
    return rows


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), FLOWS[sys.argv[4]])
    except MidstreamError as error:
        sys.exit(str(error))
