"""Framing: whatever the chunks, the stream gives back its messages, its tail and its first fault."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.errors import FramingError
from midstream.framing import Decoder, Framing, decoder, encode

SIZE = 7
MAX_SIZE = 40
KINDS: list[Framing] = ["fixed", "length", "line"]


def payloads(kind: Framing) -> st.SearchStrategy[list[bytes]]:
    if kind == "fixed":
        return st.lists(st.binary(min_size=SIZE, max_size=SIZE), max_size=30)
    if kind == "length":
        return st.lists(st.binary(max_size=MAX_SIZE), max_size=30)
    return st.lists(st.binary(max_size=MAX_SIZE).map(lambda data: data.replace(b"\n", b"\r")), max_size=30)


def chunked(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=40)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[Framing, list[bytes], bytes, list[bytes]]:
    """A framing, messages, the start of one more message, and their stream in arbitrary chunks."""
    kind = draw(st.sampled_from(KINDS))
    messages = draw(payloads(kind))
    framed = b"".join(encode(kind, payload, size=SIZE, max_size=MAX_SIZE) for payload in messages)
    next_frame = encode(kind, b"x" * SIZE, size=SIZE, max_size=MAX_SIZE)
    tail = next_frame[: draw(st.integers(0, len(next_frame) - 1))]
    return kind, messages, tail, chunked(draw, framed + tail)


def new_decoder(kind: Framing) -> Decoder:
    return decoder(kind, size=SIZE, max_size=MAX_SIZE)


@given(streams())
def test_any_chunking_gives_back_the_messages(
    stream: tuple[Framing, list[bytes], bytes, list[bytes]],
) -> None:
    kind, messages, tail, chunks = stream
    frames = new_decoder(kind)
    received = [message for chunk in chunks for message in frames.feed(chunk)]
    assert received == messages
    assert all(type(message) is bytes for message in received)
    assert frames.unfinished == tail
    assert frames.pending == len(tail)
    assert frames.error is None


@given(st.data(), st.sampled_from(KINDS[1:]))
def test_a_fault_loses_no_message_before_it(data: st.DataObject, kind: Framing) -> None:
    messages = data.draw(payloads(kind))
    fault = (MAX_SIZE + 1).to_bytes(4, "big") if kind == "length" else b"x" * (MAX_SIZE + 1)
    framed = b"".join(encode(kind, payload, size=SIZE, max_size=MAX_SIZE) for payload in messages)
    stream = framed + fault + data.draw(st.binary(max_size=20))
    frames = new_decoder(kind)
    received: list[bytes] = []
    for chunk in data.draw(st.composite(chunked)(stream)):
        try:
            received += frames.feed(chunk)
        except FramingError:
            break
        if frames.error is not None:
            break
    assert received == messages
    assert frames.unfinished.startswith(fault)
    with pytest.raises(FramingError, match=f"longest allowed is {MAX_SIZE}"):
        frames.feed(b"")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_takes_any_buffer_and_keeps_no_hold_on_it(kind: Framing, wrap: type) -> None:
    frames = new_decoder(kind)
    source = bytearray(encode(kind, b"1234567", size=SIZE, max_size=MAX_SIZE) + b"\0")
    (message,) = frames.feed(wrap(source))
    source[:] = bytes(len(source))  # the ring's memory is used again at once
    source.clear()  # and would be refused while somebody holds a view
    assert message == b"1234567"
    assert frames.unfinished == b"\0"


@pytest.mark.parametrize("kind", KINDS)
def test_time_is_linear_for_a_long_message_in_small_chunks(kind: Framing) -> None:
    size = 4 << 20  # a decoder that searches or copies its buffer at each chunk takes minutes here
    frames = decoder(kind, size=size, max_size=size)
    stream = encode(kind, b"x" * size, size=size, max_size=size)
    started = time.process_time()
    received = [m for start in range(0, len(stream), 16) for m in frames.feed(stream[start : start + 16])]
    assert time.process_time() - started < 5
    assert [len(message) for message in received] == [size]


@pytest.mark.slow
def test_time_is_linear_for_many_messages_in_one_chunk() -> None:
    stream = b"\n" * (1 << 20)  # a decoder that moves its buffer's rest for each message takes minutes here
    frames = decoder("line", size=1, max_size=1)
    started = time.process_time()
    assert len(frames.feed(stream)) == 1 << 20
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        ("fixed", b"1234567", b"1234567"),
        ("length", b"abc", b"\0\0\0\3abc"),
        ("length", b"", b"\0\0\0\0"),
        ("line", b"abc\r", b"abc\r\n"),
        ("line", b"", b"\n"),
    ],
)
def test_frames_on_the_wire(kind: Framing, payload: bytes, expected: bytes) -> None:
    assert encode(kind, payload, size=SIZE, max_size=MAX_SIZE) == expected


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        ("fixed", b"123456", "messages of 7 bytes, this one has 6"),
        ("fixed", b"12345678", "messages of 7 bytes, this one has 8"),
        ("length", b"x" * 41, "longest allowed is 40"),
        ("line", b"x" * 41, "longest allowed is 40"),
        ("line", b"a\nb", "contains a newline"),
    ],
)
def test_refuses_a_payload_that_the_framing_cannot_carry(kind: Framing, payload: bytes, reason: str) -> None:
    with pytest.raises(FramingError, match=reason):
        encode(kind, payload, size=SIZE, max_size=MAX_SIZE)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_longest_message_is_allowed(kind: Framing) -> None:
    longest = b"x" * MAX_SIZE
    assert new_decoder(kind).feed(encode(kind, longest, size=SIZE, max_size=MAX_SIZE)) == [longest]


def test_a_line_too_long_is_refused_before_its_newline_comes() -> None:
    frames = new_decoder("line")
    assert frames.feed(b"x" * MAX_SIZE) == []
    with pytest.raises(FramingError):
        frames.feed(b"x")


def test_fixed_framing_refuses_an_impossible_size() -> None:
    with pytest.raises(FramingError, match="at least 1 byte"):
        decoder("fixed", size=0, max_size=MAX_SIZE)
