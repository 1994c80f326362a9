"""What the lab remembers between commands: a state file and a lock for the machine, and the run directory."""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

from midstream import config, network, streams
from midstream.errors import LabError
from midstream.lab.hosts import LabHost
from midstream.lab.needs import ProcessProgress
from midstream.network import Topology
from midstream.toml import literal

RUN_DIR = Path("/run/midstream-lab")
STATE = Path("/run/midstream-lab.json")
LOCK = Path("/run/midstream-lab.lock")
AUTHOR = "midstream lab"

_HEADER = f"# Written by {AUTHOR} up. Yours to change: kept until `{AUTHOR} down`.\n"


@dataclass(frozen=True)
class LabState:
    """A lab that is being built (no hosts yet) or was built. `parameters` are those of `up`."""

    run_dir: Path
    owns_run_dir: bool
    parameters: Mapping[str, object]
    hosts: tuple[LabHost, ...] = ()

    def save(self) -> None:
        document = asdict(self) | {"run_dir": str(self.run_dir)}
        document["hosts"] = [asdict(host) | {"ip": str(host.ip)} for host in self.hosts]
        new = STATE.with_suffix(".new")
        new.write_text(json.dumps(document, indent=1))
        new.replace(STATE)


def load() -> LabState | None:
    """The state of the machine's lab; None if there is none, or if its file makes no sense."""
    try:
        document = json.loads(STATE.read_text())
        hosts = tuple(
            LabHost(**host | {"ip": IPv4Address(host["ip"]), "cpus": tuple(host["cpus"])})
            for host in document["hosts"]
        )
        return LabState(Path(document["run_dir"]), document["owns_run_dir"], document["parameters"], hosts)
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def locked() -> Iterator[None]:
    """Only one `up` or `down` at a time, however slow the machine is. Raises LabError if the other hangs."""
    holder, pid = ProcessProgress(0), ""
    while True:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), LOCK.stat()):  # not a file that its last holder has removed
                break
        except (BlockingIOError, FileNotFoundError):
            pass
        before, pid = pid, os.read(lock, 20).decode()
        os.close(lock)
        if pid != before:
            holder = ProcessProgress(int(pid or 0))
        if holder.is_stuck:
            raise LabError(
                f"another `midstream lab`, process {pid}, holds {LOCK} and does nothing; end it first"
            )
        time.sleep(0.05)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        LOCK.unlink()
        os.close(lock)


def check_files(settings: Mapping[str, object], topology: Topology) -> None:
    """Raises ConfigError if config.toml or const.toml would be refused when read."""
    with TemporaryDirectory() as folder:
        _write(Path(folder), settings, topology)


def write_files(
    run_dir: Path, settings: Mapping[str, object], topology: Topology, *, bare: bool = False
) -> None:
    """Make the run directory with config.toml and, unless bare, const.toml. Raises LabError, ConfigError."""
    refuse_foreign_files(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _write(run_dir, settings, topology, bare=bare)
    except OSError as error:
        raise LabError(f"run directory {run_dir}: {error.strerror}; name another one") from None


def remove_files(run_dir: Path, *, whole: bool) -> None:
    """Remove the run directory if it is ours (`whole`), or else what we wrote to it."""
    if whole:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    for path in _files(run_dir):
        if _is_ours(path):
            path.unlink(missing_ok=True)


def refuse_foreign_files(run_dir: Path) -> None:
    """Raises LabError if the run directory holds a config.toml or const.toml that a lab did not write."""
    for path in _files(run_dir):
        if path.exists() and not _is_ours(path):
            raise LabError(f"{path} exists and was not written by the lab; name another run directory")


def _files(run_dir: Path) -> tuple[Path, Path]:
    return run_dir / "config.toml", run_dir / "const.toml"


def _is_ours(path: Path) -> bool:
    try:
        with path.open(errors="replace") as lines:
            return re.search(f"by ({AUTHOR}|midstream daemon)", lines.readline()) is not None
    except OSError:
        return False


def _write(folder: Path, settings: Mapping[str, object], topology: Topology, *, bare: bool = False) -> None:
    config_path, const_path = _files(folder)
    config_path.write_text(_HEADER + toml(settings))
    if not bare:
        network.write(const_path, topology, written_by=AUTHOR)
    for stream in streams.resolved(config.load(config_path), topology).values():
        stream.config.message_size(stream.topology.size)


def toml(settings: Mapping[str, object]) -> str:
    """A config.toml: keys, then tables."""
    lines = [f"{key} = {literal(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    for name, table in settings.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {literal(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"
