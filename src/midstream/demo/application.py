"""The hardworker's application where sensors send a mix: one process for each stream.

    python -m midstream.demo.application STREAM RECORD CONFIG

It takes the messages of its stream one by one, and writes each down with the time at which it had it. So does
an application that controls with one stream while another maps with the next: none waits for the other.
"""

import json
import signal
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

from midstream import modes
from midstream.hardworker import Hardworker

HEAD = struct.Struct("<QQQQ")
"""In front of each message in the record: when the application had it (nanoseconds since 1970), number of the
connection, number of the message in it, bytes."""


def record(receiver: Hardworker, file: BinaryIO) -> None:
    """Write down what comes until the receiver is stopped."""
    for message in receiver:
        payload = message.payload
        file.write(HEAD.pack(time.time_ns(), message.connection, message.sequence, len(payload)))
        file.write(payload)


def main(stream: str, path: Path, config: Path) -> None:
    """Read a stream until SIGTERM, and say what there was."""
    with Hardworker(config) as hardworker, open(path, "wb", opener=modes.opener) as file:
        receiver = hardworker.stream(stream)
        signal.signal(signal.SIGTERM, lambda *_: receiver.stop())
        print("hardworker: receiving", file=sys.stderr, flush=True)
        record(receiver, file)
        totals = receiver.totals
    print(json.dumps({"messages": totals.messages, "opened": totals.opened, "reset": totals.reset}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
