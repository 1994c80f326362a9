"""A socket that hears nothing: nobody gets in, nothing is acknowledged, and all comes once it hears again."""

import os
import socket
import sys
from pathlib import Path

import pytest
from tests.unit.program import unacknowledged
from tests.unit.site import wait_until

from midstream.daemon import unprivileged
from midstream.logger.deaf import deafen, listen_again


def deaf_and_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        with socket.create_connection(door.getsockname()) as client, door.accept()[0] as accepted:
            deafen(door)
            deafen(accepted)
            client.sendall(bytes(100))
            with socket.socket() as another:
                another.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    another.connect(door.getsockname())
            assert unacknowledged(client) == 100
            listen_again(accepted)
            wait_until(lambda: unacknowledged(client) == 0)
        listen_again(door)
        socket.create_connection(door.getsockname(), 10).close()
        listen_again(door)  # it does hear


def test_with_whatever_privileges_this_process_has() -> None:
    deaf_and_back()


def test_without_privileges() -> None:
    """As the hardworker's spool is."""
    child = os.fork()
    if not child:
        code = 1
        try:
            unprivileged.drop()
            os.environ["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parents[2]), *sys.path))
            run = "from tests.unit.test_deaf import deaf_and_back; deaf_and_back()"
            os.execv(sys.executable, [sys.executable, "-c", run])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
