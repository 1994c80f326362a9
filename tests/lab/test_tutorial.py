"""docs/tutorial.md, block by block: its files are written and its commands typed as they stand there."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.lab.triangle import PATIENCE, wait_until

from midstream import lab
from midstream.lab import daemons

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
BLOCK = re.compile(r"^<!-- (file|run|start): (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    kind: str
    name: str
    text: str


BLOCKS = [Block(*found) for found in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))]


class Shell:
    """A person's folder and terminals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # As after `. .venv/bin/activate`.
        self._environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(self, command: str) -> str:
        ended = subprocess.run(
            ["sh", "-ec", command],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 0, f"{command}{ended.stdout}{ended.stderr}"
        return ended.stdout

    @contextmanager
    def started(self, name: str, command: str) -> Iterator[None]:
        """In a terminal of its own, and ended by Ctrl-C."""
        with (self.folder / f"{name}.said").open("w") as said:
            process = subprocess.Popen(
                ["sh", "-ec", f"exec {command}"],
                cwd=self.folder,
                env=self._environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            yield
            assert process.poll() is None, self.said(name)
            os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.said").read_text()


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    shell, out = Shell(tmp_path), {}
    assert [(block.kind, block.name) for block in BLOCKS] == [
        ("run", "hosts"),
        ("file", "config.toml"),
        ("start", "logger"),
        ("file", "application.py"),
        ("start", "application"),
        ("file", "imu.py"),
        ("run", "sensor"),
        ("run", "list"),
        ("run", "plot"),
        ("run", "down"),
    ]
    with ExitStack() as terminals:
        for kind, name, text in BLOCKS:
            if kind == "file":
                (tmp_path / name).write_text(text, encoding="utf-8")
            elif kind == "start":
                terminals.enter_context(shell.started(name, text))
                if name == "logger":
                    wait_until(lambda: "listening" in shell.said("logger"))
                    wait_until(lambda: daemons.is_logger_taken(lab.find()))
            else:
                if name == "down":
                    terminals.close()
                out[name] = shell.run(text)
                if name == "sensor":
                    wait_until(lambda: shell.said("application").count("\n") == 3)
                deadline = time.monotonic() + PATIENCE
                while name == "list" and "complete" not in out[name]:  # the word may take a second to come
                    assert time.monotonic() < deadline, out[name]
                    out[name] = shell.run(text)
    assert out["hosts"] == "/run/midstream-lab\n"
    assert [line.split()[0] for line in shell.said("application").splitlines()[:3]] == ["0", "1000", "2000"]
    assert "messages=3000" in out["sensor"]
    assert "clean=True" in out["sensor"]
    assert re.search(r"^ *1 +3,000 +192,000 .*complete$", out["list"], re.MULTILINE)
    assert (tmp_path / "imu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "midstream.db").exists()
    assert not lab.status().up
