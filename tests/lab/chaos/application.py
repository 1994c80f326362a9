"""The hardworker's application: it acts on a message by writing a row, and commits.

    python application.py CONFIG FILE LIFE

Rows are of `ROW`. A row with `committed` tells that all rows before it in this life are committed.
"""

import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.lab.chaos.messages import identity

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
"""sensor, number: what the payload is, or -1 if nobody has sent it. time: CLOCK_MONOTONIC."""


def main(config: str, path: Path, life: int) -> None:
    print("started", time.monotonic(), file=sys.stderr, flush=True)
    with path.open("ab", buffering=0) as file, Hardworker(config, autocommit=False) as hardworker:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: hardworker.stop())
        print("receiving", time.monotonic(), file=sys.stderr, flush=True)
        while not hardworker.stopped:
            hardworker.wait(1.0)
            batch = hardworker.read()
            if not len(batch):
                continue
            rows = np.zeros(len(batch) + 1, ROW)
            rows["life"], rows["time"] = life, time.monotonic()
            for name in ("connection", "port", "offset"):
                rows[name][:-1] = batch[name]
            said = [identity(payload.tobytes()) or (-1, -1) for payload in batch["payload"]]
            rows["sensor"][:-1], rows["number"][:-1] = np.array(said).T
            rows[-1]["committed"] = 1
            file.write(rows[:-1].tobytes())
            hardworker.commit()
            file.write(rows[-1:].tobytes())


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    except MidstreamError as error:
        sys.exit(str(error))
