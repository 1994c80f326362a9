"""Who is believed: the key, the clock, the newest word, and a bounded table."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.announcements import announcement as said
from tests.support.announcements import word

from midstream import key
from midstream.daemon.announcement import Mark, Word, unseal
from midstream.daemon.freshness import LATE, Voice
from midstream.daemon.peers import LIFETIME, MAX_PEERS, Peers
from midstream.daemon.seal import ForgedError, Key
from midstream.errors import ConfigError

KEY = Key(b"k" * 32)


def test_what_is_sealed_is_read_with_the_same_key_only() -> None:
    mark = Mark(tos=104, port=12345, size=1024)
    text = word(role="hardworker", mark=mark).sealed(KEY)
    assert unseal(KEY, text).said.mark == mark
    assert b"192.0.2" not in text
    assert b"arm-sensor" not in text
    with pytest.raises(ForgedError):
        unseal(Key(b"another key, of 32 bytes or more!"), text)


@pytest.mark.parametrize("place", [0, 1, 13, 40, -1])
def test_a_changed_byte_is_noticed(place: int) -> None:
    text = bytearray(word().sealed(KEY))
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


class Network:
    """Peers that hear what voices say, at a time that is set."""

    def __init__(self) -> None:
        self.now = 5.0
        self.peers = Peers(10, lambda: self.now)

    def voice(self) -> Voice:
        return Voice(lambda: self.now)

    def hear(self, said: Word, *, wall: float = 2000.0) -> str:
        return self.peers.hear(said, wall=wall, now=self.now)


def test_who_answers_is_believed_and_the_newest_word_counts() -> None:
    network = Network()
    peers, voice = network.peers, network.voice()
    assert peers.ear.wants, "who has just started asks"
    recorded = word(voice)
    assert network.hear(recorded) == "unproven"
    assert network.hear(word(voice, peers.ear)) == "new"
    assert network.hear(recorded) == "repeated"
    network.now += 4
    assert network.hear(word(voice, time=2004.0)) == "same"
    early = word(voice, mac="02:00:00:00:00:13")
    assert network.hear(word(voice, mac="02:00:00:00:00:12")) == "changed"
    assert network.hear(early) == "repeated"
    anew = network.voice()
    assert network.hear(word(anew)) == "unproven"
    network.now += 0.1
    assert network.hear(word(anew, peers.ear, mac="02:00:00:00:00:14")) == "new", "it was started anew"
    assert network.hear(word(voice)) == "unproven", "the run before has ended"
    assert [str(peer.said.mac) for peer in peers.all()] == ["02:00:00:00:00:14"]


def test_a_clock_that_is_off_is_named_and_the_host_is_heard() -> None:
    """Also one that was set back, with a restart."""
    network = Network()
    peers, voice = network.peers, network.voice()
    assert network.hear(word(voice, peers.ear, time=2037.5)) == "new"
    (text,) = peers.skewed.values()
    assert text.startswith(
        "the clock of sensor arm-sensor (192.0.2.11) is 37.5 s ahead of this host's, more than"
    )
    assert network.hear(word(voice, time=1000.0)) == "same"
    assert "1000.0 s behind" in peers.skewed[said().ip]
    network.now += 0.1
    assert network.hear(word(network.voice(), peers.ear, time=1995.0)) == "new"
    assert not peers.skewed


def test_who_leaves_or_falls_silent_is_forgotten_and_not_believed_again() -> None:
    network = Network()
    peers, voice, other = network.peers, network.voice(), network.voice()
    first = word(voice, peers.ear)
    network.hear(first)
    recorded = [first, word(voice, peers.ear), word(voice, mac="02:00:00:00:00:99")]
    network.hear(word(other, peers.ear, ip="192.0.2.12", mac="02:00:00:00:00:12"))
    assert network.hear(word(voice, leaving=True)) == "changed"
    assert [str(peer.ip) for peer in peers.of("sensor")] == ["192.0.2.12"]
    assert [network.hear(one) for one in recorded] == ["unproven"] * 3
    assert peers.expire(5 + LIFETIME) == []
    assert [str(gone.ip) for gone in peers.expire(5.1 + LIFETIME)] == ["192.0.2.12"]
    assert peers.all() == []
    network.now += 5
    assert peers.ear.unanswered() == 1, "somebody repeats what a run said that is no more"


def test_what_was_held_back_is_not_believed_later() -> None:
    """Of a run that is known, and of one before it that answered us."""
    network = Network()
    ear, voice = network.peers.ear, network.voice()
    assert network.hear(word(voice, ear)) == "new"
    network.now += 1.0
    held = word(voice, mac="02:00:00:00:00:99")
    answered = word(voice, ear, mac="02:00:00:00:00:98")
    network.now += LATE + 0.1
    assert network.hear(held) == "unproven"
    assert network.hear(word(voice, ear)) == "same"
    network.now += 0.1
    last = word(voice, ear, mac="02:00:00:00:00:97")
    network.now += 0.1
    anew = network.voice()
    assert network.hear(word(anew, ear)) == "new"
    assert [network.hear(one) for one in (held, answered, last)] == ["unproven"] * 3


def test_a_host_whose_clock_stood_still_is_heard_again_when_it_answers() -> None:
    network = Network()
    ear, moment = network.peers.ear, [0.0]
    voice = Voice(lambda: moment[0])
    assert network.hear(word(voice, ear)) == "new"
    network.now += LATE + 1
    assert network.hear(word(voice)) == "unproven"
    assert ear.wants
    assert [network.hear(word(voice, ear)), network.hear(word(voice))] == ["same", "same"]


@pytest.mark.slow
def test_the_table_is_bounded() -> None:
    network = Network()
    ear = network.peers.ear
    first = network.voice()
    assert network.hear(word(first, ear, ip="10.0.0.1")) == "new"
    for number in range(1, MAX_PEERS):
        assert network.hear(word(None, ear, ip=str(IPv4Address("10.0.0.1") + number))) == "new"
    assert network.hear(word(None, ear, ip="192.0.2.99")) == "full"
    assert network.hear(word(first, ip="10.0.0.1")) == "same"


# the key's file


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "key"
    key.make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    text = word().sealed(Key.load(path))
    assert unseal(Key.load(path), text).said.name == "arm-sensor"
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
