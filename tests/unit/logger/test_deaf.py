"""A socket that hears nothing: nobody gets in, nothing is acknowledged, and all comes once it hears again."""

import socket

import pytest
from tests.support.program import unacknowledged
from tests.support.site import wait_until

from midstream.logger.deaf import deafen, listen_again


@pytest.mark.slow
def test_a_socket_is_deaf_and_hears_again() -> None:
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
