"""What a build needs besides the sources: what is compiled, and where the project's home is.

The extension is C for Python's stable ABI: one wheel per processor serves every Python from 3.11 on. Its
compiler is the `ziglang` wheel, which compiles for other processors, too: set _PYTHON_HOST_PLATFORM to
linux-aarch64, as for other tools that cross-build. It makes the eBPF objects for hosts without a compiler,
too: they are the same on every processor.

The home is the URL of the repository that a distribution is built from. Where that is known, the README's
links lead there: a package index has none of the files beside it. Where it is not, as in a copy without
`origin`, the links become plain words. A source distribution was told.
"""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from email import message_from_bytes
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

EXTENSION = "hardworker/_ring.abi3.so"
_SOURCES = ("hardworker/module.c", "hardworker/ring.c", "hardworker/assembly.c")
_GLIBC = "2.17"  # the oldest that there is for both processors; every distribution since 2014 has it
OBJECTS = "ebpf/loaded"
_MACHINES = ("x86_64", "aarch64")
# Without the compiler's own run-time library, which it would build at first.
_FLAGS = (
    "-O2",
    "-s",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-nostdlib",
    "-lc",
    "-Wall",
    "-Wextra",
    "-Werror",
)

_RELATIVE = re.compile(r"(!?)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")


_PLACES = {
    "Repository": "",
    "Documentation": "/blob/HEAD/docs",
    "Changelog": "/blob/HEAD/CHANGELOG.md",
    "Issues": "/issues",
}


class CompilingHook(BuildHookInterface[Any]):
    """Compiles what is C: into a wheel, or beside its source for an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        system, _, machine = sysconfig.get_platform().partition("-")
        if system != "linux" or machine not in _MACHINES or not _has_stable_abi():
            return  # nobody reads a ring there, or attaches; all else works
        package, build = Path(self.root, "src/midstream"), Path(self.root, "build")
        target = package if version == "editable" else build / machine / "midstream"
        compile_extension(package, target / EXTENSION, machine, build)
        compile_objects(package / "ebpf", target / OBJECTS, build)
        if version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-manylinux_{_GLIBC.replace('.', '_')}_{machine}"
            for path in (target / EXTENSION, *(target / OBJECTS).glob("*.o")):
                build_data["force_include"][str(path)] = f"midstream/{path.relative_to(target)}"


class HomeHook(MetadataHookInterface):
    """Sets readme and urls."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        if (built := root / "PKG-INFO").exists():
            told = message_from_bytes(built.read_bytes())
            text = str(told.get_payload())
            urls = dict(each.split(", ", 1) for each in told.get_all("Project-URL", ()))
        else:
            home = _home(root)
            text = described((root / "README.md").read_text(encoding="utf-8"), home)
            urls = {name: home + path for name, path in _PLACES.items() if home}
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls


def _has_stable_abi() -> bool:
    """Is this a Python of 64 bits, with its lock?"""
    return sys.maxsize > 2**32 and not sysconfig.get_config_var("Py_GIL_DISABLED")


def compile_extension(package: Path, target: Path, machine: str, build: Path) -> None:
    """Raises SystemExit if the compiler refuses, or if Python's headers are missing."""
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        sys.exit(
            f"midstream: {headers}/Python.h is missing: install Python's headers (Debian: python3-dev), or "
            "midstream from a wheel, which needs none"
        )
    # Debian's pyconfig.h includes that of the processor, from a folder which the compiler does not look into.
    # Processors of 64 bits do not differ in what is configured there.
    configured = build / f"include/{machine}-linux-gnu/python{sysconfig.get_python_version()}/pyconfig.h"
    configured.parent.mkdir(parents=True, exist_ok=True)
    configured.write_text(f'#include "{sysconfig.get_config_h_filename()}"\n')
    places = (f"-I{headers}", "-idirafter", str(build / "include"))
    arguments = (*_FLAGS, "-target", f"{machine}-linux-gnu.{_GLIBC}", *places)
    _compile([*arguments, *(str(package / name) for name in _SOURCES)], target, build)


def compile_objects(sources: Path, target: Path, build: Path) -> None:
    """midstream's own objects, into a folder."""
    spec = importlib.util.spec_from_file_location("clang", sources / "clang.py")
    assert spec and spec.loader
    clang = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clang)
    found = importlib.util.find_spec("ziglang")
    assert found and found.origin
    for name in clang.PROGRAMS:
        folders = (sources / "loaded", Path())
        arguments = clang.arguments(name, Path(found.origin).parent, folders)
        _compile(arguments, target / f"{name}.o", build, folder=sources)


def _compile(arguments: list[str], target: Path, build: Path, folder: Path | None = None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", *arguments, "-o", str(unfinished)],
        env={"ZIG_GLOBAL_CACHE_DIR": str(build / "zig"), **os.environ},
        cwd=folder,
        check=True,
    )
    unfinished.replace(target)  # a process that has the old one mapped keeps it


def described(readme: str, home: str) -> str:
    """The README with links that lead somewhere, and pictures that are found, wherever it is read."""

    def absolute(link: re.Match[str]) -> str:
        mark, text, path = link.groups()
        return f"{mark}[{text}]({home}/{'raw' if mark else 'blob'}/HEAD/{path})" if home else text

    return _RELATIVE.sub(absolute, readme)


def address(remote: str) -> str:
    """The URL at which a browser finds a remote repository, without a password; "" if it is a folder."""
    if remote.startswith("."):
        return ""
    parts = urlsplit(remote if "://" in remote else f"ssh://{remote.replace(':', '/', 1)}")
    if parts.scheme not in ("https", "http", "ssh", "git") or not parts.hostname:
        return ""
    port = f":{parts.port}" if parts.port and parts.scheme in ("https", "http") else ""
    return f"https://{parts.hostname}{port}{parts.path.removesuffix('/').removesuffix('.git')}"


def _home(root: Path) -> str:
    if not (root / ".git").exists():  # else it may lie in another project's
        return ""
    try:
        remote = subprocess.run(
            ["git", "-C", str(root), "remote", "get-url", "origin"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return address(remote.stdout.strip())
