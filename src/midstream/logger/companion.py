"""A process that works beside the logger, and lives as long as it."""

import json
import logging
import subprocess
import sys
import time
from contextlib import suppress

from midstream.logger.channel import Message

RESTART_DELAY = 1.0  # seconds from one start to the next

log = logging.getLogger("midstream.logger")


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
        self._module = module
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._settings, self._descriptors = settings, descriptors
        self._child: subprocess.Popen[str] | None = None
        self._refused = False
        self._start()

    def keep(self) -> None:
        """Start another one if this one has died, or could not be started."""
        dead = self._child is None or self._child.poll() is not None
        if dead and time.monotonic() > self._started + RESTART_DELAY:
            self._end()
            self._start()

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._end()

    def _start(self) -> None:
        self._started = time.monotonic()
        try:
            self._child = subprocess.Popen(
                self._command,
                pass_fds=self._descriptors,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                process_group=0,  # a terminal's Ctrl-C is the logger's to answer
                text=True,
            )
        except OSError as error:  # no process, memory or descriptor is left just now
            if not self._refused:
                log.warning("logger: %s cannot be started: %s; tried again", self._module, error.strerror)
            self._refused = True
            return
        self._refused = False
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it has died already
            self._child.stdin.write(f"{json.dumps(self._settings)}\n")
            self._child.stdin.flush()

    def _end(self) -> None:
        if self._child is None:
            return
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.wait()
