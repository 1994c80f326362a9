"""What midstream makes has the mode that is meant, whatever umask the process was started with."""

import os
from pathlib import Path


def restrain() -> None:
    """For a process of ours: nothing that it makes may be written by others. A stricter umask stays."""
    os.umask(os.umask(0o077) | 0o022)


def make_folder(path: Path, mode: int = 0o755) -> None:
    """Make a folder and those above it; each that was missing has exactly this mode. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent, mode)
    try:
        path.mkdir(mode)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)


def opener(path: str, flags: int) -> int:
    """For `open`: a new file can be written by its owner alone."""
    return os.open(path, flags, 0o644)
