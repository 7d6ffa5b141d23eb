"""Claims about questions that are answered later: the file of them, and the answers that come back."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.llm.answers import ANTHROPIC, OPENAI, PLAIN
from harness.llm.client import Completion, Deferred, Request, Stop
from harness.llm.deferred import (
    Answered,
    AnswersError,
    DeferredClient,
    PendingError,
    pending_line,
    read_answers,
    read_pending,
    write_pending,
)
from tests.llm.talk import request, requests


def test_asking_defers() -> None:
    with pytest.raises(Deferred):
        DeferredClient().complete(request("a"))
    assert DeferredClient().provider == "deferred"


# --- pending questions ---


@settings(max_examples=40, deadline=None)  # each waits for the disk
@given(st.lists(requests, min_size=1, max_size=5))
def test_questions_come_back_from_their_file(asked: list[Request]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pending.jsonl"
        write_pending(file, asked)
        found = read_pending(file)
        assert found == {r.key: r for r in asked}
        assert list(found) == sorted(found)
        before = file.read_bytes()
        write_pending(file, [*reversed(asked), *asked])
        assert file.read_bytes() == before
        assert os.listdir(folder) == ["pending.jsonl"]


def test_a_question_is_a_line_of_a_batch() -> None:
    asked = request("say \u2028 'hi'", "hi", "again", max_tokens=7, temperature=0.5, sample=3)
    line = pending_line(asked)
    assert "\n" not in line and line.isascii()
    assert json.loads(line) == {
        "custom_id": asked.key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [
                {"role": "user", "content": "say \u2028 'hi'"},
                {"role": "assistant", "content": "hi"},
                {"role": "user", "content": "again"},
            ],
            "max_tokens": 7,
            "temperature": 0.5,
        },
    }


def test_no_questions_leave_no_file(tmp_path: Path) -> None:
    file = tmp_path / "pending.jsonl"
    write_pending(file, [])
    assert read_pending(file) == {}
    write_pending(file, [request("a")])
    write_pending(file, [])
    assert not file.exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pending.jsonl"
    write_pending(file, [request("a")])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_pending(file, [request("b")])
    assert list(read_pending(file)) == [request("a").key]


def test_a_bound_may_have_its_newer_name_and_a_batch_more_fields(tmp_path: Path) -> None:
    asked = request("a", max_tokens=7)
    data = json.loads(pending_line(asked))
    data["body"]["max_completion_tokens"] = data["body"].pop("max_tokens")
    data["body"]["reasoning_effort"] = "high"
    (tmp_path / "p").write_text(json.dumps(data))
    assert read_pending(tmp_path / "p") == {asked.key: asked}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "not JSON"),
        ("[]", "valid"),
        ('{"custom_id": "a"}', "body: Field required"),
        (pending_line(request("a")).replace('"a"', '"b"'), "edited"),
    ],
)
def test_a_broken_question_is_told_by_its_place(tmp_path: Path, bad: str, says: str) -> None:
    file = tmp_path / "pending.jsonl"
    file.write_text(pending_line(request("x")) + "\n" + bad + "\n")
    with pytest.raises(PendingError, match=r"pending.jsonl:2: ") as caught:
        read_pending(file)
    assert says in str(caught.value)


# --- answers ---

CHAT = {
    "id": "chatcmpl-1",
    "model": "gpt-4o-2024-08-06",
    "system_fingerprint": "fp_1",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 6},
}
MESSAGE = {
    "id": "msg_1",
    "model": "claude-x",
    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}],
    "stop_reason": "max_tokens",
    "usage": {"input_tokens": 5, "output_tokens": 6, "cache_read_input_tokens": 2},
}


def openai(key: str, body: Any = CHAT, status: int = 200, error: Any = None) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "req", "body": body}
    return {"id": "batch_req_1", "custom_id": key, "response": response, "error": error}


def anthropic(key: str, kind: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "custom_id": key,
        "result": {"type": kind, **({"message": MESSAGE} if kind == "succeeded" else {}), **more},
    }


def answers(folder: Path, *lines: Any) -> Path:
    file = folder / "answers.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def test_three_forms_are_read_from_one_file(tmp_path: Path) -> None:
    plain = {
        "custom_id": "k3",
        "text": "hi",
        "model": "m",
        "version": "v",
        "latency_s": 2,
        "tokens_in": 1,
        "tokens_out": 2,
    }
    file = answers(
        tmp_path, openai("k1"), "", anthropic("k2"), plain, {"custom_id": "k4", "text": "", "stop": "refusal"}
    )
    assert read_answers(file) == [
        Answered("k1", Completion("hi", Stop.END, 5, 6, None, "gpt-4o-2024-08-06", "fp_1", "req")),
        Answered("k2", Completion("hi", Stop.LENGTH, 7, 6, None, "claude-x", "", "msg_1")),
        Answered("k3", Completion("hi", Stop.END, 1, 2, 2.0, "m", "v", "")),
        Answered("k4", Completion("", Stop.REFUSAL)),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (openai("k", {"error": {"message": "too long", "code": "x"}}, 400), "HTTP 400: too long"),
        (openai("k", None, 500), "HTTP 500"),
        ({"custom_id": "k", "response": None, "error": {"code": "batch_expired", "message": "late"}}, "late"),
        ({"custom_id": "k", "response": None, "error": None}, "no response"),
        (anthropic("k", "errored", error={"type": "error", "error": {"type": "x", "message": "bad"}}), "bad"),
        (anthropic("k", "expired"), "expired"),
        (anthropic("k", "canceled"), "canceled"),
        (openai("k", {"choices": [{"message": {"content": "ha"}, "finish_reason": "error"}]}), "broke off"),
        (openai("k", {"error": {"message": "no room"}}), "no room"),
    ],
)
def test_a_failed_request_of_a_batch_is_no_answer(tmp_path: Path, line: Any, says: str) -> None:
    (found,) = read_answers(answers(tmp_path, line))
    assert found.key == "k" and found.completion is None and says in found.error


@pytest.mark.parametrize(
    ("bad", "says", "example"),
    [
        ("{", "not JSON", PLAIN),
        ("[1]", "is no object", PLAIN),
        ({"text": "a"}, "custom_id is missing", PLAIN),
        ({"custom_id": "", "text": "a"}, "custom_id is missing", PLAIN),
        ({"custom_id": 7, "text": "a"}, "'custom_id' is int, not str", PLAIN),
        ({"custom_id": "k"}, "text: Field required", PLAIN),
        ({"custom_id": "k", "text": 3}, "text: ", PLAIN),
        (
            {"custom_id": "k", "text": "a", "latency": 3},
            "latency: Extra inputs are not permitted; fields: ",
            PLAIN,
        ),
        ({"custom_id": "k", "text": "a", "latency_s": -1}, "latency_s: ", PLAIN),
        ({"custom_id": "k", "text": "a", "stop": "soon"}, "stop: ", PLAIN),
        ('{"custom_id": "k", "text": "a", "latency_s": Infinity}', "latency_s: ", PLAIN),
        (openai("k", {"choices": []}), "no finish_reason", OPENAI),
        (openai("k", {}), "no finish_reason", OPENAI),
        (openai("k", "text"), "'body' is str, not dict", OPENAI),
        ({"custom_id": "k", "response": "hi"}, "'response' is str, not dict", OPENAI),
        (anthropic("k", "done"), "result.type is 'done'", ANTHROPIC),
        ({"custom_id": "k", "result": {"type": "succeeded"}}, "no stop_reason", ANTHROPIC),
    ],
)
def test_one_broken_line_refuses_the_file_and_shows_what_is_right(
    tmp_path: Path, bad: Any, says: str, example: str
) -> None:
    file = answers(tmp_path, openai("k1"), bad, openai("k2"))
    with pytest.raises(AnswersError, match=r"answers\.jsonl:2: ") as caught:
        read_answers(file)
    assert says in str(caught.value) and example in str(caught.value)


@pytest.mark.parametrize("example", [PLAIN, OPENAI, ANTHROPIC])
def test_the_examples_are_right(tmp_path: Path, example: str) -> None:
    choice = '{"message": {"content": "the answer"}, "finish_reason": "stop"}'
    block = '{"type": "text", "text": "the answer"}], "stop_reason": "end_turn"'
    text = example.replace('"choices": [...]', f'"choices": [{choice}]').replace("[...]", "[" + block)
    (found,) = read_answers(answers(tmp_path, text))
    assert found.key == "KEY" and found.completion is not None and found.completion.text == "the answer"


def test_two_answers_to_one_question_must_be_one(tmp_path: Path) -> None:
    assert len(read_answers(answers(tmp_path, openai("k"), openai("k")))) == 1
    with pytest.raises(AnswersError, match=r":2: another answer to k"):
        read_answers(answers(tmp_path, openai("k"), {"custom_id": "k", "text": "else"}))


def test_a_mark_at_the_beginning_and_odd_ends_of_lines_do_no_harm(tmp_path: Path) -> None:
    text = '{"custom_id": "k", "text": "a\u2028b\x85c"}'
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    (found,) = read_answers(file)
    assert found.completion is not None and found.completion.text == "a\u2028b\x85c"


def test_no_file_of_answers(tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match=r"nothing\.jsonl: No such file") as caught:
        read_answers(tmp_path / "nothing.jsonl")
    assert PLAIN in str(caught.value)


# --- a folder of texts ---


def test_a_folder_holds_a_text_for_each_answer(tmp_path: Path) -> None:
    asked = [request("a").key, request("b").key]
    (tmp_path / f"{asked[0][:16]}.answer.md").write_text("first\n", encoding="utf-8-sig")
    (tmp_path / f"{asked[1]}.answer.md").write_text("sécond", encoding="utf-8")
    (tmp_path / "ffffffffffff.answer.md").write_text("strange")
    (tmp_path / f"{asked[0][:16]}.md").write_text("the question")
    found = {a.key: a.completion.text for a in read_answers(tmp_path, asked) if a.completion}
    assert found == {asked[0]: "first\n", asked[1]: "sécond", "ffffffffffff": "strange"}


def test_names_in_a_folder_must_be_of_one_question(tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match=r"holds no answer; name each KEY\.answer\.md"):
        read_answers(tmp_path, ["a" * 64])
    (tmp_path / "aaaaaaaa.answer.md").write_text("x")
    with pytest.raises(AnswersError, match="2 questions begin with aaaaaaaa"):
        read_answers(tmp_path, ["a" * 64, "a" * 63 + "b"])
    (tmp_path / "aaaaaaaaa.answer.md").write_text("x")
    with pytest.raises(AnswersError, match="another file answers"):
        read_answers(tmp_path, ["a" * 64])
    (tmp_path / "aaaaaaaaa.answer.md").unlink()
    (tmp_path / "aaaaaaaa.answer.md").write_bytes(b"\xff\xfe")
    with pytest.raises(AnswersError, match="no UTF-8"):
        read_answers(tmp_path, ["a" * 64])
