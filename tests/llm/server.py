"""A server on loopback that speaks both protocols and does what a test scripted, one reply a request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


@dataclass(frozen=True)
class Reply:
    """What the server sends. `chunks` go out one by one; `drop`: the connection ends before the body does."""

    status: int = 200
    chunks: tuple[bytes, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0  # before anything is sent
    pause_s: float = 0.0  # before the last chunk
    drop: bool = False


@dataclass
class Asked:
    """A request as the server got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Script = Callable[[Asked, int], Reply]


class Server:
    """Replies by a script, which is given each request and its number; remembers what was asked."""

    def __init__(self, script: Script | Sequence[Reply]) -> None:
        self.asked: list[Asked] = []
        self._script = script if callable(script) else _in_order(script)
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(length) or b"{}")
                outer._answer(self, Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, body))

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def _answer(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        with self._lock:
            number = len(self.asked)
            self.asked.append(asked)
        reply = self._script(asked, number)
        time.sleep(reply.wait_s)
        try:
            handler.send_response(reply.status)
            headers = {"content-type": "text/event-stream", "connection": "close", **reply.headers}
            if reply.drop:
                headers["content-length"] = "1000000"
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            for n, chunk in enumerate(reply.chunks):
                if n == len(reply.chunks) - 1:
                    time.sleep(reply.pause_s)
                handler.wfile.write(chunk)
                handler.wfile.flush()
        except OSError:  # the client did not wait
            pass
        handler.close_connection = True

    @contextmanager
    def running(self) -> Iterator[Server]:
        thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def _in_order(replies: Sequence[Reply]) -> Script:
    """Each reply in turn; the last one for ever."""
    return lambda _, number: replies[min(number, len(replies) - 1)]


def error(status: int, message: str, **more: Any) -> Reply:
    """An error, as both providers send it; it may be tried again at once."""
    body = {"type": "error", "error": {"message": message, "type": "some_error", **more}}
    return json_reply(body, status, {"retry-after": "0.01"})


def json_reply(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    data = json.dumps(body).encode()
    return Reply(status, (data,), {"content-type": "application/json", **(headers or {})})


class OpenAIWords:
    """What a server of chat completions says."""

    path = "/v1/chat/completions"
    base = "/v1"

    def stream(
        self,
        texts: Sequence[str],
        finish: str | None = "stop",
        usage: tuple[int, int] | None = (11, 7),
        **reply: Any,
    ) -> Reply:
        pieces = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
        chunks = [self.piece(delta) for delta in pieces]
        if finish:
            chunks.append(self.piece({}, finish))
        if usage:
            counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
            chunks.append(self.event({**self.head, "choices": [], "usage": counts}))
        if finish:
            chunks.append(b"data: [DONE]\n\n")
        return Reply(chunks=tuple(chunks), headers={"x-request-id": "req-1"}, **reply)

    head: ClassVar = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "model-2026-01-01",
        "system_fingerprint": "fp_1",
    }

    def piece(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return self.event({**self.head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    @staticmethod
    def event(data: object) -> bytes:
        return b"data: " + json.dumps(data).encode() + b"\n\n"

    def refusal(self) -> Reply:
        return Reply(chunks=(self.piece({"refusal": "I can't help."}), self.piece({}, "stop")))

    def overloaded(self) -> Reply:
        return Reply(chunks=(self.event({"error": {"message": "overloaded", "type": "server_error"}}),))

    def limited(self) -> Reply:
        return Reply(chunks=(self.event({"error": {"message": "slow down", "code": 429}}),))

    def broken(self) -> Reply:
        return Reply(chunks=(self.piece({"content": "a"}), b'data: {"choices": [{"index"\n\n'))


class AnthropicWords:
    """What a server of messages says."""

    path = "/v1/messages"
    base = ""

    def stream(
        self,
        texts: Sequence[str],
        finish: str | None = "stop",
        usage: tuple[int, int] | None = (11, 7),
        **reply: Any,
    ) -> Reply:
        stop = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
        message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
        message |= {"model": "model-20260101", "stop_reason": None, "stop_sequence": None}
        if usage:
            message["usage"] = {"input_tokens": usage[0], "output_tokens": 1}
        chunks = [self.event({"type": "message_start", "message": message}), self.event({"type": "ping"})]
        block = {"type": "thinking", "thinking": "", "text": "not shown", "signature": ""}
        thought = {"type": "thinking_delta", "thinking": "not shown", "text": "not shown"}
        chunks += [
            self.event({"type": "content_block_start", "index": 0, "content_block": block}),
            self.event({"type": "content_block_delta", "index": 0, "delta": thought}),
            self.event({"type": "content_block_stop", "index": 0}),
        ]
        block = {"type": "text", "text": ""}
        chunks.append(self.event({"type": "content_block_start", "index": 1, "content_block": block}))
        for text in texts:
            delta = {"type": "text_delta", "text": text}
            chunks.append(self.event({"type": "content_block_delta", "index": 1, "delta": delta}))
        chunks.append(self.event({"type": "content_block_stop", "index": 1}))
        if finish:
            last: dict[str, Any] = {
                "type": "message_delta",
                "delta": {"stop_reason": stop.get(finish, finish)},
            }
            if usage:
                last["usage"] = {"output_tokens": usage[1]}
            chunks += [self.event(last), self.event({"type": "message_stop"})]
        return Reply(chunks=tuple(chunks), headers={"request-id": "req-1"}, **reply)

    @staticmethod
    def event(data: dict[str, Any]) -> bytes:
        return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()

    def refusal(self) -> Reply:
        return self.stream(["I can't help."], "refusal")

    def overloaded(self) -> Reply:
        error = {"type": "overloaded_error", "message": "overloaded"}
        return Reply(chunks=(self.event({"type": "error", "error": error}),))

    def limited(self) -> Reply:
        error = {"type": "rate_limit_error", "message": "slow down"}
        return Reply(chunks=(self.event({"type": "error", "error": error}),))

    def broken(self) -> Reply:
        whole = self.stream(["a"])
        return Reply(chunks=(*whole.chunks[:2], b'event: content_block_start\ndata: {"type": "con\n\n'))
