"""Runs a command inside a virtual machine with Debian's 6.1 kernel, the oldest that midstream supports.

    python tests/vm/run.py -- uname -r

The guest sees the host's whole file system (9p, read-only, with a layer in memory on top, so that it may
write anything and change nothing), runs the command as root in the same working directory, with a BPF file
system on /sys/fs/bpf, no network but ``lo``, and no other process. Output comes back as it is written and the
exit status is the command's; 124 if the time ran out, 125 if the machine did not get as far as the command.

The kernel is Debian's package, downloaded and unpacked under ``.cache/vm`` and never installed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "vm"
KERNEL_PACKAGE = "linux-image-amd64"
KERNEL_SERIES = "6.1."
# What it takes to reach the host's files and to report back; everything else is loaded on demand.
PRELOAD = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
PASSED_ON = ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV", "LANG")
TIMED_OUT = 124
NOT_STARTED = 125


class VmError(Exception):
    """The virtual machine cannot be prepared; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    version: str
    image: Path
    modules: Path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a command on Debian's 6.1 kernel.")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds (default: %(default)s)")
    parser.add_argument("--memory", default="2G", help="of the machine (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=2, help="of the machine (default: %(default)s)")
    parser.add_argument("--console", action="store_true", help="show the kernel's messages afterwards")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        return run(
            options.command,
            timeout=options.timeout,
            memory=options.memory,
            cpus=options.cpus,
            console=options.console,
        )
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return NOT_STARTED


def run(
    command: Sequence[str],
    *,
    timeout: float = 600.0,
    memory: str = "2G",
    cpus: int = 2,
    console: bool = False,
) -> int:
    """Run ``command`` as root on the old kernel and return its exit status; its output goes to stdout."""
    qemu = required("qemu-system-x86_64", "qemu-system-x86")
    kernel = find_kernel() or fetch_kernel()
    with tempfile.TemporaryDirectory(prefix="midstream-vm-") as name:
        folder = Path(name)
        log, status = folder / "console", folder / "status"
        initramfs = pack_initramfs(folder / "initramfs", kernel, command)
        machine = [
            qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
            "-machine", "q35", "-cpu", "max", "-smp", str(cpus), "-m", memory,
            "-accel", "tcg,tb-size=512",  # works everywhere; nested KVM does not
            "-kernel", str(kernel.image), "-initrd", str(initramfs),
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
            "-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on",
            "-chardev", f"file,id=console,path={log}", "-serial", "chardev:console",
            "-device", "virtio-serial-pci",
            "-chardev", "stdio,id=output,signal=off", "-device", "virtserialport,chardev=output,nr=1",
            "-chardev", f"file,id=status,path={status}", "-device", "virtserialport,chardev=status,nr=2",
        ]  # fmt: skip
        sys.stdout.flush()
        # Standard input must stay open: at its end QEMU would disconnect the port that carries the output.
        with subprocess.Popen(machine, stdin=subprocess.PIPE) as process:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                show(log)
                print(f"vm: stopped after {timeout:g} s", file=sys.stderr)
                return TIMED_OUT
            except KeyboardInterrupt:
                process.kill()  # the signal may have been for this process alone
                raise
        reported = status.read_text() if status.exists() else ""
        if console or not reported.strip():
            show(log)
        if not reported.strip():
            print("vm: the machine ended before the command did; its console is above", file=sys.stderr)
            return NOT_STARTED
        return int(reported)


def find_kernel() -> Kernel | None:
    """The newest kernel of the series that is already in the cache."""
    images = sorted(CACHE.glob(f"boot/vmlinuz-{KERNEL_SERIES}*"), key=lambda path: path.stat().st_mtime)
    for image in reversed(images):
        version = image.name.removeprefix("vmlinuz-")
        modules = CACHE / "lib" / "modules" / version
        if (modules / "modules.dep").exists():
            return Kernel(version, image, modules)
    return None


def fetch_kernel() -> Kernel:
    """Download Debian's kernel package and unpack it under the cache folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    listing = output(["apt-cache", "depends", "--important", KERNEL_PACKAGE])
    names = [line.split()[-1] for line in listing.splitlines() if "Depends: linux-image-" in line]
    if not names or KERNEL_SERIES not in names[0]:
        found = names[0] if names else "nothing (run 'apt-get update' first)"
        raise VmError(f"{KERNEL_PACKAGE} leads to {found}, expected a {KERNEL_SERIES}x kernel (Debian 12)")
    print(f"vm: downloading {names[0]} to {CACHE} (once; it is unpacked, not installed)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        # apt would drop its rights to read the folder and complain when it cannot.
        download = ["apt-get", "-o", "APT::Sandbox::User=root", "--quiet", "download", names[0]]
        output(download, folder=Path(name))
        for package in Path(name).glob("*.deb"):
            output(["dpkg", "-x", str(package), str(CACHE)])
    depmod = required("depmod", "kmod")
    output([depmod, "--basedir", str(CACHE), names[0].removeprefix("linux-image-")])
    kernel = find_kernel()
    if kernel is None:
        raise VmError(f"{names[0]} was unpacked under {CACHE}, but holds no kernel; remove the folder")
    return kernel


def pack_initramfs(archive: Path, kernel: Kernel, command: Sequence[str]) -> Path:
    """Write the file system that the guest boots from: busybox, a few modules, what to do."""
    busybox = required("busybox", "busybox-static")
    if b"ld-linux" in Path(busybox).read_bytes()[:8192]:
        raise VmError(f"{busybox} needs libraries; install the Debian package busybox-static")
    tree = archive.with_suffix(".d")
    for folder in ("bin", "dev", "proc", "sys"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin" / "busybox")
    shutil.copy(HERE / "init.sh", tree / "init")
    shutil.copy(HERE / "start.sh", tree / "start")
    (tree / "init").chmod(0o755)
    settings = {"KERNEL": kernel.version, "MODULES": str(kernel.modules), "PRELOAD": " ".join(PRELOAD)}
    (tree / "settings").write_text(
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    )
    exports = [f"export {name}={shlex.quote(os.environ[name])}" for name in PASSED_ON if name in os.environ]
    steps = [*exports, f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(command)}"]
    (tree / "command").write_text("\n".join(steps) + "\n")
    inside = tree / "lib" / "modules" / kernel.version
    for module in with_dependencies(kernel, PRELOAD):
        (inside / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.modules / module, inside / module)
    shutil.copy(kernel.modules / "modules.dep", inside)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = subprocess.run(
        [busybox, "cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(), capture_output=True, check=True
    )
    archive.write_bytes(packed.stdout)
    return archive


def with_dependencies(kernel: Kernel, names: Sequence[str]) -> list[str]:
    """Paths (relative to the modules' folder) of the modules and of all that they need."""
    needs: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).stem: path for path in needs}
    chosen = {by_name[name] for name in names if name in by_name}
    return sorted(chosen.union(*(needs[path] for path in chosen)))


def required(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise VmError(f"{program} is missing; install it with: apt-get install {package}")
    return path


def output(command: Sequence[str], *, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise VmError(f"{command[0]} is missing; these tests need a Debian machine") from None
    except subprocess.CalledProcessError as error:
        raise VmError(f"'{shlex.join(command)}' failed: {error.stderr.strip()}") from None
    return done.stdout


def show(log: Path) -> None:
    if log.exists():
        sys.stderr.write(log.read_text(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())
