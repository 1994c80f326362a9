"""Drive sink.c: the logger of a benchmark, which verifies every byte that arrives."""

import mmap
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from midstream.closing import Closing
from midstream.ebpf import compiler
from midstream.framing import Framing
from midstream.load.load import Launch, await_ready, end, finish

SOURCE = Path(__file__).with_name("sink.c")

_TIMEOUT = 10.0  # seconds to start, and to end


class Incoming(NamedTuple):
    """What comes to a port. size: bytes a message; for another framing than fixed of the longest."""

    port: int
    size: int
    framing: Framing = "fixed"


@dataclass(frozen=True)
class SinkSummary:
    """What arrived; of each connection (-1: none of the load's) peer, port, to (the sink's port), messages,
    bytes, wrong, clean.

    wrong: messages that were not what comes next on their connection, of all.
    """

    connections: tuple[dict[str, Any], ...]
    messages: int
    wrong: int


class Sink(Closing):
    """Listens on the ports of an address while the context lasts; `launch` starts the program (see `Load`).

    joined: a connection carries many, as joined.h says.
    """

    def __init__(
        self,
        address: str,
        incoming: Sequence[Incoming],
        *,
        joined: bool = False,
        launch: Launch = subprocess.Popen,
    ) -> None:
        self._address = address
        self._form = "joined" if joined else "separate"
        self._ports = [word for each in incoming for word in (str(each.port), each.framing, str(each.size))]
        self._launch = launch

    def __enter__(self) -> Self:
        program = compiler.compile_executable(SOURCE)
        self._folder = tempfile.TemporaryDirectory(prefix="midstream-sink-")
        count = Path(self._folder.name, "count")
        count.write_bytes(bytes(8))
        with count.open("r+b") as file:
            self._count = np.frombuffer(mmap.mmap(file.fileno(), 0), "<u8")
        arguments = [os.fspath(program), self._address, os.fspath(count), self._form, *self._ports]
        self._process = self._launch(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        try:
            await_ready(self._process, "sink", _TIMEOUT)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def received(self) -> int:
        """Messages that have arrived until now."""
        return int(self._count[0])

    def result(self) -> SinkSummary:
        """End it and return what it saw. Raises LabError, NetworkError."""
        self._process.terminate()
        told = finish(self._process, "sink", _TIMEOUT)
        return SinkSummary(tuple(told["connections"]), told["messages"], told["wrong"])

    def close(self) -> None:
        """See that it is gone."""
        end(self._process)
        self._folder.cleanup()
