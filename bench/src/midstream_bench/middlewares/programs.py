"""Where the brokers' programs are."""

import shutil
import sys
from pathlib import Path


def find(name: str) -> str | None:
    """The path of a program: beside this Python's own, or where the system has its daemons."""
    beside = Path(sys.executable).with_name(name)
    return shutil.which(beside) or shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
