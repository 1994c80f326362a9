"""MQTT (mosquitto, paho): the broker on the logger; hardworker and logger both subscribe."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from midstream_bench.middlewares import programs
from midstream_bench.middlewares.middleware import PATIENCE, TICK, Ends, Take

_TOPIC = "midstream"
_CONFIG = """\
listener {port} {address}
allow_anonymous true
persistence false
log_type none
max_queued_messages 0
max_inflight_messages 0
set_tcp_nodelay true
"""


class Mqtt:
    """quality 0: TCP's guarantees while a connection lasts; 1: the hardworker acknowledges each message."""

    def __init__(self, quality: int) -> None:
        self._quality = quality

    def receive(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        client = _connect(ends, "hardworker")
        _subscribe(client, self._quality, take, ready, stopped)

    def log(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        program = programs.find("mosquitto")
        assert program is not None
        with tempfile.TemporaryDirectory(prefix="midstream-mqtt-") as folder:
            config = Path(folder, "mosquitto.conf")
            config.write_text(_CONFIG.format(address=ends.logger, port=ends.port))
            Path(folder).chmod(0o755)  # mosquitto gives up root's rights
            with subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL) as server:
                try:
                    _subscribe(_connect(ends, "logger"), self._quality, take, ready, stopped)
                finally:
                    server.terminate()

    def connect(self, ends: Ends) -> "_Sender":
        return _Sender(ends, self._quality)


class _Sender:
    def __init__(self, ends: Ends, quality: int) -> None:
        self._quality = quality
        self._clients = [_connect(ends, f"sensor-{number}") for number in range(ends.sensors)]
        for client in self._clients:
            client.loop_start()

    def send(self, sensor: int, message: bytes) -> None:
        self._clients[sensor].publish(f"{_TOPIC}/{sensor}", message, self._quality)

    def close(self) -> None:
        time.sleep(TICK)
        for client in self._clients:
            client.disconnect()
            client.loop_stop()


def _connect(ends: Ends, name: str) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, name)
    client.max_inflight_messages_set(65535)
    client.max_queued_messages_set(0)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client.connect(ends.logger, ends.port, keepalive=600)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(TICK)
    connection = client.socket()
    assert isinstance(connection, socket.socket)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def _subscribe(
    client: Client, quality: int, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]
) -> None:
    def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
        take(bytes(message.payload))

    def on_subscribe(*_: object) -> None:
        ready()

    client.on_message = on_message
    client.on_subscribe = on_subscribe
    client.subscribe(f"{_TOPIC}/#", quality)
    while not stopped():
        client.loop(TICK)
    client.disconnect()
