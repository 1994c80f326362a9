"""The kernel, its eBPF, this process's rights, and the compiler."""

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from midstream.doctor.finding import Finding, fault, ok, unknown, warning
from midstream.doctor.repair import sysctl
from midstream.doctor.subject import Subject
from midstream.ebpf import compiler, libbpf, objects, pins
from midstream.errors import KernelError

OLDEST = (6, 1)
OLDEST_LIBBPF = (1, 0)

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_PERFMON": 38, "CAP_BPF": 39}
"""What attaching and probing need, by their bit (linux/capability.h)."""

_SYS_ADMIN = 21  # contains CAP_BPF and CAP_PERFMON


@dataclass(frozen=True, slots=True)
class KernelState:
    """supports: feature → whether the kernel has it, None if this process may not ask. lockdown: the mode,
    "" if the kernel has none. libbpf, compiler: their version, "" if missing and nothing replaces it.
    jit: net.core.bpf_jit_enable, None where it cannot be read, as in a network namespace. distribution: ID
    and ID_LIKE of /etc/os-release.
    """

    release: str
    bpffs: bool
    supports: dict[str, bool | None]
    capabilities: int
    lockdown: str
    libbpf: str
    compiler: str
    jit: int | None
    distribution: tuple[str, ...]


def read() -> KernelState:
    try:
        library = libbpf.version()
        supports = libbpf.features()
    except KernelError:
        library, supports = "", {}
    return KernelState(
        release=platform.release(),
        bpffs=pins.is_bpffs(Path("/sys/fs/bpf")),
        supports=supports,
        capabilities=_capabilities(),
        lockdown=_lockdown(),
        libbpf=library,
        compiler=_compiler(),
        jit=_jit(),
        distribution=_distribution(),
    )


def check(kernel: KernelState, subject: Subject) -> Iterator[Finding]:
    yield _check_release(kernel.release)
    if not subject.has_program:
        return
    yield _check_features(kernel)
    yield _check_capabilities(kernel.capabilities)
    yield _check_bpffs(kernel.bpffs, subject)
    yield _check_libbpf(kernel)
    yield _check_compiler(kernel.compiler)
    if kernel.jit == 0:
        yield warning(
            "JIT",
            "off: programs are interpreted, several times slower",
            "on",
            sysctl("net/core/bpf_jit_enable", value=1),
        )
    if kernel.lockdown == "confidentiality":
        yield warning(
            "lockdown",
            "the kernel is locked down (confidentiality): it refuses programs that read its memory",
            "none or integrity",
            "lockdown=integrity on the kernel's command line, if `midstream attach` is refused",
        )


def _check_release(release: str) -> Finding:
    if _numbers(release) >= OLDEST:
        return ok("kernel", f"Linux {release}")
    return fault("kernel", f"Linux {release}", "6.1 or newer", "install a newer kernel")


def _check_features(kernel: KernelState) -> Finding:
    missing = [name for name, supported in kernel.supports.items() if supported is False]
    if missing:
        return fault(
            "eBPF",
            f"this kernel lacks {', '.join(missing)}",
            "XDP, tc and ring buffers",
            "boot a distribution's kernel, or build one with them",
        )
    if not kernel.supports or None in kernel.supports.values():
        return unknown("eBPF", "what this kernel's eBPF has only root may ask", "run as root")
    return ok("eBPF", ", ".join(kernel.supports))


def _check_capabilities(effective: int) -> Finding:
    if effective >> _SYS_ADMIN & 1:
        effective |= 1 << CAPABILITIES["CAP_BPF"] | 1 << CAPABILITIES["CAP_PERFMON"]
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if not missing:
        return ok("capabilities", ", ".join(CAPABILITIES))
    return warning(
        "capabilities",
        f"this process lacks {', '.join(missing)}",
        "all of " + ", ".join(CAPABILITIES),
        "run as root, else some checks and `midstream attach` cannot work",
    )


def _check_bpffs(mounted: bool, subject: Subject) -> Finding:
    if mounted or not Path(subject.config.network.pins).is_relative_to("/sys/fs/bpf"):
        return ok("bpffs", subject.config.network.pins)
    return fault("bpffs", "nothing is mounted on /sys/fs/bpf", "a bpffs", "mount -t bpf bpf /sys/fs/bpf")


def _check_libbpf(kernel: KernelState) -> Finding:
    found = kernel.libbpf
    if found and _numbers(found) >= OLDEST_LIBBPF:
        return ok("libbpf", found)
    advice = (
        "apt-get install libbpf1"
        if "debian" in kernel.distribution
        else "install the package of this distribution that has libbpf.so.1"
    )
    return fault("libbpf", found or "libbpf.so.1 is missing", "1.0 or newer", advice)


def _check_compiler(found: str) -> Finding:
    if found:
        return ok("compiler", found)
    return fault("compiler", "missing", "ziglang", "pip install 'midstream[compiler]'")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _compiler() -> str:
    if version := compiler.installed():
        return f"ziglang {version}"
    return "none, so midstream's own objects serve" if objects.are_brought() else ""


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _lockdown() -> str:
    """The word in brackets: `none [integrity] confidentiality`."""
    try:
        found = re.search(r"\[(\w+)\]", Path("/sys/kernel/security/lockdown").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def _distribution() -> tuple[str, ...]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ()
    return (release["ID"], *release.get("ID_LIKE", "").split())


def _jit() -> int | None:
    try:
        return int(Path("/proc/sys/net/core/bpf_jit_enable").read_text())
    except OSError:
        return None
