"""A process that works beside the logger, and lives as long as it."""

import json
import subprocess
import sys
import time

from midstream.logger.channel import Message

RESTART_DELAY = 1.0  # seconds from one start to the next


class Companion:
    """`python -m MODULE ARGUMENTS`, which inherits `descriptors`.

    It reads `settings` as a line of JSON from its standard input, whose end is its own end.
    """

    def __init__(
        self,
        module: str,
        settings: Message,
        arguments: tuple[str, ...] = (),
        descriptors: tuple[int, ...] = (),
    ) -> None:
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._settings, self._descriptors = settings, descriptors
        self._child = self._start()

    def keep(self) -> None:
        """Start another one if this one has died."""
        if self._child.poll() is not None and time.monotonic() > self._started + RESTART_DELAY:
            self._end()
            self._child = self._start()

    def close(self) -> None:
        self._child.kill()
        self._end()

    def _start(self) -> "subprocess.Popen[str]":
        self._started = time.monotonic()
        child = subprocess.Popen(
            self._command,
            pass_fds=self._descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is the logger's to answer
            text=True,
        )
        assert child.stdin is not None
        child.stdin.write(f"{json.dumps(self._settings)}\n")
        child.stdin.flush()
        return child

    def _end(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()
