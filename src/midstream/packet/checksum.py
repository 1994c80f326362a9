"""The Internet checksum: from scratch (RFC 1071) and updated in place (RFC 1624)."""

import struct


def checksum(data: bytes) -> int:
    """The checksum of `data` (RFC 1071): the complement of the ones' complement sum of its 16-bit words.

    An odd last byte counts as the high half of a word. Over data that holds its own checksum the result is 0.
    """
    return ~_sum(data) & 0xFFFF


def update(checksum: int, old: bytes, new: bytes) -> int:
    """The checksum after `old` became `new`: HC' = ~(~HC + ~m + m') (RFC 1624, equation 3).

    `old` and `new` must begin at an even offset of the data. The result equals a full recomputation, with
    one exception that no IPv4 or TCP header can meet: where every word of the new data is zero, it is 0x0000
    and not 0xffff. (The older equation of RFC 1141 yields 0xffff for 0x0000 in real headers too.)
    """
    total = (~checksum & 0xFFFF) + (~_sum(old) & 0xFFFF) + _sum(new)
    return ~_fold(total) & 0xFFFF


def _sum(data: bytes) -> int:
    padded = data + bytes(len(data) % 2)
    return _fold(sum(struct.unpack(f"!{len(padded) // 2}H", padded)))


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
