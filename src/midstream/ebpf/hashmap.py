"""A hash map of the kernel's as a dictionary of bytes."""

from collections.abc import Iterator, MutableMapping

from midstream.ebpf import libbpf


class HashMap(MutableMapping[bytes, bytes]):
    """A map by its descriptor. Needs no privileges, only a descriptor that may be written.

    Writing raises KernelError if the map or the kernel's memory is full.
    """

    def __init__(self, fd: int) -> None:
        info = libbpf.map_info(fd)
        self._fd, self._key_size, self._value_size = fd, info.key_size, info.value_size

    def __getitem__(self, key: bytes) -> bytes:
        value = libbpf.lookup(self._fd, key, self._value_size)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        libbpf.update(self._fd, key, value.ljust(self._value_size, b"\0"))

    def __delitem__(self, key: bytes) -> None:
        libbpf.delete(self._fd, key)

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(libbpf.keys(self._fd, self._key_size)))

    def __len__(self) -> int:
        return sum(1 for _ in libbpf.keys(self._fd, self._key_size))
