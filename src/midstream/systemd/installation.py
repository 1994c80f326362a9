"""Put the services on this host, and take them away again.

Each step looks first: doing it again changes nothing, and says so. What a person has written is kept.
"""

import grp
import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from midstream import config as configuration
from midstream import key, modes
from midstream.config import SYSTEM_CONFIG, Config, Role
from midstream.daemon import spool
from midstream.ebpf import loader, pins
from midstream.errors import ConfigError, KernelError
from midstream.systemd import place, state
from midstream.systemd.run import output, require, run

USER = "midstream"
STATE, CACHE = Path("/var/lib/midstream"), Path("/var/cache")
PROGRAM = "/opt/midstream/bin/midstream"  # as the units name it
_UNITS = Path("/etc/systemd/system")
_FILES = {
    "midstream.sysusers.conf": Path("/etc/sysusers.d/midstream.conf"),
    "midstream.tmpfiles.conf": Path("/etc/tmpfiles.d/midstream.conf"),
}
_OF_ROLE: dict[Role, tuple[str, ...]] = {
    "hardworker": ("midstream-daemon", "midstream-ring"),
    "logger": ("midstream-daemon", "midstream-logger"),
    "sensor": ("midstream-daemon",),
}
_OFFERED: dict[Role, tuple[str, ...]] = {
    "hardworker": ("midstream-hardworker@",),
    "logger": (),
    "sensor": ("midstream-sensor",),
}
_SETTINGS: dict[Role, str] = {
    "hardworker": f'\n[hardworker]\nsocket = "/run/midstream/ring.sock"\nsocket_group = "{USER}"\n'
    f'spool = "{STATE}/spool.db"\n',
    "logger": f'\n[logger]\ndatabase = "sqlite:///{STATE}/midstream.db"\n',
    "sensor": "\n[sensor]\nreconnect = 86400.0\n",
}

Say = Callable[[str], None]


def install(role: Role, say: Say) -> None:
    """User, folders, key, config.toml, units; then start them. say is told each change.

    Raises ConfigError that names what is in the way. What was done until then stays, and serves the next try.
    """
    _require_root("install")
    require()
    command = place.program()
    _write(say, _FILES["midstream.sysusers.conf"], _text("midstream.sysusers.conf"))
    if not _exists():
        run("systemd-sysusers", str(_FILES["midstream.sysusers.conf"]))
        say(f"user {USER}: made")
    _configure(role, say)
    _own_key(role, say)
    _write(say, _FILES["midstream.tmpfiles.conf"], _text("midstream.tmpfiles.conf"))
    run("systemd-tmpfiles", "--create", str(_FILES["midstream.tmpfiles.conf"]))
    changed = [
        unit
        for unit in (*_OF_ROLE[role], *_OFFERED[role])
        if _write(
            say,
            _UNITS / f"{unit}.service",
            _text(f"{unit}.service").replace(PROGRAM, str(command)),
        )
    ]
    run("systemctl", "daemon-reload")
    for unit in _OF_ROLE[role]:
        service = f"{unit}.service"
        if output("systemctl", "is-enabled", service).strip() != "enabled":
            run("systemctl", "enable", "--quiet", service)
            say(f"{service}: enabled")
        if unit in changed or output("systemctl", "is-active", service).strip() != "active":
            run("systemctl", "restart", service)
            say(f"{service}: started")


def uninstall(say: Say, *, purge: bool = False) -> None:
    """Stop and remove the services, their program in the kernel, and all that they can make again.

    What they cannot stays: configuration, key, database, and the user whom these belong to. With purge these
    go too.
    Raises ConfigError.
    """
    _require_root("uninstall")
    require()
    names = [unit["unit"] for unit in state.read()]
    if names:
        run("systemctl", "disable", "--now", "--quiet", *names)
        for name in names:
            say(f"{name}: stopped and disabled")
    _detach(say)
    _end_spool(say)
    for path in (*sorted(_UNITS.glob("midstream-*.service")), *_FILES.values()):
        if path.exists():
            path.unlink()
            say(f"{path}: removed")
    run("systemctl", "daemon-reload")
    output("systemctl", "reset-failed", "midstream-*")
    for folder in (Path("/run/midstream"), *CACHE.glob("midstream"), *CACHE.glob("midstream-*")):
        _remove(say, folder)
    bpffs = Path("/sys/fs/bpf")
    if pins.is_bpffs(bpffs):
        bpffs.chmod(0o700)  # as systemd mounts it
    kept = [path for path in (SYSTEM_CONFIG.parent, STATE) if path.exists()]
    if not purge:
        for path in kept:
            say(f"{path}: stays (`midstream service uninstall --purge` removes it)")
        return
    for path in kept:
        _remove(say, path)
    if _exists():
        run("userdel", USER)
        say(f"user {USER}: removed")


def _require_root(what: str) -> None:
    if os.geteuid():
        raise ConfigError(f"`midstream service {what}` changes this host: run it as root")


def _exists() -> bool:
    try:
        pwd.getpwnam(USER), grp.getgrnam(USER)
    except KeyError:
        return False
    return True


def _text(name: str) -> str:
    return files("midstream.systemd").joinpath("units", name).read_text(encoding="utf-8")


def _write(say: Say, path: Path, text: str) -> bool:
    """Make a file of root's say this; False if it did already."""
    with suppress(FileNotFoundError):
        if path.read_text(encoding="utf-8") == text:
            return False
    modes.make_folder(path.parent)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    say(f"{path}: written")
    return True


def _configure(role: Role, say: Say) -> None:
    """See to a config.toml with which services can work. A person's is kept, and what hinders is named."""
    if not SYSTEM_CONFIG.exists():
        _write(say, SYSTEM_CONFIG, f'role = "{role}"\nconst = "{STATE}/const.toml"\n{_SETTINGS[role]}')
        return
    config = configuration.load(SYSTEM_CONFIG)
    if faults := list(_faults(config, role)):
        raise ConfigError("\n".join(f"{SYSTEM_CONFIG}: {fault}" for fault in faults))


def _faults(config: Config, role: Role) -> Iterator[str]:
    if config.role not in (None, role):
        yield f'role = "{config.role}": this was to become a {role}; correct one of them'
    if config.role is None:
        yield f'role: missing; add role = "{role}"'
    if config.daemon.explore and not config.const_path.is_relative_to(STATE):
        yield f'const = "{config.const}": the services may not write there; set const = "{STATE}/const.toml"'
    if role == "hardworker" and config.hardworker.receiver == "ebpf" and not config.hardworker.socket:
        yield (
            "hardworker.socket: missing; the application has no privileges, so add to [hardworker] "
            f'socket = "/run/midstream/ring.sock" and socket_group = "{USER}"'
        )
    if role == "hardworker" and config.spool_path and not config.spool_path.is_relative_to(STATE):
        yield (
            f'hardworker.spool = "{config.hardworker.spool}": the services may not write there; set '
            f'spool = "{STATE}/spool.db"'
        )
    if role != "logger":
        return
    path = config.database_url.removeprefix("sqlite:///")
    if path != config.database_url and not Path(path).is_relative_to(STATE):
        yield (
            f'logger.database = "{config.logger.database}": the service may not write there; set '
            f'database = "sqlite:///{STATE}/midstream.db"'
        )


def _own_key(role: Role, say: Say) -> None:
    """The hardworker makes the key that all share. It is given to the services, wherever it came from."""
    path = configuration.load(SYSTEM_CONFIG).key_path
    if not path.exists():
        if role != "hardworker":
            say(
                f"{path}: not there yet; copy it from the hardworker, then give it to the services: "
                f"`chown {USER}:{USER} {path}`. The daemon waits for it"
            )
            return
        key.make(path)
        say(f"{path}: a new key; every other host needs a copy")
    user = pwd.getpwnam(USER)
    found = path.stat()
    if (found.st_uid, found.st_mode & 0o777) != (user.pw_uid, 0o600):
        os.chown(path, user.pw_uid, user.pw_gid)
        path.chmod(0o600)
        say(f"{path}: given to the user {USER}, mode 600")


def _detach(say: Say) -> None:
    """What the services have attached stays attached when they stop; not now."""
    try:
        config = configuration.load(SYSTEM_CONFIG)
    except ConfigError:
        config = Config()
    for role in _OF_ROLE:
        folder = pins.default_folder(role, config)
        try:
            if loader.detach(role, folder):
                say(f"{folder}: detached and removed")
        except KernelError as error:
            say(str(error))
    with suppress(OSError):  # not empty: what others have pinned there stays
        Path(config.network.pins).rmdir()


def _end_spool(say: Say) -> None:
    """Its process outlives the daemon."""
    try:
        config = configuration.load(SYSTEM_CONFIG)
    except ConfigError:
        return
    if pid := spool.stop(config):
        say(f"process {pid}: the spool, ended; what it holds stays")


def _remove(say: Say, path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
        say(f"{path}: removed")
