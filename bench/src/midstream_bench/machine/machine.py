"""A virtual machine that runs a kernel of Debian's over this machine's own files.

The guest sees the host's whole file system (9p, read-only, with a layer in memory on top, so that it may
write anything and change nothing) and runs one command as root, in the same working directory, with a BPF
file system on /sys/fs/bpf. Without more arguments it has no network but ``lo``.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

from midstream.closing import Closing
from midstream.errors import LabError
from midstream_bench.machine.kernel import OLDEST, Kernel, Release, get, required

HERE = Path(__file__).parent
TIMED_OUT = 124
NOT_STARTED = 125

_KERNEL_PARAMETERS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "mitigations=off",
    "net.ifnames=0",
    "transparent_hugepage=never",  # what makes them works now and then, in a measured window or not
    "no_timer_check",  # a guest that gets no processor for a while finds no timer, and panics
)
# What it takes to reach the host's files and to report back; everything else is loaded on demand.
_PRELOAD = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
_PASSED_ON = ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "MIDSTREAM_CACHE", "XDG_CACHE_HOME")


class Machine(Closing):
    """A machine that boots when its context is entered, and is gone when it is left.

    cache: the folder in which kernels are kept. extra: more arguments for QEMU (devices; `-icount`).
    prefix: a program that executes QEMU, for example in a network namespace. output: where the command's
    output goes; None: this process's standard output. Raises LabError.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cache: Path,
        release: Release = OLDEST,
        memory: str = "2G",
        cpus: int = 2,
        cpu: str = "max",
        extra: Sequence[str] = (),
        prefix: Sequence[str] = (),
        output: IO[Any] | None = None,
    ) -> None:
        self._command = command
        self._cache = cache
        self._release = release
        self._hardware = ["-cpu", cpu, "-smp", str(cpus), "-m", memory]
        self._extra = extra
        self._prefix = prefix
        self._output = output

    def __enter__(self) -> Self:
        qemu = required("qemu-system-x86_64", "qemu-system-x86")
        kernel = get(self._cache, self._release)
        self._folder = tempfile.TemporaryDirectory(prefix="midstream-vm-")
        folder = Path(self._folder.name)
        self._log, self._status = folder / "console", folder / "status"
        try:
            initramfs = _pack_initramfs(folder / "initramfs", kernel, self._command)
            arguments = [
                *self._prefix,
                qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
                "-machine", "q35", *self._hardware,
                "-accel", "tcg,tb-size=512",  # works everywhere; nested KVM does not
                "-kernel", str(kernel.image), "-initrd", str(initramfs),
                "-append", " ".join(_KERNEL_PARAMETERS),
                "-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on",
                "-chardev", f"file,id=console,path={self._log}", "-serial", "chardev:console",
                "-device", "virtio-serial-pci",
                "-chardev", "stdio,id=output,signal=off", "-device", "virtserialport,chardev=output,nr=1",
                "-chardev", f"file,id=status,path={self._status}",
                "-device", "virtserialport,chardev=status,nr=2",
                *self._extra,
            ]  # fmt: skip
            sys.stdout.flush()
            # Standard input stays open: at its end QEMU would disconnect the port that carries the output.
            self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=self._output)
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self._folder.cleanup()

    def wait(self, timeout: float) -> int:
        """Wait for the command's end; its exit status, TIMED_OUT, or NOT_STARTED if the machine did not get
        as far."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        reported = self._status.read_text().strip() if self._status.exists() else ""
        return int(reported) if reported else NOT_STARTED

    @property
    def console(self) -> str:
        """The kernel's messages."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def _pack_initramfs(archive: Path, kernel: Kernel, command: Sequence[str]) -> Path:
    """Write the file system that the guest boots from: busybox, a few modules, what to do."""
    busybox = required("busybox", "busybox-static")
    if b"ld-linux" in Path(busybox).read_bytes()[:8192]:
        raise LabError(f"{busybox} needs libraries; install the Debian package busybox-static")
    tree = archive.with_suffix(".d")
    for folder in ("bin", "dev", "proc", "sys"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin" / "busybox")
    shutil.copy(HERE / "init.sh", tree / "init")
    shutil.copy(HERE / "start.sh", tree / "start")
    (tree / "init").chmod(0o755)
    settings = {"KERNEL": kernel.version, "MODULES": str(kernel.modules), "PRELOAD": " ".join(_PRELOAD)}
    (tree / "settings").write_text(
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    )
    exports = [f"export {name}={shlex.quote(os.environ[name])}" for name in _PASSED_ON if name in os.environ]
    steps = [*exports, f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(command)}"]
    (tree / "command").write_text("\n".join(steps) + "\n")
    kernel.copy_modules(_PRELOAD, tree / "lib" / "modules" / kernel.version)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = subprocess.run(
        [busybox, "cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(), capture_output=True, check=True
    )
    archive.write_bytes(packed.stdout)
    return archive
