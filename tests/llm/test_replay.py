"""Claims about recorded answers: each to its own request, and a miss shows what differs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.llm.client import Completion, ErrorKind, Message, ProviderError, Request, Sampling, Stop
from harness.llm.nearest import LINES, WIDTH, excerpt
from harness.llm.replay import ReplayClient, TranscriptError, read_exchanges
from harness.story import Exchange
from tests.llm.talk import exchange, request, requests

PROMPT = "\n".join(f"rule {n}: say nothing of {n * n}" for n in range(40))


def miss(asked: Request, *recorded: Exchange) -> str:
    client = ReplayClient(recorded, asked.model)
    with pytest.raises(ProviderError) as caught:
        client.complete(asked)
    assert caught.value.kind is ErrorKind.MISS
    return str(caught.value)


def test_a_recorded_answer_comes_back_as_it_was() -> None:
    asked = request("hello")
    kept = exchange(
        asked,
        "hi",
        stop="length",
        reported_model="m-1",
        version="fp",
        request_id="r",
        tokens_in=3,
        tokens_out=4,
        latency_s=2.5,
    )
    client = ReplayClient([exchange(request("other")), kept], "m")
    assert client.complete(asked) == Completion("hi", Stop.LENGTH, 3, 4, 2.5, "m-1", "fp", "r")
    assert client.provider == "replay"


@given(st.lists(requests, min_size=1, max_size=6, unique_by=lambda r: r.key))
def test_every_request_finds_its_own_answer_and_no_other(asked: list[Request]) -> None:
    client = ReplayClient([exchange(r, text=str(n)) for n, r in enumerate(asked[:-1])], "m")
    for n, r in enumerate(asked[:-1]):
        assert client.complete(r).text == str(n)
    with pytest.raises(ProviderError) as caught:
        client.complete(asked[-1])
    assert caught.value.kind is ErrorKind.MISS
    assert "nothing:" not in str(caught.value)  # what differs is always named


def test_of_two_answers_the_later_counts() -> None:
    asked = request("hello")
    assert ReplayClient([exchange(asked, "old"), exchange(asked, "new")], "m").complete(asked).text == "new"


def test_a_miss_without_any_recording_says_so() -> None:
    assert "no exchange is recorded at all" in miss(request("a"))


def test_a_miss_names_the_settings_that_differ() -> None:
    asked = request("a", model="new", sample=2, max_tokens=10, temperature=0.5)
    text = miss(asked, exchange(request("a", model="old", sample=0, max_tokens=10, top_p=0.9)))
    assert "  model: asked new, recorded old" in text
    assert "  sample: asked 2, recorded 0" in text
    assert "  sampling.temperature: asked 0.5, recorded the default" in text
    assert "  sampling.top_p: asked the default, recorded 0.9" in text
    assert "max_tokens" not in text and "message" not in text
    assert "answers are recorded of old" in text


def test_a_miss_shows_the_first_message_that_differs() -> None:
    changed = PROMPT.replace("rule 20: say nothing of 400", "rule 20: say everything of 400")
    text = miss(request("same", "reply", changed), exchange(request("same", "reply", PROMPT)))
    assert "  message 3 of 3 (user)" in text
    assert "-rule 20: say nothing of 400\n+rule 20: say everything of 400" in text
    assert "@@ line 21 @@" in text
    assert "model" not in text.split("differs in:")[1] and "rule 10" not in text


def test_the_nearest_is_the_one_that_agrees_longest_then_the_most_similar() -> None:
    asked = request("system", PROMPT + "\nlast")
    near = exchange(request("system", PROMPT + "\nlost"))
    others = [
        exchange(request("system", "wholly different")),
        exchange(request("another", PROMPT + "\nlast")),
        exchange(request("system", PROMPT + "\nlast", "and on")),
        exchange(request("system", PROMPT[: len(PROMPT) // 2])),
    ]
    for recorded in ([near, *others], [*others, near]):
        text = miss(asked, *recorded)
        assert near.id[:12] in text and "-lost\n+last" in text
    longer = miss(asked, others[2])
    assert "number of messages: asked 2, recorded 3" in longer


def test_among_equal_texts_the_settings_decide() -> None:
    recorded = [exchange(request("a", model=m, sample=s)) for m in "xyz" for s in (0, 1)]
    text = miss(request("a", model="y", sample=2), *recorded)
    assert "sample: asked 2" in text and "model:" not in text


def test_an_id_that_is_not_of_its_content_is_told() -> None:
    edited = exchange(request("a")).model_copy(update={"id": "0" * 64})
    assert "was the file edited?" in miss(request("a"), edited)


def test_a_miss_is_found_among_hundreds_of_long_prompts_in_a_moment() -> None:
    long = "\n".join(f"line {n} of a prompt that goes on and on" for n in range(750))
    recorded = [
        exchange(request("s", long.replace("line 7", f"row {n}"), "r", long + str(n))) for n in range(300)
    ]
    asked = request("s", long.replace("line 7", "row 299x"), "r", long + "299")
    begun = time.process_time()
    text = miss(asked, *recorded)
    assert time.process_time() - begun < 2.0
    assert recorded[299].id[:12] in text


@given(st.text("ab \n-+@", max_size=60), st.text("ab \n-+@", max_size=60))
def test_an_excerpt_is_short_and_shows_a_difference(old: str, new: str) -> None:
    lines = excerpt(old, new)
    assert len(lines) <= LINES
    if old != new:
        assert any(line.startswith(("-", "+")) for line in lines[3:])


def test_a_difference_far_to_the_right_is_seen() -> None:
    lines = excerpt("x" * 5000 + "old" + "y" * 5000, "x" * 5000 + "new" + "y" * 5000)
    assert "old" in lines[3] and "new" in lines[4]
    assert all(len(line) <= WIDTH + 1 for line in lines)


# --- transcripts ---


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return path


def line(asked: Request, text: str = "answer") -> str:
    return exchange(asked, text).model_dump_json()


def test_a_transcript_is_read_from_its_file_or_folder(tmp_path: Path) -> None:
    odd = "next\u2028line \x0b \x85 ende\r\n"  # what str.splitlines would cut
    file = write(tmp_path / "transcripts.jsonl", line(request("a"), odd), "", line(request("b")))
    found = read_exchanges(file)
    assert [e.text for e in found] == [odd, "answer"] and found == read_exchanges(tmp_path)


def test_the_later_line_of_an_id_counts(tmp_path: Path) -> None:
    a, b = request("a"), request("b")
    file = write(tmp_path / "t.jsonl", line(a, "old"), line(b), line(a, "new"))
    assert [(e.id, e.text) for e in read_exchanges(file)] == [(b.key, "answer"), (a.key, "new")]


@given(st.data())
def test_a_torn_last_line_is_left_out(data: st.DataObject) -> None:
    whole, torn = line(request("a")), line(request("b", "ü"))
    cut = data.draw(st.integers(0, len(torn.encode())))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.jsonl"
        file.write_bytes(whole.encode() + b"\n" + torn.encode()[:cut])
        assert len(read_exchanges(file)) == (2 if cut == len(torn.encode()) else 1)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "not JSON"),
        ('{"story_version": 9}', "story version 9"),
        (line(request("x")).replace('"sample":0', '"sample":-1'), "sample"),
        (
            '{"kind":"step","story_version":1,"trial":"'
            + "0" * 64
            + '","number":0,"what":"time","stage":"s",'
            '"turn":1,"recorded_at":"t"}',
            "is no exchange but 'step'",
        ),
    ],
)
def test_a_broken_line_is_told_by_its_place(tmp_path: Path, bad: str, says: str) -> None:
    file = write(tmp_path / "t.jsonl", line(request("a")), bad, line(request("b")))
    with pytest.raises(TranscriptError, match=r"t\.jsonl:2: ") as caught:
        read_exchanges(file)
    assert says in str(caught.value)


def test_a_broken_last_line_that_was_written_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=r":2: not JSON"):
        read_exchanges(write(tmp_path / "t.jsonl", line(request("a")), "{"))


def test_no_transcript(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=r"transcripts\.jsonl"):
        read_exchanges(tmp_path)


def test_messages_of_a_request_keep_their_order_and_role() -> None:
    asked = Request("m", (Message("system", "a"), Message("user", "b")), Sampling())
    swapped = Request("m", (Message("user", "a"), Message("system", "b")), Sampling())
    text = miss(asked, exchange(swapped))
    assert "its role: asked system, recorded user" in text
