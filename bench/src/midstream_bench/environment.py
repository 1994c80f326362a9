"""On what something was measured."""

import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from midstream_bench.middlewares import programs

_PACKAGES = (
    "midstream",
    "ziglang",
    "numpy",
    "uvloop",
    "pyzmq",
    "eclipse-zenoh",
    "nats-py",
    "paho-mqtt",
    "cyclonedds",
)
_SETTINGS = {
    "congestion control": "/proc/sys/net/ipv4/tcp_congestion_control",
    "busy_poll": "/proc/sys/net/core/busy_poll",
    "rmem": "/proc/sys/net/ipv4/tcp_rmem",
    "governor": "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "SMT": "/sys/devices/system/cpu/smt/active",
    "clock source": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "mitigations": "/sys/devices/system/cpu/vulnerabilities/spectre_v2",
}


def describe() -> dict[str, object]:
    """Kernel, CPU, versions and settings, as they are now."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": _is_virtual(),
        "memory": _found(r"^MemTotal:\s+(.*)$", "/proc/meminfo"),
        "python": sys.version.split()[0],
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "programs": {
            name: found
            for name, flag in (("nats-server", "-v"), ("mosquitto", "-h"))
            if (found := _says(name, flag))
        },
        "settings": {
            name: text for name, path in _SETTINGS.items() if (text := " ".join(_read(path).split()))
        },
    }


def _cpu() -> str:
    return _found(r"^(?:model name|Model)\s*:\s*(.*)$", "/proc/cpuinfo") or platform.machine()


def _is_virtual() -> bool:
    return bool(re.search(r"^flags.*\bhypervisor\b", _read("/proc/cpuinfo"), re.MULTILINE))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _says(name: str, flag: str) -> str:
    """The version number in the first line that a program prints."""
    path = programs.find(name)
    if path is None:
        return ""
    said = subprocess.run([path, flag], capture_output=True, text=True, check=False, timeout=10)
    found = re.search(r"\d+\.\d+[\w.]*", said.stdout + said.stderr)
    return found[0] if found else ""


def _found(pattern: str, path: str) -> str:
    found = re.search(pattern, _read(path), re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
