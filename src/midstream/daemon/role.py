"""What this host is: by config.toml, else by its name."""

import re

from midstream.config import Config, Role
from midstream.errors import ConfigError

_BY_NAME: tuple[Role, ...] = ("sensor", "hardworker", "logger")


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
