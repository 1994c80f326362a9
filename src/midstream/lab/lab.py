"""`Lab`: the hosts of a built lab, and how to run something on one of them."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from midstream.errors import LabError
from midstream.lab import enter, namespaces, needs
from midstream.lab.hosts import SWITCH, LabHost, namespace

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Lab:
    """A lab that is up. Host names are `sensor`, `sensor-2`, …, `hardworker`, `logger`, and `switch`.

    Whatever runs on a host runs on that host's cores: the hardworker has one for itself.
    `kept` tells that `up` found this lab complete and left it as it was.
    """

    run_dir: Path
    hosts: tuple[LabHost, ...]
    kept: bool = True

    @property
    def config(self) -> Path:
        """config.toml, the same for all hosts."""
        return self.run_dir / "config.toml"

    @property
    def const(self) -> Path:
        """const.toml, the same for all hosts."""
        return self.run_dir / "const.toml"

    @property
    def sensors(self) -> tuple[LabHost, ...]:
        """The sensors, in the order of their numbers."""
        return tuple(host for host in self.hosts if host.name not in ("hardworker", "logger"))

    @property
    def hardworker_napi(self) -> int:
        """Process id of the kernel thread that does the hardworker's receive work (see `Meter`)."""
        return self.host("hardworker").napi

    def host(self, name: str) -> LabHost:
        """The host of that name. Raises LabError."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"no host {name} in the lab; there are: {', '.join(host.name for host in self.hosts)}")

    def popen(
        self, host: str, argv: Sequence[str | os.PathLike[str]], **kwargs: Any
    ) -> subprocess.Popen[Any]:
        """Start a program on `host`; `kwargs` as of subprocess.Popen.

        The process id is the program's own. The program gets SIGTERM when the thread that called `popen`
        ends, however it ends. A program that cannot be executed is reported on standard error and by exit
        code 126 or 127.
        """
        return subprocess.Popen(self._command(host, argv), **kwargs)

    def run(
        self, host: str, argv: Sequence[str | os.PathLike[str]], *, check: bool = False, **kwargs: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program on `host` to its end; `kwargs` as of subprocess.run. See `popen`."""
        return subprocess.run(self._command(host, argv), check=check, **kwargs)

    def call(self, host: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a forked child on `host`; return its result or raise its exception (pickled).

        The child has only the calling thread, so `function` must not need locks that another thread may hold.
        Raises LabError if the child dies, or cannot pickle what it has to say.
        """
        name, cpus = self._place(host)
        return namespaces.call(name, cpus, function, *args, **kwargs)

    def exec(self, host: str, argv: Sequence[str]) -> NoReturn:
        """Become a program on `host`: this process is replaced, and lives on. Raises LabError."""
        name, cpus = self._place(host)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            enter.enter(name)
        except OSError as error:
            raise LabError(needs.explain(error)) from None
        try:
            enter.execute(argv, cpus)
        except OSError as error:
            raise LabError(f"{argv[0]}: {error.strerror}") from None

    def _command(self, host: str, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        name, cpus = self._place(host)
        # -I -S: only the standard library, whatever the environment and the current directory hold.
        launcher = [
            sys.executable,
            "-I",
            "-S",
            enter.__file__,
            name,
            str(os.getpid()),
            ",".join(map(str, cpus)),
        ]
        return [*launcher, *(os.fspath(argument) for argument in argv)]

    def _place(self, host: str) -> tuple[str, tuple[int, ...]]:
        """Namespace and cores; the switch has the cores of all hosts but the hardworker."""
        return namespace(host), self.host("logger" if host == SWITCH else host).cpus
