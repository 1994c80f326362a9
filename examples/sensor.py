"""An unmodified sensor: any TCP client will do. It marks its packets, and knows nothing of midstream."""

import socket
import time

with socket.socket() as connection:
    connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 104)  # the mark: [mark] tos of const.toml
    connection.connect(("10.83.0.2", 12345))  # the hardworker in the lab, [mark] port
    for number in range(10):
        connection.sendall(f"message {number}".encode().ljust(1024))
        time.sleep(0.1)
