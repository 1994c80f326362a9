"""A host that systemd runs: a container with an init and a cable to a switch, on this machine's kernel.

A power cut is what it is: the cable goes down, and every process is killed at once. Only the disk stays.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from midstream.ebpf import loader
from midstream.network import Topology

BRIDGE = "ms-hosts"
BOOT = 60.0  # seconds until systemd has started everything
_WIRE = """
[Unit]
Description=The address of this host, and its bpffs
DefaultDependencies=no
Before=network.target systemd-tmpfiles-setup.service
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=sh -c 'until test -e /sys/class/net/{name}; do sleep 0.05; done'
ExecStart=ip address add {ip}/24 dev {name}
ExecStart=ip link set {name} up
# systemd does this by itself on a machine, and not in a container.
ExecStart=mkdir -p /sys/fs/bpf
ExecStart=mount -t bpf -o mode=700 bpf /sys/fs/bpf
ExecStart=sh -c 'cat /proc/sys/kernel/random/boot_id > /run/boot-id'

[Install]
WantedBy=sysinit.target
"""
# nspawn gives each boot an id by a mount in /proc. A unit with a /proc of its own would see the machine's, as
# if there had been no boot.
_BOOT_ID = """
[Service]
BindReadOnlyPaths=/run/boot-id:/proc/sys/kernel/random/boot_id
"""


class Machine:
    """A host of that name, on a disk of its own above the layers that all share."""

    def __init__(
        self, name: str, ip: str, mac: str, folder: Path, layers: list[Path], pass_all: Topology
    ) -> None:
        self.name, self.ip, self.mac = name, ip, mac
        self._folder, self._layers, self._pass_all = folder, layers, pass_all
        self.disk = folder / "disk"
        for part in (self.disk, folder / "changes", folder / "work"):
            part.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._mount()
        units = self.disk / "etc/systemd/system"
        (units / "wire.service").write_text(_WIRE.format(ip=ip, name=name))
        (units / "sysinit.target.wants").mkdir(exist_ok=True)
        (units / "sysinit.target.wants/wire.service").symlink_to("../wire.service")
        for unit in ("systemd-sysctl", "systemd-binfmt"):  # they are the machine's, not the container's
            (units / f"{unit}.service").symlink_to(os.devnull)
        (units / "midstream-logger.service.d").mkdir()
        (units / "midstream-logger.service.d/boot.conf").write_text(_BOOT_ID)
        (self.disk / "etc/hostname").write_text(f"{name}\n")

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def boot(self) -> None:
        """Switch it on; systemd is at work when this returns, and has not started everything yet."""
        assert self._process is None
        log = (self._folder / "console").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),  # with the tests, however these end
                    *("systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit"),
                    "--console=pipe",
                    *(f"--directory={self.disk}", f"--machine={self.name}", "--private-network"),
                    *("--capability=all", "--system-call-filter=bpf"),
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._has_init, BOOT, f"{self.name}: its init")
        self._plug()
        wait_until(lambda: self.run("systemctl", "show", check=False).returncode == 0, BOOT, "systemd")

    def _has_init(self) -> bool:
        console = (self._folder / "console").read_text(errors="replace")
        assert self._process and self._process.poll() is None, f"{self.name} did not boot:\n{console[-2000:]}"
        pid = self._process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                self._leader = int(child)
        return bool(self._leader)

    def settle(self) -> None:
        """Wait until systemd has started everything."""
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        failed = self.run("systemctl", "--failed", "--no-legend", "--plain").stdout
        assert state == "running", f"{self.name}: {state}\n{failed}"

    def run(
        self, *command: str, check: bool = True, timeout: float = 120, stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """A command of root's on this host."""
        ended = subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "--root", "--wd", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={"PATH": "/opt/midstream/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
        )
        assert not check or ended.returncode == 0, f"{self.name}: {command}:\n{ended.stdout}{ended.stderr}"
        return ended

    def shut_down(self) -> None:
        """As a person would."""
        self.run("systemctl", "poweroff", check=False)
        self._ended(60)

    def cut_power(self) -> None:
        assert self.is_up
        subprocess.run(["ip", "link", "set", f"{self.name}-port", "down"], check=True)
        os.kill(self._leader, signal.SIGKILL)
        self._ended(30)

    def scrap(self) -> None:
        """The end of it, whatever has happened before."""
        if self._process:
            self._process.send_signal(signal.SIGTERM) if not self._leader else os.kill(
                self._leader, signal.SIGKILL
            )
            self._ended(30)
        subprocess.run(["umount", "--lazy", str(self.disk)], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ended(self, seconds: float) -> None:
        process, self._process = self._process, None
        assert process
        try:
            process.wait(seconds)
        finally:
            process.kill()
            process.wait()
            self._leader = 0
            subprocess.run(["ip", "link", "del", f"{self.name}-port"], check=False, capture_output=True)

    def _mount(self) -> None:
        lower = ":".join(map(str, self._layers))
        options = f"lowerdir={lower},upperdir={self._folder / 'changes'},workdir={self._folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(self.disk)], check=True)

    def _plug(self) -> None:
        """A cable to the switch; veth needs no offloads and an XDP program at the other end."""
        port = f"{self.name}-port"
        for line in (
            f"ip link add {port} type veth peer name {self.name} address {self.mac}",
            f"ethtool -K {port} tx off tso off gso off gro on",
            f"ethtool -K {self.name} tx off tso off gso off gro on",
            f"ip link set {port} master {BRIDGE} up",
            f"ip link set {self.name} netns {self._leader}",
        ):
            subprocess.run(line.split(), check=True, capture_output=True)
        loader.attach_pass(port, self._pass_all)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until the condition held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)
    return time.monotonic() - began
