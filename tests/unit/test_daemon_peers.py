"""Who is believed: the key, the clock, the newest word, and a bounded table."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.unit.announcements import announcement as said

from midstream import key
from midstream.daemon.announcement import Mark, unseal
from midstream.daemon.peers import LIFETIME, MAX_PEERS, Peers
from midstream.daemon.seal import ForgedError, Key
from midstream.errors import ConfigError

KEY = Key(b"k" * 32)


def test_what_is_sealed_is_read_with_the_same_key_only() -> None:
    mark = Mark(tos=104, port=12345, size=1024, logger=IPv4Address("192.0.2.3"))
    text = said(role="hardworker", mark=mark).sealed(KEY)
    assert unseal(KEY, text).mark == mark
    assert b"192.0.2" not in text
    assert b"arm-sensor" not in text
    with pytest.raises(ForgedError):
        unseal(Key(b"another key, of 32 bytes or more!"), text)


@pytest.mark.parametrize("place", [0, 1, 13, 40, -1])
def test_a_changed_byte_is_noticed(place: int) -> None:
    text = bytearray(said().sealed(KEY))
    text[place] ^= 1
    with pytest.raises(ForgedError):
        unseal(KEY, bytes(text))


@pytest.mark.parametrize("text", [b"", b"\0", b"\xff", b"\x05abc", bytes(2000)])
def test_noise_is_no_announcement(text: bytes) -> None:
    with pytest.raises(ForgedError):
        unseal(KEY, text)


def test_what_was_sealed_for_another_purpose_is_refused() -> None:
    with pytest.raises(ForgedError):
        KEY.open("announcement", KEY.seal("question", b"{}"))


def test_a_word_of_the_right_key_that_makes_no_sense_is_refused() -> None:
    sealed = KEY.seal("announcement", b'{"role": "king"}')
    with pytest.raises(ForgedError):
        unseal(KEY, bytes([len(sealed)]) + sealed)


def test_the_newest_word_counts() -> None:
    peers = Peers(10)
    assert peers.hear(said(), wall=2000, now=5) == "new"
    assert peers.hear(said(time=2004.0), wall=2004, now=9) == "same"
    assert peers.hear(said(time=2005.0, mac="02:00:00:00:00:12"), wall=2005, now=10) == "changed"
    assert peers.hear(said(time=2004.0), wall=2005, now=10) == "old", "repeated by somebody"
    assert peers.hear(said(started=1500.0, time=2006.0), wall=2006, now=11) == "new", "it was started anew"
    assert [peer.said.time for peer in peers.all()] == [2006.0]


def test_a_clock_that_is_off_is_named() -> None:
    peers = Peers(10)
    assert peers.hear(said(time=2037.5), wall=2000, now=5) == "clock"
    (text,) = peers.skewed.values()
    assert text.startswith(
        "the clock of sensor arm-sensor (192.0.2.11) is 37.5 s ahead of this host's, more than"
    )
    assert peers.hear(said(time=1000.0), wall=2000, now=5) == "clock"
    assert "1000.0 s behind" in peers.skewed[said().ip]
    assert peers.hear(said(time=2001.0), wall=2000, now=5) == "new"
    assert not peers.skewed


def test_who_leaves_or_falls_silent_is_forgotten() -> None:
    peers = Peers(10)
    peers.hear(said(), wall=2000, now=5)
    peers.hear(said(ip="192.0.2.12", mac="02:00:00:00:00:12"), wall=2000, now=5)
    assert peers.hear(said(time=2001.0, leaving=True), wall=2001, now=6) == "changed"
    assert [str(peer.ip) for peer in peers.of("sensor")] == ["192.0.2.12"]
    assert peers.expire(5 + LIFETIME) == []
    assert [str(gone.ip) for gone in peers.expire(5.1 + LIFETIME)] == ["192.0.2.12"]
    assert peers.all() == []


def test_the_table_is_bounded() -> None:
    peers = Peers(10)
    for number in range(MAX_PEERS):
        assert peers.hear(said(ip=str(IPv4Address("10.0.0.1") + number)), wall=2000, now=5) == "new"
    assert peers.hear(said(ip="192.0.2.99"), wall=2000, now=5) == "full"
    assert peers.hear(said(ip="10.0.0.1", time=2001.0), wall=2000, now=5) == "same"


# the key's file


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "key"
    key.make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    text = said().sealed(Key.load(path))
    assert unseal(Key.load(path), text).name == "arm-sensor"
    with pytest.raises(ConfigError, match="exists already, and a key is not replaced"):
        key.make(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    key.make(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o} lets others read the key; `chmod 600"):
        Key.load(path)


def test_a_short_key_and_no_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match=r"there is no key; .*make the first: `midstream key"):
        Key.load(path)
    path.write_text("secret\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="6 bytes are no key, at least 32"):
        Key.load(path)
