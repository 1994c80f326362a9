"""Every error that midstream raises.

MidstreamError
 ├── ConfigError       config.toml, const.toml or an argument is wrong       exit code 2
 ├── CompileError      the eBPF compiler failed or is missing                exit code 3
 ├── KernelError       load, attach, pins, permissions, self-test            exit code 4
 ├── NetworkError      no route, no peer, connection refused or lost         exit code 5
 ├── StoreError        the logger's database                                 exit code 6
 ├── FramingError      the byte stream does not follow its framing           exit code 1
 └── LabError          the three hosts on one machine                        exit code 1

A message says what was expected and what to do next; the command line prints it without a traceback
and leaves with the class's exit code.
"""

from typing import ClassVar


class MidstreamError(Exception):
    """Base of all errors of midstream."""

    exit_code: ClassVar[int] = 1


class ConfigError(MidstreamError):
    """A file or an argument is wrong; the message names file, key, value and what is allowed."""

    exit_code = 2


class CompileError(MidstreamError):
    """An eBPF program could not be compiled."""

    exit_code = 3


class KernelError(MidstreamError):
    """The kernel refused a program, a map, a pin or an attachment, or the self-test failed.

    errno is the kernel's error number, 0 where it gave none.
    """

    exit_code = 4

    def __init__(self, message: str, *, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class NetworkError(MidstreamError):
    """A peer, a route or an interface is missing, or a connection ended against the wish of both sides."""

    exit_code = 5


class StoreError(MidstreamError):
    """The logger's database cannot be opened or written."""

    exit_code = 6


class FramingError(MidstreamError):
    """The bytes of a connection do not follow the configured framing."""


class LabError(MidstreamError):
    """The lab (three hosts on one machine) cannot be built, found or used."""
