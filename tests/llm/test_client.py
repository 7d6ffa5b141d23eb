"""Claims about requests: the key is the content."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from harness.llm.client import Message, Request, Sampling
from tests.llm.talk import messages, request, requests, texts


@given(requests, requests)
def test_requests_that_differ_have_other_keys(one: Request, other: Request) -> None:
    assert (one.key == other.key) <= (one == other)
    assert replace(one).key == one.key


@given(requests, messages, texts)
def test_every_part_counts(asked: Request, message: Message, text: str) -> None:
    sampling = asked.sampling
    first = asked.messages[:1]
    others = [
        replace(asked, model=asked.model + "x"),
        replace(asked, sample=asked.sample + 1),
        replace(asked, messages=(*asked.messages, message)),
        replace(asked, messages=(message, *asked.messages)),
        replace(asked, sampling=replace(sampling, max_tokens=sampling.max_tokens + 1)),
        replace(asked, sampling=replace(sampling, temperature=0.25)),
        replace(asked, sampling=replace(sampling, top_p=0.25)),
    ]
    if first:
        said = first[0]
        role = "user" if said.role != "user" else "assistant"
        others.append(
            replace(asked, messages=(replace(said, content=said.content + " "), *asked.messages[1:]))
        )
        others.append(replace(asked, messages=(replace(said, role=role), *asked.messages[1:])))  # type: ignore[arg-type]
    assert all(other.key != asked.key for other in others)


@given(st.lists(texts, min_size=1, max_size=3))
def test_two_messages_are_not_one(contents: list[str]) -> None:
    joined = request("".join(contents))
    assert (joined.key == request(*contents).key) is (len(contents) == 1)


def test_what_is_not_set_is_not_sent_and_does_not_count() -> None:
    assert Sampling(5).to_json() == {"max_tokens": 5}
    assert request("a", temperature=0.0).key != request("a").key
