"""The programs of the demonstration: real child processes, each with the two files that it writes to."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from midstream.errors import LabError
from midstream.lab import Lab

TAIL = 12  # lines of a failed program's standard error that are shown

_READY = {"sensor": "sensor: connected", "hardworker": "hardworker: receiving", "logger": "logger: listening"}


class LabProgram:
    """`midstream …` on a host of the lab, or another program of the package. `name` is what messages about it
    call it; it begins with its role.

    It ends when this process does, however that happens (see Lab.popen), and it is no member of the
    terminal's process group: Ctrl-C reaches only the demonstration, which ends its programs in order.
    """

    def __init__(
        self, lab: Lab, host: str, *arguments: str, module: str = "midstream", name: str = ""
    ) -> None:
        self.name = name or host
        self._stdout = lab.run_dir / f"{self.name}.out"
        self._stderr = lab.run_dir / f"{self.name}.err"
        command = [sys.executable, "-P", "-m", module, *arguments]
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self._process = lab.popen(
                host, command, stdin=subprocess.PIPE, stdout=out, stderr=err, process_group=0
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def is_ready(self) -> bool:
        """Has it said so? Raises LabError if it ended instead."""
        self.check()
        return _READY[self._role] in _text(self._stderr)

    def go(self) -> None:
        """The line that `midstream sensor --wait` waits for."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.check()
            raise LabError(f"{self.name}: does not take its start") from None

    def check(self) -> None:
        """Raises LabError, with what it said last, if it ended before it was asked to or with an error."""
        code = self._process.poll()
        if code is not None and (code != 0 or self._role != "sensor"):
            raise self._failed(code)

    def stop(self) -> None:
        """Ask it to end in order."""
        self._process.send_signal(signal.SIGTERM)

    def result(self, timeout: float) -> dict[str, Any]:
        """Wait for its end, and return its closing summary.

        Raises LabError if it takes more than `timeout` seconds, fails, or says nothing that can be read.
        """
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: did not end within {timeout:g} s; {self._last_words()}") from None
        if code != 0:
            raise self._failed(code)
        try:
            result: dict[str, Any] = json.loads(_text(self._stdout))
        except ValueError:
            raise LabError(f"{self.name}: ended without a summary; {self._last_words()}") from None
        return result

    def end(self) -> None:
        """See that it is gone: SIGKILL, if it still runs."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    @property
    def _role(self) -> str:
        return self.name.partition("-")[0]

    def _failed(self, code: int) -> LabError:
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return LabError(f"{self.name}: ended {how}; {self._last_words()}")

    def _last_words(self) -> str:
        lines = _text(self._stderr).strip().splitlines()[-TAIL:]
        return "\n  ".join(["its last words:", *lines]) if lines else "it said nothing"


def _text(path: Path) -> str:
    return path.read_text(errors="replace")
