"""Announce this host and hear the others, by multicast DNS on one interface.

The instance has a random name and its TXT record is sealed (announcement.py), so mDNS shows nothing but that
there is a daemon, and where. Everything that comes is opened with the key or counted as rejected. The cache
of zeroconf is bounded (10,000 records), and so is ours (peers.py).
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address

from zeroconf import IPVersion, RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf
from zeroconf._dns import DNSText
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

from midstream.daemon.announcement import Announcement, Word, unseal
from midstream.daemon.freshness import Stamp
from midstream.daemon.seal import ForgedError, Key
from midstream.errors import NetworkError

TYPE = "_midstream._tcp.local."
INTERVAL = 4.0  # seconds between two announcements of the same
ANSWER = 0.25  # seconds that lie between two at least, also while hosts keep asking


class Discovery:
    """heard(word) is called for each authentic word, rejected(why) for every other, stamp() for our own."""

    def __init__(
        self,
        ip: IPv4Address,
        key: Key,
        *,
        stamp: Callable[[], Stamp],
        heard: Callable[[Word], None],
        rejected: Callable[[str], None],
    ) -> None:
        self._ip, self._key, self._stamp = ip, key, stamp
        self._name = secrets.token_hex(8)
        try:
            self._zeroconf = AsyncZeroconf(interfaces=[str(ip)], ip_version=IPVersion.V4Only)
        except OSError as error:
            raise NetworkError(
                f"{ip}: no multicast DNS there ({error.strerror}); "
                "is the interface up, and UDP port 5353 free?"
            ) from error
        self._listener = _Listener(self._name, self._key, heard, rejected)
        self._browser: AsyncServiceBrowser | None = None
        self._announced = False

    async def start(self, said: Announcement) -> None:
        """Say who this host is, and ask who is there."""
        zeroconf = self._zeroconf.zeroconf
        await zeroconf.async_wait_for_start()
        zeroconf.async_add_listener(self._listener, None)
        await self._zeroconf.async_register_service(self._info(said), cooperating_responders=True)
        self._announced = True
        self._browser = AsyncServiceBrowser(zeroconf, TYPE, handlers=[_ignore])

    async def announce(self, said: Announcement, *, urgent: bool = False) -> None:
        """Say it again, or, if it has changed, say it several times: multicast may be lost.

        Nothing is said before `start` has said it first.
        """
        if not self._announced:
            return
        info = self._info(said)
        if urgent:
            await self._zeroconf.async_update_service(info)
            return
        zeroconf = self._zeroconf.zeroconf
        zeroconf.registry.async_update(info)
        zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))

    async def close(self, said: Announcement) -> None:
        """Say goodbye, and end."""
        if self._announced:
            zeroconf = self._zeroconf.zeroconf
            info = self._info(said.model_copy(update={"leaving": True}))
            zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
        if self._browser:
            await self._browser.async_cancel()
        with suppress(OSError):  # the interface may be gone
            await self._zeroconf.async_close()

    def _info(self, said: Announcement) -> ServiceInfo:
        return ServiceInfo(
            TYPE,
            f"{self._name}.{TYPE}",
            port=said.port,
            properties=Word(said=said.model_copy(update={"time": time.time()}), stamp=self._stamp()).sealed(
                self._key
            ),
            server=f"{self._name}.local.",
            addresses=[self._ip.packed],
        )


class _Listener(RecordUpdateListener):
    """Takes the TXT records of our type, as they come."""

    def __init__(
        self, own: str, key: Key, heard: Callable[[Word], None], rejected: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._own, self._key, self._heard, self._rejected = f"{own}.{TYPE}".lower(), key, heard, rejected

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        del zc, now
        for record in (update.new for update in records):
            # A goodbye of mDNS itself (TTL 0) proves nothing; ours is sealed.
            if not isinstance(record, DNSText) or not record.ttl:
                continue
            name = record.name.lower()
            if name == self._own or not name.endswith(f".{TYPE}"):
                continue
            try:
                word = unseal(self._key, record.text)
            except ForgedError:
                self._rejected(f"{record.name.removesuffix(f'.{TYPE}')[:63]!r} without the key")
            else:
                self._heard(word)

    def async_update_records_complete(self) -> None:
        """Nothing is left to do."""


def _ignore(**_: object) -> None:
    """The browser asks; what answers goes to the listener."""
