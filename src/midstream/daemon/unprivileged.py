"""Become a command that may do nothing that an ordinary user may not: `python unprivileged.py COMMAND…`.

It writes its number to its standard output, and gives that away: who it is depends on nobody else's life.
It is run by its path and needs only the standard library. A daemon of systemd's has capabilities that its
children inherit (capabilities(7): ambient ones); root's has all, and what it starts as another user has none.
Where there is only root, its number stays, for the sake of its files, and every capability goes.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 28, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NO_ROOT = 0b11  # SECBIT_NOROOT, and locked (linux/securebits.h)
_CAPABILITIES = 64
_NICE = 5  # the application comes first

_libc = ctypes.CDLL(None, use_errno=True)


def drop() -> None:
    """Have no capability once another program is executed. Raises OSError."""
    if os.geteuid() == 0:
        for capability in range(_CAPABILITIES):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL: this kernel knows fewer
        _check(_libc.prctl(_PR_SET_SECUREBITS, _NO_ROOT, 0, 0, 0))
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def main(command: Sequence[str]) -> NoReturn:
    os.write(sys.stdout.fileno(), b"%d\n" % os.getpid())
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    with contextlib.suppress(OSError):  # a unit may forbid it
        os.nice(_NICE)
    drop()
    os.execv(command[0], [*command])


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
