"""Debian's kernels, downloaded and unpacked into a folder and never installed."""

import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from midstream.errors import LabError

PACKAGE = "linux-image-amd64"

_PARTS = re.compile(r"linux-(image|binary|modules|base)-\d")  # from 7.0 on a kernel is several packages
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Release:
    """A kernel of Debian's archive: a name for it, and the suite that has it."""

    name: str
    suite: str


OLDEST = Release("6.1", "bookworm")
RELEASES = {
    release.name: release
    for release in (OLDEST, Release("6.12", "trixie"), Release("newest", "trixie-backports"))
}
"""The oldest that midstream supports, one between, and the newest at hand."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel."""

    version: str
    image: Path
    modules: Path

    def with_dependencies(self, names: Sequence[str]) -> list[str]:
        """Paths (relative to the modules' folder) of the modules and of all that they need.

        What is built into the kernel is no module.
        """
        needs: dict[str, list[str]] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
        by_name = {Path(path).name.partition(".")[0]: path for path in needs}
        chosen = {by_name[name] for name in names if name in by_name}
        return sorted(chosen.union(*(needs[path] for path in chosen)))

    def copy_modules(self, names: Sequence[str], folder: Path) -> None:
        """The modules and all that they need into another folder, for a `modprobe` that unpacks nothing."""
        for module in self.with_dependencies(names):
            content = (self.modules / module).read_bytes()
            target = folder / module.removesuffix(".xz")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(lzma.decompress(content) if module.endswith(".xz") else content)
        dependencies = (self.modules / "modules.dep").read_text()
        (folder / "modules.dep").write_text(dependencies.replace(".ko.xz", ".ko"))


def get(cache: Path, release: Release = OLDEST) -> Kernel:
    """The kernel in the cache folder, downloaded if it is not there. Raises LabError."""
    folder = cache / release.name
    return _find(folder) or _fetch(folder, release)


def required(program: str, package: str) -> str:
    """The path of a program. Raises LabError that names the Debian package."""
    path = shutil.which(program)
    if path is None:
        raise LabError(f"{program} is missing; install it with: apt-get install {package}")
    return path


def _find(folder: Path) -> Kernel | None:
    for modules in (folder / "lib" / "modules").glob("*"):
        for image in (modules / "vmlinuz", folder / "boot" / f"vmlinuz-{modules.name}"):
            if image.exists() and (modules / "modules.dep").exists():
                return Kernel(modules.name, image, modules)
    return None


def _fetch(folder: Path, release: Release) -> Kernel:
    """Download with apt, whose sources and lists of this machine stay as they are, and unpack."""
    depmod = required("depmod", "kmod")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        settings = _apt_settings(scratch, release)
        _output(["apt-get", "--quiet", "update"], settings)
        listing = _output(["apt-cache", "depends", "--important", "--recurse", PACKAGE], settings)
        packages = [line for line in listing.splitlines() if _PARTS.match(line)]
        if not packages:
            raise LabError(f"{PACKAGE} of Debian's {release.suite} leads to no kernel")
        print(
            f"vm: downloading {packages[0]} to {folder} (once; it is unpacked, not installed)",
            file=sys.stderr,
        )
        downloads, unpacked = scratch / "downloads", scratch / "unpacked"
        downloads.mkdir()
        _output(["apt-get", "--quiet", "download", *packages], settings, folder=downloads)
        for package in downloads.glob("*.deb"):
            _output(["dpkg", "-x", str(package), str(unpacked)])
        # Newer packages name /usr/lib, and not every depmod looks there.
        if not (unpacked / "lib").exists():
            (unpacked / "lib").symlink_to("usr/lib")
        for modules in (unpacked / "lib" / "modules").iterdir():
            _output([depmod, "--basedir", str(unpacked), modules.name])
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
    kernel = _find(folder)
    if kernel is None:
        raise LabError(f"{', '.join(packages)} hold no kernel; they were unpacked under {folder}")
    return kernel


def _apt_settings(folder: Path, release: Release) -> dict[str, str]:
    """The environment in which apt knows that suite alone, and keeps what it knows in the folder."""
    for below in ("lists/partial", "archives/partial", "sources", "empty"):
        (folder / "apt" / below).mkdir(parents=True)
    source = f"deb [signed-by={_KEYRING}] {_mirror()} {release.suite} main\n"
    (folder / "apt" / "sources" / "debian.list").write_text(source)
    settings = folder / "apt" / "apt.conf"
    settings.write_text(
        f'Dir::State "{folder}/apt"; Dir::State::status "/dev/null"; Dir::Cache "{folder}/apt";\n'
        f'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{folder}/apt/sources";\n'
        f'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "{folder}/apt/empty";\n'
        # apt would drop its rights to read the folder and complain when it cannot.
        'APT::Sandbox::User "root"; Acquire::Languages "none";\n'
    )
    return {"APT_CONFIG": str(settings)}


def _mirror() -> str:
    """Where this machine gets Debian from, whether or not it has asked there yet."""
    command = ["apt-get", "indextargets", "--no-release-info", "--format", "$(COMPONENT) $(REPO_URI)"]
    for line in _output(command).splitlines():
        component, address = line.split()
        if component == "main" and address.rstrip("/").endswith("/debian"):
            return address
    raise LabError("apt's sources name no Debian archive; the virtual machine needs a Debian host")


def _output(
    command: Sequence[str], settings: dict[str, str] | None = None, *, folder: Path | None = None
) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(settings or {})},
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        raise LabError(f"{command[0]} is missing; the virtual machine needs a Debian host") from None
    except subprocess.CalledProcessError as error:
        raise LabError(f"'{shlex.join(command)}' failed: {error.stderr.strip()}") from None
    return done.stdout
