"""A receiver of midstream while there is no logger: the kernel has the sensors' TCP, and the spool their log.

    python -m midstream_bench.receivers.spooled CONFIG COMMAND...

COMMAND reads the ring as ever, gets the signals that come here, and says when it is ready and what it has
measured. At its end the spool must have as many messages.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from midstream import config as configuration
from midstream.config import Config
from midstream.ebpf import control
from midstream.ebpf.records import HERE
from midstream.errors import LabError, MidstreamError
from midstream.load.load import finish
from midstream.logger import Logger

_FINISHED = 30.0  # seconds


def main(path: str, *command: str) -> None:
    """Until SIGTERM. Raises LabError, StoreError, NetworkError, KernelError."""
    config = configuration.load(path)
    control.set_destination(Path(config.network.pins, "hardworker"), HERE)
    with TemporaryDirectory(prefix="midstream-spool-") as folder:
        settings = config.hardworker.model_copy(update={"spool": f"{folder}/spool.db"})
        told, stored = _receive(config.model_copy(update={"hardworker": settings}), command)
    if stored != told["messages"]:
        raise LabError(f"the spool has {stored} of {told['messages']} messages")
    print(json.dumps(told))


def _receive(config: Config, command: tuple[str, ...]) -> tuple[dict[str, object], int]:
    """What the application says, and how many messages are in the spool."""
    with Logger(config, spool=True) as spool:
        application = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
                signal.signal(number, lambda number, _: application.send_signal(number))
            summary = spool.serve(stop=lambda: application.poll() is not None)
            return finish(application, command[0], _FINISHED), summary.messages
        finally:
            application.kill()
            application.wait()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MidstreamError as error:
        sys.exit(str(error))
