"""The self-test where it may not be made."""

import errno
import socket

import pytest
from tests.support.patients import LOGGER

from midstream.ebpf import selftest
from midstream.errors import KernelError


def test_without_the_right_to_ping_the_capability_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(KernelError, match=r"lacks CAP_NET_RAW.*--no-self-test") as caught:
        selftest.run("eth0", LOGGER.ip, 1)
    assert caught.value.errno == errno.EPERM
