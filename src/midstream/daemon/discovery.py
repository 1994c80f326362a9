"""Announce this host and hear the others, by multicast DNS on one interface.

The instance has a random name and its TXT record is sealed (announcement.py), so mDNS shows nothing but that
there is a daemon, and where. Everything that comes is opened with the key or counted as rejected. The cache
of zeroconf is bounded (10,000 records), and so is ours (peers.py).
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address
from typing import Self

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


class Discovery(RecordUpdateListener):
    """Announces this host, and takes the TXT records of our type, as they come, as long as it is open.

    said: what it has said last. heard(word) is called for each authentic word, rejected(why) for every other,
    stamp() for our own.
    """

    def __init__(
        self,
        multicast: AsyncZeroconf,
        ip: IPv4Address,
        key: Key,
        said: Announcement,
        stamp: Callable[[], Stamp],
        heard: Callable[[Word], None],
        rejected: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._multicast, self._ip, self._key = multicast, ip, key
        self._stamp, self._heard, self._rejected = stamp, heard, rejected
        self._name = secrets.token_hex(8)
        self.said = said

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        ip: IPv4Address,
        key: Key,
        said: Announcement,
        *,
        stamp: Callable[[], Stamp],
        heard: Callable[[Word], None],
        rejected: Callable[[str], None],
    ) -> AsyncIterator[Self]:
        """Say who this host is, on the interface that has this address, and ask who is there.

        At the end it says goodbye. Raises NetworkError.
        """
        try:
            multicast = AsyncZeroconf(interfaces=[str(ip)], ip_version=IPVersion.V4Only)
        except OSError as error:
            raise NetworkError(
                f"{ip}: no multicast DNS there ({error.strerror}); "
                "is the interface up, and UDP port 5353 free?"
            ) from error
        zeroconf = multicast.zeroconf
        opened = cls(multicast, ip, key, said, stamp, heard, rejected)
        try:
            await zeroconf.async_wait_for_start()
            zeroconf.async_add_listener(opened, None)
            await multicast.async_register_service(opened._info(said), cooperating_responders=True)
            async with AsyncServiceBrowser(zeroconf, TYPE, handlers=[_ignore]):
                try:
                    yield opened
                finally:
                    opened._broadcast(opened._info(opened.said.model_copy(update={"leaving": True})))
        finally:
            with suppress(OSError):  # the interface may be gone
                await multicast.async_close()

    def repeat(self) -> None:
        """Say it again."""
        info = self._info(self.said)
        self._multicast.zeroconf.registry.async_update(info)
        self._broadcast(info)

    async def say(self, said: Announcement) -> None:
        """Say something else, several times: multicast may be lost."""
        self.said = said
        await self._multicast.async_update_service(self._info(said))

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        del zc, now
        for record in (update.new for update in records):
            # A goodbye of mDNS itself (TTL 0) proves nothing; ours is sealed.
            if not isinstance(record, DNSText) or not record.ttl:
                continue
            name = record.name.lower()
            if name == f"{self._name}.{TYPE}" or not name.endswith(f".{TYPE}"):
                continue
            try:
                word = unseal(self._key, record.text)
            except ForgedError:
                self._rejected(f"{record.name.removesuffix(f'.{TYPE}')[:63]!r} without the key")
            else:
                self._heard(word)

    def async_update_records_complete(self) -> None:
        """Nothing is left to do."""

    def _broadcast(self, info: ServiceInfo) -> None:
        zeroconf = self._multicast.zeroconf
        zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))

    def _info(self, said: Announcement) -> ServiceInfo:
        word = Word(said=said.model_copy(update={"time": time.time()}), stamp=self._stamp())
        return ServiceInfo(
            TYPE,
            f"{self._name}.{TYPE}",
            port=said.port,
            properties=word.sealed(self._key),
            server=f"{self._name}.local.",
            addresses=[self._ip.packed],
        )


def _ignore(**_: object) -> None:
    """The browser asks; what answers goes to the listener."""
