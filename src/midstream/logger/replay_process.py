"""The replay as the logger sees it: a listening socket that it keeps, and a child process that answers."""

import json
import socket
import subprocess
import sys

from midstream import key
from midstream.config import Config
from midstream.errors import ConfigError, NetworkError
from midstream.logger.channel import Message


class ReplayProcess:
    """Listens on `[logger] replay_port` of that address. Raises NetworkError or ConfigError.

    `settings` is what the worker is told too.
    """

    def __init__(self, config: Config, address: str, settings: Message) -> None:
        port = config.logger.replay_port
        if config.logger.database.startswith("nats://"):
            raise ConfigError(
                f"{config.path}: logger.replay_port = {port}: the replay reads SQL databases only; "
                "set it to 0 (a NATS client reads the stream itself)"
            )
        key.read(config.key_path)
        self._settings = settings
        try:
            self._listener = socket.create_server((address, port))
        except OSError as error:
            raise NetworkError(
                f"cannot listen on {address} port {port} for the replay: {error.strerror}. What to do: "
                "choose another logger.replay_port"
            ) from error
        self._child = self._start()

    def keep(self) -> None:
        """Start another child if this one has died."""
        if self._child.poll() is not None:
            self._end()
            self._child = self._start()

    def close(self) -> None:
        self._listener.close()
        self._child.kill()
        self._end()

    def _start(self) -> "subprocess.Popen[str]":
        descriptor = self._listener.fileno()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "midstream.logger.replay", str(descriptor)],
            pass_fds=[descriptor],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is the logger's to answer
            text=True,
        )
        assert child.stdin is not None
        child.stdin.write(f"{json.dumps(self._settings)}\n")
        child.stdin.flush()
        return child

    def _end(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()
