"""Requests and exchanges for tests, and strategies that draw them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from harness.llm.client import Message, Request, Sampling
from harness.story import Exchange, Said

texts = st.text(max_size=30)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
samplings = st.builds(
    Sampling,
    st.integers(1, 100_000),
    st.none() | st.sampled_from([0, 1, 0.0, 0.5, 1.0]),
    st.none() | st.sampled_from([0.1, 1.0]),
)
requests = st.builds(
    Request,
    st.text(min_size=1, max_size=8),
    st.lists(messages, max_size=4).map(tuple),
    samplings,
    st.integers(0, 20),
)


def request(*contents: str, model: str = "m", sample: int = 0, **sampling: Any) -> Request:
    """A conversation: user and assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    said = tuple(Message(role, text) for role, text in zip(roles, contents, strict=False))  # type: ignore[arg-type]
    return Request(model, said, Sampling(**sampling), sample)


def exchange(asked: Request, text: str = "answer", **more: Any) -> Exchange:
    """The request with an answer, as a transcript holds it."""
    return Exchange(
        id=asked.key,
        provider="openai",
        model=asked.model,
        sample=asked.sample,
        messages=tuple(Said(role=m.role, content=m.content) for m in asked.messages),
        sampling=asked.sampling.to_json(),
        text=text,
        recorded_at="2026-01-01T00:00:00Z",
        **more,
    )
