"""Debian's 6.1 kernel, downloaded and unpacked into a folder and never installed."""

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
SERIES = "6.1."


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    version: str
    image: Path
    modules: Path

    def with_dependencies(self, names: Sequence[str]) -> list[str]:
        """Paths (relative to the modules' folder) of the modules and of all that they need."""
        needs: dict[str, list[str]] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
        by_name = {Path(path).stem: path for path in needs}
        chosen = {by_name[name] for name in names if name in by_name}
        return sorted(chosen.union(*(needs[path] for path in chosen)))


def get(cache: Path) -> Kernel:
    """The newest kernel of the series in the cache folder, downloaded if there is none. Raises LabError."""
    return _find(cache) or _fetch(cache)


def required(program: str, package: str) -> str:
    """The path of a program. Raises LabError that names the Debian package."""
    path = shutil.which(program)
    if path is None:
        raise LabError(f"{program} is missing; install it with: apt-get install {package}")
    return path


def _find(cache: Path) -> Kernel | None:
    images = sorted(cache.glob(f"boot/vmlinuz-{SERIES}*"), key=lambda path: path.stat().st_mtime)
    for image in reversed(images):
        version = image.name.removeprefix("vmlinuz-")
        modules = cache / "lib" / "modules" / version
        if (modules / "modules.dep").exists():
            return Kernel(version, image, modules)
    return None


def _fetch(cache: Path) -> Kernel:
    cache.mkdir(parents=True, exist_ok=True)
    listing = _output(["apt-cache", "depends", "--important", PACKAGE])
    names = [line.split()[-1] for line in listing.splitlines() if "Depends: linux-image-" in line]
    if not names or SERIES not in names[0]:
        found = names[0] if names else "nothing (run 'apt-get update' first)"
        raise LabError(f"{PACKAGE} leads to {found}, expected a {SERIES}x kernel (Debian 12)")
    print(f"vm: downloading {names[0]} to {cache} (once; it is unpacked, not installed)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        # apt would drop its rights to read the folder and complain when it cannot.
        download = ["apt-get", "-o", "APT::Sandbox::User=root", "--quiet", "download", names[0]]
        _output(download, folder=Path(name))
        for package in Path(name).glob("*.deb"):
            _output(["dpkg", "-x", str(package), str(cache)])
    depmod = required("depmod", "kmod")
    _output([depmod, "--basedir", str(cache), names[0].removeprefix("linux-image-")])
    kernel = _find(cache)
    if kernel is None:
        raise LabError(f"{names[0]} was unpacked under {cache}, but holds no kernel; remove the folder")
    return kernel


def _output(command: Sequence[str], *, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise LabError(f"{command[0]} is missing; the virtual machine needs a Debian host") from None
    except subprocess.CalledProcessError as error:
        raise LabError(f"'{shlex.join(command)}' failed: {error.stderr.strip()}") from None
    return done.stdout
