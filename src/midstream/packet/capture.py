"""Frames from what a user has at hand: a classic pcap file or hexadecimal digits."""

import re
import struct
from collections.abc import Iterator

from midstream.errors import ConfigError

# The first four bytes tell byte order and unit of the time stamps (microseconds, nanoseconds).
_PCAP_ORDER = {
    b"\xd4\xc3\xb2\xa1": "<",
    b"\x4d\x3c\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xa1\xb2\x3c\x4d": ">",
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_LINKTYPE_ETHERNET = 1


def decode_frames(data: bytes, name: str) -> list[bytes]:
    """The Ethernet frames in `data`: a classic pcap file, or hexadecimal text.

    In text, white space, colons and a leading 0x are ignored, and an empty line separates frames. Raises
    ConfigError, naming `name`, for anything else.
    """
    if data[:4] in _PCAP_ORDER:
        return list(_pcap_frames(data, name))
    if data[:4] == _PCAPNG:
        raise ConfigError(
            f"{name}: a pcapng file, expected classic pcap; convert it with: tcpdump -r {name} -w NEW"
        )
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: neither a classic pcap file nor hexadecimal digits") from None
    frames = [_from_hex(block, name) for block in re.split(r"\n\s*\n", text) if block.strip()]
    if not frames:
        raise ConfigError(f"{name}: empty, expected a classic pcap file or hexadecimal digits")
    return frames


def _pcap_frames(data: bytes, name: str) -> Iterator[bytes]:
    order = _PCAP_ORDER[data[:4]]
    if len(data) < 24:
        raise ConfigError(f"{name}: the pcap file ends within its header of 24 bytes")
    # The upper bits of the link type may hold the length of a frame check sequence.
    (link,) = struct.unpack_from(order + "I", data, 20)
    if link & 0xFFFF != _LINKTYPE_ETHERNET:
        raise ConfigError(
            f"{name}: link type {link & 0xFFFF}, expected Ethernet ({_LINKTYPE_ETHERNET}); "
            f"capture on one interface instead of 'any'"
        )
    position, number = 24, 0
    while position < len(data):
        number += 1
        start = position + 16
        end = start + struct.unpack_from(order + "I", data, position + 8)[0] if start <= len(data) else start
        if end > len(data):
            raise ConfigError(f"{name}: the file ends within packet {number}; was its capture interrupted?")
        yield data[start:end]
        position = end


def _from_hex(text: str, name: str) -> bytes:
    digits = re.sub(r"\s|:", "", text).removeprefix("0x")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(
            f"{name}: not a file, and not hexadecimal digits in pairs: {text.strip()[:40]!r}"
        ) from None
