"""What the daemon knows, for whoever asks at its Unix socket: one JSON object, then the end."""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from midstream import modes
from midstream.errors import ConfigError, NetworkError

_PATIENCE = 2.0  # seconds that an answer may take


async def serve(path: Path, state: Callable[[], dict[str, Any]]) -> asyncio.Server:
    """Answer at path, which root alone may ask. Raises ConfigError: another daemon answers there, or no
    socket can be made."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            writer.write(json.dumps(state(), default=str).encode())
            await writer.drain()
        writer.close()

    if ask(path) is not None:
        raise ConfigError(
            f'daemon.socket = "{path}": another daemon answers there; end it first, or name another path'
        )
    try:
        listener = _listen(path)
        return await asyncio.start_unix_server(answer, sock=listener)
    except OSError as error:
        raise ConfigError(
            f'daemon.socket = "{path}": no socket can be made there ({error.strerror}); name another path in '
            "config.toml"
        ) from error


def _listen(path: Path) -> socket.socket:
    modes.make_folder(path.parent)
    path.unlink(missing_ok=True)  # of a daemon that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def ask(path: Path) -> dict[str, Any] | None:
    """The state of the daemon at path; None if none is there, or it ends meanwhile. Raises NetworkError if it
    does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError, PermissionError):
            return None
        text = b""
        try:
            while piece := connection.recv(1 << 16):
                text += piece
            if not text:
                return None
            found: dict[str, Any] = json.loads(text)
        except ConnectionResetError:
            return None
        except (OSError, ValueError) as error:
            raise NetworkError(
                f"{path}: the daemon does not answer ({error}); end its process, and start it again"
            ) from error
        return found
