"""Owns what judge and worker say to each other; knows nothing of what is computed.

One request at a time over a Unix stream socket: a 4-byte length, then JSON. Every
request carries a fresh nonce; only a complete answer that repeats it counts as success.
Tensor bytes travel beside it in shared memory whose descriptors are sent once: an image of the inputs,
which workers can only read, and for each worker an area of its own for answers, which no other sees.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

MAX_MESSAGE = 64 << 20
GUARD_BYTES = 4096  # of NaN on each side of every tensor: over-reads poison, over-writes are seen
ALIGN = 4096

ErrorKind = Literal["build", "cannot_run", "candidate", "out_of_memory", "device", "protocol"]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class WorkerError(Exception):
    """Base of what can go wrong with a request."""


class WorkerDied(WorkerError):
    """The worker's process ended, or spoke out of turn, in the middle of a request."""


class WorkerLost(WorkerDied):
    """The worker ended by what its kernel cannot have done: the machine's fault, or somebody else's."""


class WorkerOverCap(WorkerDied):
    """The worker took more of the machine than it may, and was killed."""


class WorkerTimeout(WorkerError):
    """No complete answer within the request's time limit; the worker has been killed."""


@dataclass
class RequestFailed(WorkerError):
    """The worker answered that the request failed; `trace` is the worker's own account."""

    kind: ErrorKind
    message: str
    trace: str = ""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class TensorLayout:
    """Where a tensor lies in one content of the image: bytes from the content's start, guards included."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Literal["input", "output"]
    offset: int  # of the leading guard
    nbytes: int  # without guards

    @property
    def stored(self) -> int:
        """Bytes with both guards."""
        return self.nbytes + 2 * GUARD_BYTES


@dataclass(frozen=True)
class ImageLayout:
    """`contents` sets of inputs in the image; a worker's answers, the tensors of one slot, lie apart."""

    tensors: tuple[TensorLayout, ...]
    contents: int
    stride: int  # bytes of one content

    @property
    def total(self) -> int:
        """Bytes of the image; an answer takes `stride`."""
        return self.stride * max(1, self.contents)

    def content_start(self, content: int) -> int:
        return self.stride * content

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImageLayout:
        tensors = tuple(TensorLayout(**{**t, "shape": tuple(t["shape"])}) for t in data["tensors"])
        return cls(tensors, data["contents"], data["stride"])


def layout_of(
    tensors: list[tuple[str, tuple[int, ...], str, Literal["input", "output"], int]], contents: int
) -> ImageLayout:
    """Place tensors given as (name, shape, dtype, role, nbytes) one after another, aligned."""
    offset = 0
    placed = []
    for name, shape, dtype, role, nbytes in tensors:
        placed.append(TensorLayout(name, shape, dtype, role, offset, nbytes))
        offset += -(-(nbytes + 2 * GUARD_BYTES) // ALIGN) * ALIGN
    return ImageLayout(tuple(placed), contents, offset)


def send(sock: socket.socket, message: Mapping[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Write one message, with descriptors attached where given."""
    body = json.dumps(message).encode()
    data = struct.pack(">I", len(body)) + body
    if fds:
        sent = socket.send_fds(sock, [data], list(fds))
        data = data[sent:]
    sock.sendall(data)


def receive(
    sock: socket.socket, deadline: float | None = None, fds: list[int] | None = None
) -> dict[str, Any]:
    """Read one message; descriptors that came with it are appended to `fds`.

    `deadline` is in time.monotonic() seconds. Raises WorkerTimeout past it, WorkerDied
    when the other side is gone or what it sent is no message.
    """
    header = _read(sock, 4, deadline, fds)
    (size,) = struct.unpack(">I", header)
    if size > MAX_MESSAGE:
        raise WorkerDied(f"message of {size} bytes refused (limit {MAX_MESSAGE})")
    try:
        message = json.loads(_read(sock, size, deadline, None))
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise WorkerDied(f"the answer is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise WorkerDied("the answer is not an object")
    return message


def _read(sock: socket.socket, size: int, deadline: float | None, fds: list[int] | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise WorkerTimeout("no answer in time")
        sock.settimeout(left)
        try:
            if fds is None:
                part = sock.recv(size - len(parts))
            else:
                part, received, _, _ = socket.recv_fds(sock, size - len(parts), 4)
                fds.extend(received)
        except TimeoutError as error:
            raise WorkerTimeout("no answer in time") from error
        except OSError as error:
            raise WorkerDied(f"the connection broke: {error}") from error
        if not part:
            raise WorkerDied("the worker closed the connection")
        parts += part
    return bytes(parts)
