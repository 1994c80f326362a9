"""Who this host is: its role and name, the key that it shares, and what it says of itself."""

import re
import socket
from contextlib import suppress
from importlib.metadata import version

from midstream.config import Config, Role
from midstream.daemon.announcement import Announcement
from midstream.daemon.failover import UNWATCHED
from midstream.daemon.interface import Interface
from midstream.daemon.log import log
from midstream.daemon.plan import decide_mark
from midstream.daemon.seal import Key
from midstream.errors import ConfigError
from midstream.network import Topology

_BY_NAME: tuple[Role, ...] = ("sensor", "hardworker", "logger")
_VERSION = version("midstream")


class Identity:
    """A host's role, name and key. key: None where there is none, and `explore = false` does without.

    Raises ConfigError: no role, or no key.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.name = config.daemon.name or socket.gethostname()
        self.role = find_role(config, self.name)
        self.key = _load_key(config)

    def announcement(self, interface: Interface, previous: Topology | None) -> Announcement:
        """What this host says of itself. previous: what const.toml says, for the hardworker's marks."""
        return Announcement(
            role=self.role,
            name=self.name,
            ip=interface.ip,
            mac=interface.mac,
            mtu=interface.mtu,
            port=self._config.daemon.port,
            version=_VERSION,
            standby=self._config.daemon.standby,
            mark=decide_mark(self._config, previous) if self.role == "hardworker" else None,
        )


def find_role(config: Config, host_name: str) -> Role:
    """The role: config.toml's, else that in which the host's name ends, as in `arm-sensor-2`.

    Raises ConfigError if neither says it.
    """
    if config.role:
        return config.role
    short = host_name.split(".")[0].lower()
    for role in _BY_NAME:
        if re.fullmatch(rf".*{role}[-_]?[0-9]*", short):
            return role
    raise ConfigError(
        f'{config.path}: role: missing, and the host name "{host_name}" does not end in sensor, hardworker '
        'or logger, with or without a number; add role = "sensor", "hardworker" or "logger"'
    )


def _load_key(config: Config) -> Key | None:
    if config.daemon.explore:
        return Key.load(config.key_path)
    with suppress(ConfigError):
        return Key.load(config.key_path)
    log("unwatched", level="warning", reason=UNWATCHED, key=config.key_path)
    return None
