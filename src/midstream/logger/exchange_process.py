"""The exchange as the logger sees it: a listening socket that it keeps, and a process that answers."""

import socket

from midstream import key
from midstream.config import Config
from midstream.errors import NetworkError
from midstream.logger.channel import Message
from midstream.logger.companion import Companion

BACKLOG = 1024  # connections that wait to be accepted


class ExchangeProcess:
    """Listens on `[logger] replay_port` of that address. Raises NetworkError or ConfigError.

    `settings` is what the worker is told too.
    """

    def __init__(self, config: Config, address: str, settings: Message) -> None:
        port = config.logger.replay_port
        key.read(config.key_path)
        try:
            self._listener = socket.create_server((address, port), backlog=BACKLOG)
        except OSError as error:
            raise NetworkError(
                f"cannot listen on {address} port {port} for hardworkers: {error.strerror}. What to do: "
                "choose another logger.replay_port"
            ) from error
        descriptor = self._listener.fileno()
        self._process = Companion(
            "midstream.logger.exchange", settings, arguments=(str(descriptor),), descriptors=(descriptor,)
        )

    def keep(self) -> None:
        """Start another process if this one has died."""
        self._process.keep()

    def close(self) -> None:
        self._listener.close()
        self._process.close()
