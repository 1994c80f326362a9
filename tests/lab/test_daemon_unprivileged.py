"""The daemon with the rights that its systemd unit gives: an ordinary user's, and four capabilities."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.triangle import PINS, Program, wait_until

from midstream import key, network
from midstream.daemon import status
from midstream.ebpf import attachment
from midstream.lab import Lab, daemons, hosts

LAB = {"sensors": 1, "bare": True}
NOBODY = 65534
RIGHTS = ("bpf", "perfmon", "net_admin", "net_raw")
BITS = 1 << 39 | 1 << 38 | 1 << 12 | 1 << 13  # linux/capability.h

# Becomes nobody with these rights alone, and then a command. Sources, interpreter and test folder may lie
# where nobody may look, as in root's home; in the mounts of this process alone, such folders are replaced by
# ones that may be passed and hold the same.
LAUNCHER = """
import os, sys
from pathlib import Path
from midstream.lab.enter import MS_BIND, MS_REC, mount

def open_up(folder):
    old = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    entries = list(os.scandir(old))
    mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
    for entry in entries:
        place = folder / entry.name
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry.name, dir_fd=old))
            continue
        place.mkdir() if entry.is_dir() else place.touch()
        mount(f"/proc/self/fd/{old}/{entry.name}", str(place), "", MS_BIND | MS_REC)

rights, places, os.environ["MIDSTREAM_CACHE"], *command = sys.argv[1:]
for place in map(Path, places.split(":")):
    for folder in reversed(place.parents):
        if not folder.stat().st_mode & 1:
            open_up(folder)
kept = ",".join(["-all", *(f"+{right}" for right in rights.split(","))])
os.execvp("setpriv", [
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
    f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}", *command,
])
"""


def unprivileged(lab: Lab, folder: Path, rights: tuple[str, ...], *arguments: str | Path) -> Program:
    """`midstream ARGUMENTS…` on the hardworker, by nobody with these rights."""
    places = (Path(sys.prefix), Path(sys.base_prefix), Path(network.__file__), folder / "config.toml")
    launcher = [sys.executable, "-P", "-c", LAUNCHER, ",".join(rights), ":".join(map(str, places))]
    launcher.append(str(folder / "cache"))
    return Program(lab, "hardworker", folder, arguments, launcher)


def facts(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


@pytest.fixture
def folder(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """What tmpfiles and systemd make for the user: configuration, key, state, cache, and a folder of pins."""
    if not (lab.run_dir / "key").exists():
        key.make(lab.run_dir / "key")
    shutil.copy(lab.run_dir / "key", tmp_path / "key")  # mode 0600 as well
    pins = PINS / "nobody"
    pins.mkdir(parents=True)
    (tmp_path / "config.toml").write_text(
        f'role = "hardworker"\nconst = "state/const.toml"\n[hardworker]\nspool = "state/spool.db"\n'
        f'[network]\ninterface = "eth0"\npins = "{pins}"\n'
        f'[daemon]\nkey = "key"\nname = "hardworker"\nsocket = "{tmp_path}/run/daemon.sock"\n'
    )
    for name in ("state", "run", "cache"):
        (tmp_path / name).mkdir()
    for path in (pins, *tmp_path.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    (tmp_path / "config.toml").chmod(0o644)
    mode = Path("/sys/fs/bpf").stat().st_mode
    Path("/sys/fs/bpf").chmod(mode & 0o7777 | 0o001)
    yield tmp_path
    Path("/sys/fs/bpf").chmod(mode & 0o7777)
    shutil.rmtree(pins)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rights", "settings", "words"),
    [
        (RIGHTS[:3], "", "lacks CAP_NET_RAW"),
        (RIGHTS, "period = 0.01\n", "napi_defer_hard_irqs: cannot be set"),
    ],
    ids=["no pings", "a period"],
)
def test_what_is_not_permitted_is_named(
    lab: Lab, folder: Path, rights: tuple[str, ...], settings: str, words: str
) -> None:
    topology = hosts.topology(lab.hosts, tos=104, port=12345, mtu=1500, size=1024)
    network.write(folder / "state" / "const.toml", topology, "a test")
    (folder / "state" / "const.toml").chmod(0o644)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("[hardworker]\n", f"[hardworker]\n{settings}"))
    ended = unprivileged(lab, folder, rights, "attach", "hardworker", "--config", config).result()
    assert ended.code == 4
    assert words in ended.err and "Traceback" not in ended.err
    assert list((PINS / "nobody").iterdir()) == []


@pytest.mark.slow
def test_four_capabilities_are_enough(lab: Lab, folder: Path) -> None:
    """It explores, writes, pins, compiles, attaches, and sends the data another way when no logger serves."""
    for name in ("sensor", "logger"):
        daemons.launch(lab, name)
    program = unprivileged(lab, folder, RIGHTS, "daemon", "--config", folder / "config.toml")
    try:
        program.wait_for("in force")
        told = facts(program.process.pid)
        assert told["Uid"].split() == [str(NOBODY)] * 4
        assert all(int(told[name], 16) == BITS for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
        state = status.ask(folder / "run" / "daemon.sock")
        assert state and (state["state"], state["program"]) == ("working", "native")
        assert lab.call("hardworker", attachment.find, "hardworker", PINS / "nobody" / "hardworker")
        const = folder / "state" / "const.toml"
        assert const.stat().st_uid == NOBODY and network.load(const).logger.mac == lab.host("logger").mac
        program.wait_for("destination=spool")
        state = status.ask(folder / "run" / "daemon.sock")
        assert state and state["spool"] == "running"
        place = folder / "run" / "spool.pid"
        wait_until(lambda: bool(place.read_text()), 20)  # it writes its number itself
        spool = int(place.read_text())
        assert facts(spool)["Uid"].split() == [str(NOBODY)] * 4
        # It drops what it was given, and only then is it the spool.
        wait_until(
            lambda: all(int(facts(spool)[name], 16) == 0 for name in ("CapPrm", "CapEff", "CapAmb")), 10
        )
        ended = program.end()
        os.kill(spool, signal.SIGTERM)
    finally:
        program.process.kill()
        program.process.wait()
    assert ended.code == 0 and "Traceback" not in ended.err
