import os
import socket
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.worker.protocol import (
    ALIGN,
    GUARD_BYTES,
    MAX_MESSAGE,
    ImageLayout,
    WorkerDied,
    WorkerTimeout,
    layout_of,
    receive,
    send,
)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_message_arrives_whole_however_large(pair):
    message = {"text": "x" * 3_000_000}
    thread = threading.Thread(target=send, args=(pair[0], message))
    thread.start()
    assert receive(pair[1], time.monotonic() + 10) == message
    thread.join()


def test_descriptors_come_with_their_message(pair):
    read, write = os.pipe()
    send(pair[0], {"op": "map"}, (write,))
    received: list[int] = []
    receive(pair[1], fds=received)
    os.write(received[0], b"hello")
    assert os.read(read, 5) == b"hello"


def test_silence_is_a_timeout(pair):
    with pytest.raises(WorkerTimeout):
        receive(pair[1], time.monotonic() + 0.05)


def test_half_a_message_is_a_timeout_and_a_closed_end_is_a_death(pair):
    pair[0].sendall(struct.pack(">I", 100) + b"{}")
    with pytest.raises(WorkerTimeout):
        receive(pair[1], time.monotonic() + 0.05)
    pair[0].close()
    with pytest.raises(WorkerDied):
        receive(pair[1], time.monotonic() + 1)


@pytest.mark.parametrize("body", [b"not json", b"[1, 2]", b"\xff\xfe"])
def test_what_is_no_object_is_a_death(pair, body):
    pair[0].sendall(struct.pack(">I", len(body)) + body)
    with pytest.raises(WorkerDied):
        receive(pair[1], time.monotonic() + 1)


def test_an_oversized_message_is_refused_before_it_is_read(pair):
    pair[0].sendall(struct.pack(">I", MAX_MESSAGE + 1))
    with pytest.raises(WorkerDied, match="refused"):
        receive(pair[1], time.monotonic() + 1)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=6), st.integers(0, 4))
def test_tensors_of_an_image_never_overlap(sizes, contents):
    layout = layout_of([(str(n), (s,), "fp16", "input", s) for n, s in enumerate(sizes)], contents)
    ends = 0
    for t in layout.tensors:
        assert t.offset >= ends
        assert t.offset % ALIGN == 0
        ends = t.offset + t.nbytes + 2 * GUARD_BYTES
    assert ends <= layout.stride
    assert layout.total == layout.stride * max(1, contents)  # memory of no bytes cannot be mapped
    assert ImageLayout.from_json(layout.to_json()) == layout
