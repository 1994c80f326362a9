"""Can the services run midstream from where it is installed, and can nobody but root change it there?

They run as a user of their own, who sees no home and no /tmp. They have capabilities: who could change their
program would have these too.
"""

import stat
import sys
import sysconfig
from pathlib import Path

import midstream
from midstream.errors import ConfigError

_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # in a unit
_ADVICE = (
    "make a virtual environment in a place of root's: `python3 -m venv /opt/midstream`, install midstream "
    "with /opt/midstream/bin/pip, and run /opt/midstream/bin/midstream service install"
)


def program() -> Path:
    """The command `midstream` of this installation. Raises ConfigError that names what is in the way."""
    command = Path(sysconfig.get_path("scripts"), "midstream")
    interpreter = Path(sys.executable)
    package = Path(midstream.__file__).parent
    for path in (command, interpreter, interpreter.resolve(), Path(sys.base_prefix), package):
        check(path)
    return command


def check(path: Path) -> None:
    """Raises ConfigError if the services could not use path, or others than root could replace it."""
    if hidden := next((folder for folder in _HIDDEN if path.is_relative_to(folder)), None):
        raise ConfigError(f"{path}: services see nothing below {hidden}; {_ADVICE}")
    for part in (path, *path.parents):
        try:
            found = part.stat()
        except OSError as error:
            raise ConfigError(f"{part}: {error.strerror}; {_ADVICE}") from error
        needed = stat.S_IXOTH if part != path or part.is_dir() else stat.S_IROTH
        if not found.st_mode & needed:
            raise ConfigError(f"{part}: services may not read it; `chmod a+rX {part}`, or {_ADVICE}")
        if found.st_uid:
            raise ConfigError(
                f"{part}: belongs to another than root, who could change what the services run; "
                f"`chown -R root:root {part}`, or {_ADVICE}"
            )
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise ConfigError(
                f"{part}: others than root may write there, and change what the services run; "
                f"`chmod go-w {part}`, or {_ADVICE}"
            )
