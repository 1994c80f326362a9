"""What the disks of the hosts are made of: a small Debian, and midstream installed there from wheels.

`python tests/hosts/layers.py` makes, with internet, a Debian (once) and the wheels, in .cache. The tests
install midstream from these, without any network.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".cache" / "hosts"
PACKAGES = "systemd,systemd-sysv,dbus,python3-venv,libbpf1,iproute2,passwd"


WHEELS = CACHE / "wheels"


def debian() -> Path:
    """The root file system of a bare host: Debian, with what docs/how-to/three-hosts.md asks for."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    suite = release["VERSION_CODENAME"]
    return CACHE / f"{suite}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"


def make() -> None:
    """What needs internet."""
    place = debian()
    if not place.exists():
        unfinished = place.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        suite = place.name.partition("-")[0]
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(unfinished), _mirror())
        unfinished.rename(place)
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("midstream-*.whl"):
        old.unlink()
    # As docs/how-to/services.md tells for hosts without internet.
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(WHEELS), f"{PROJECT}[compiler]")


def installed() -> Path:
    """A layer above Debian with midstream in /opt/midstream; kept until there are other wheels."""
    root = debian()
    digest = hashlib.sha256(root.name.encode())
    for wheel in sorted(WHEELS.iterdir()):
        digest.update(
            wheel.name.encode() + (wheel.read_bytes() if wheel.name.startswith("midstream-") else b"")
        )
    place = CACHE / f"installed-{digest.hexdigest()[:8]}"
    if place.exists():
        return place
    for old in CACHE.glob("installed-*"):
        shutil.rmtree(old)
    unfinished, work, disk = (CACHE / f"installed-{name}" for name in ("new", "work", "disk"))
    for folder in (unfinished, work, disk):
        folder.mkdir()
    options = f"lowerdir={root},upperdir={unfinished},workdir={work}"
    _run("mount", "-t", "overlay", "-o", options, "overlay", str(disk))
    install = (
        "python3 -m venv /opt/midstream && "
        "/opt/midstream/bin/pip install --quiet --no-index --find-links /wheels 'midstream[compiler]'"
    )
    try:
        _run(
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
            *("--console=pipe", f"--directory={disk}", f"--bind-ro={WHEELS}:/wheels", "sh", "-c", install),
        )
    finally:
        _run("umount", str(disk))
    for folder in (work, disk):
        shutil.rmtree(folder)
    return unfinished.rename(place)


def _mirror() -> str:
    """Where this machine gets its Debian from."""
    asked = ("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[0]


def _run(*command: str) -> None:
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ}
    )
    assert ended.returncode == 0, f"{command}:\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"


if __name__ == "__main__":
    make()
