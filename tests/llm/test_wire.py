"""Claims about reading what servers send: any JSON is a part of an answer, or a typed error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.llm.chat import ChatAnswer
from harness.llm.client import Stop
from harness.llm.messages import MessageAnswer
from harness.llm.wire import InterruptedAnswer, MalformedAnswer, whole

WORDS = [
    *("type", "id", "model", "error", "choices", "index", "delta", "message", "content", "refusal", "usage"),
    *("finish_reason", "stop_reason", "text", "content_block", "prompt_tokens", "input_tokens", "text_delta"),
    *("message_start", "content_block_start", "content_block_delta", "message_delta", "stop", "end_turn"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_any_json_is_an_answer_or_a_typed_error(pieces: list[object]) -> None:
    for make in (ChatAnswer, MessageAnswer):
        answer = make()
        add = answer.add if isinstance(answer, ChatAnswer) else answer.add_event
        with contextlib.suppress(MalformedAnswer, InterruptedAnswer):
            for piece in pieces:
                add(piece)
            assert isinstance(answer.completion().stop, Stop)


@given(st.text())
def test_a_text_with_pairs_in_two_halves_is_made_whole(text: str) -> None:
    units = text.encode("utf-16-le")
    halves = "".join(chr(int.from_bytes(units[n : n + 2], "little")) for n in range(0, len(units), 2))
    assert whole(halves) == text and whole(text) == text
    assert whole(text + "\ud83d") == text + "\ufffd"


def test_what_is_read_from_a_cache_was_sent_too() -> None:
    answer = MessageAnswer()
    usage = {
        "input_tokens": 3,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 5,
        "output_tokens": 2,
    }
    answer.add_message({"content": [], "stop_reason": "model_context_window_exceeded", "usage": usage})
    completion = answer.completion()
    assert (completion.tokens_in, completion.tokens_out, completion.stop) == (12, 2, Stop.LENGTH)


def test_nothing_at_all_is_no_answer() -> None:
    for answer in (ChatAnswer(), MessageAnswer()):
        with pytest.raises(MalformedAnswer, match="is base_url right"):
            answer.completion()
