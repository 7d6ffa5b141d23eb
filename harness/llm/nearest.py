"""Owns what to show for a request that was not recorded: the nearest one that was, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, unified_diff

from harness.llm.client import Request
from harness.story import Exchange

LINES = 12  # of an excerpt
WIDTH = 100
# A ratio over the 30,000 characters of a prompt takes milliseconds, one over its lines a hundredth of that.
FINALISTS = 6


def nearest(request: Request, recorded: Sequence[Exchange]) -> Exchange | None:
    """The recorded request most like this one; None where nothing is recorded.

    First those with as many messages, of these the ones that agree longest from the beginning; then
    the most similar from the first message that differs on, and what agrees in its settings.
    """
    if not recorded:
        return None
    pool = [e for e in recorded if len(e.messages) == len(request.messages)] or list(recorded)
    agreed = [common(request, e) for e in pool]
    start = max(agreed)
    pool = [e for e, n in zip(pool, agreed, strict=True) if n == start]
    asked = _rest([m.content for m in request.messages], start)
    by_lines = SequenceMatcher(None, [], asked.split("\n"), autojunk=False)
    ranked = sorted(pool, key=lambda e: _rank(by_lines, request, e, _of(e, start).split("\n")), reverse=True)
    by_characters = SequenceMatcher(None, "", asked)
    return max(ranked[:FINALISTS], key=lambda e: _rank(by_characters, request, e, _of(e, start)))


def differences(request: Request, recorded: Exchange) -> list[str]:
    """What differs, one thing a line, and an excerpt of the first message that does."""
    found = []
    if recorded.model != request.model:
        found.append(f"  model: asked {request.model}, recorded {recorded.model}")
    asked_sampling = _sampling(request)
    for name in sorted({*asked_sampling, *recorded.sampling}):
        asked, known = asked_sampling.get(name), recorded.sampling.get(name)
        if asked != known:
            found.append(f"  sampling.{name}: asked {_number(asked)}, recorded {_number(known)}")
    if recorded.sample != request.sample:
        found.append(f"  sample: asked {request.sample}, recorded {recorded.sample}")
    if len(recorded.messages) != len(request.messages):
        found.append(
            f"  number of messages: asked {len(request.messages)}, recorded {len(recorded.messages)}"
        )
    first = common(request, recorded)
    if first < min(len(request.messages), len(recorded.messages)):
        found += _message(first, request, recorded)
    return found or ["  nothing: its id is not that of its content; was the file edited?"]


def common(request: Request, recorded: Exchange) -> int:
    """How many messages from the beginning on are the same."""
    asked = [(m.role, m.content) for m in request.messages]
    return _same(asked, [(m.role, m.content) for m in recorded.messages])


def excerpt(recorded: str, asked: str) -> list[str]:
    """The first lines that differ, `-` as recorded and `+` as asked: LINES lines at most, of WIDTH."""
    old, new = recorded.split("\n"), asked.split("\n")
    same = _same(old, new)
    # only the neighbourhood is compared: enough for an excerpt, and fast for any text
    near = slice(max(0, same - 1), same + 4 * LINES)
    lines = list(unified_diff(old[near], new[near], lineterm="", n=1))[2:]
    shown = [line for line in lines if not line.startswith("@@")]
    # of long lines, the part is shown where the first two begin to differ
    column = _same(*(lines[same] if same < len(lines) else "" for lines in (old, new)))
    shown = [_cut(line, max(0, column - WIDTH // 2)) for line in shown]
    shown = ["--- recorded", "+++ asked", f"@@ line {same + 1} @@", *shown]
    return shown if len(shown) <= LINES else [*shown[: LINES - 1], "…"]


def _message(number: int, request: Request, recorded: Exchange) -> Iterator[str]:
    asked, known = request.messages[number], recorded.messages[number]
    yield f"  message {number + 1} of {len(request.messages)} ({asked.role})"
    if asked.role != known.role:
        yield f"  its role: asked {asked.role}, recorded {known.role}"
    if asked.content != known.content:
        yield from excerpt(known.content, asked.content)


def _rank(
    matcher: SequenceMatcher[str], request: Request, recorded: Exchange, rest: Sequence[str]
) -> tuple[float, int]:
    """How alike they are from the first message that differs on, and how many settings agree."""
    matcher.set_seq1(rest)
    agree = (
        recorded.model == request.model,
        recorded.sample == request.sample,
        recorded.sampling == _sampling(request),
    )
    return matcher.quick_ratio(), sum(agree)


def _of(recorded: Exchange, start: int) -> str:
    return _rest([m.content for m in recorded.messages], start)


def _rest(contents: list[str], start: int) -> str:
    return "\n".join(contents[start:])


def _sampling(request: Request) -> dict[str, float]:
    return {name: float(value) for name, value in request.sampling.to_json().items()}


def _same(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items from the beginning on are the same."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _cut(line: str, shift: int) -> str:
    sign, text = line[:1], line[1:]
    if 0 < shift < len(text):
        text = "…" + text[shift:]
    return sign + (text if len(text) <= WIDTH else text[: WIDTH - 1] + "…")


def _number(value: float | None) -> str:
    return "the default" if value is None else f"{value:g}"
