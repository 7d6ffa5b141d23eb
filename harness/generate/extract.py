"""Owns taking code out of an answer: fenced blocks, files by name, prose around, none at all. Pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

ENTRY = "attention.py"
_FENCE = re.compile(r"^ {0,3}(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$")
_PYTHON = frozenset(("", "python", "py", "python3", "triton", "numba", "code"))
_CUDA = frozenset(("cuda", "cu", "cpp", "c++", "cxx", "cuda-cpp", "c"))
CUDA_FILE = "kernel.cu"
_TL = frozenset(("", "tl", "llm-tl", "llmtl", "text", "plaintext", "code"))
_DEFINES = re.compile(r"^(?:async )?def attention\s*\(|^attention\s*=", re.MULTILINE)
_FILE = re.compile(r"(?P<name>[A-Za-z_][\w\-]*(?:/[\w\-]+)*\.(?:py|cu|cuh|h))")
_DIRECTIVE = re.compile(r"#\s*(?:include|define|undef|pragma|if|ifdef|ifndef|error)\b")
# A C++ comment that begins with a file's name; one that only mentions a header does not name its block.
_NAMED_IN_COMMENT = re.compile(
    r"(?://|/\*)[\s*`]*(?:file(?:name)?:?\s*)?`?" + _FILE.pattern + r"`?\s*(?:$|\*/|[:,(—–-])", re.I
)
_STATEMENT = re.compile(r"^\s*(?:kernel|tile|grid|allocate|copy|compute|reshape|for|schedule)\b", re.I | re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string, its text, the line before it; `open`: its fence was never closed."""

    info: str
    text: str
    before: str = ""
    open: bool = False

    @property
    def language(self) -> str:
        """First word of the info string, in lower case."""
        words = re.split(r"[\s:{,]+", self.info.strip().lower())
        return words[0]

    @property
    def filename(self) -> str | None:
        """The file that the block says it is: in its info string, its first comment, or the line before."""
        if found := _FILE.search(self.info):
            return found["name"]
        first = self.text.lstrip("\n").partition("\n")[0].strip()
        if first.startswith("#") and not _DIRECTIVE.match(first) and (found := _FILE.search(first)):
            return found["name"]
        if found := _NAMED_IN_COMMENT.match(first):
            return found["name"]
        found = _FILE.search(self.before)
        return found["name"] if found and len(self.before.split()) <= 6 else None


@dataclass(frozen=True)
class Code:
    """The sources found in an answer; none where `files` is empty, and `problem` says why."""

    files: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def blocks(answer: str) -> list[Block]:
    """Fenced blocks in order; a longer fence may hold shorter ones, one without an end goes to the end."""
    found: list[Block] = []
    lines = answer.replace("\r\n", "\n").split("\n")
    at, before = 0, ""
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        if opening is None or (opening["fence"][0] == "`" and "`" in opening["info"]):
            before = lines[at].strip() or before
            at += 1
            continue
        end = next((n for n in range(at + 1, len(lines)) if _closes(lines[n], opening["fence"])), None)
        body = "\n".join(lines[at + 1 : end])
        found.append(Block(opening["info"].strip(), body + "\n", before, end is None))
        before = ""
        at = len(lines) if end is None else end + 1
    return found


def _closes(line: str, fence: str) -> bool:
    text = line.strip()
    return len(text) >= len(fence) and set(text) == {fence[0]} and len(line) - len(line.lstrip()) <= 3


def kernel_of(answer: str) -> Code:
    """The sources of a kernel: `attention.py`, and files beside it that the answer names.

    Of several blocks that define `attention`, the last one counts: it is the corrected one. Without
    fences the whole answer counts where it is Python.
    """
    fenced = [b for b in blocks(answer) if b.language in _PYTHON | _CUDA or b.filename is not None]
    if not any(b.language not in _CUDA for b in fenced):
        return _bare(answer) if not fenced else Code(problem="no fenced block defines `attention`")
    entries = [b for b in fenced if b.language not in _CUDA and _DEFINES.search(b.text)]
    if not entries:
        return Code(problem="no fenced block defines `attention`")
    entry = entries[-1]
    files = {ENTRY: entry.text}
    for block in fenced:
        name = block.filename
        if name is not None and block is not entry and not _DEFINES.search(block.text):
            files[name.lstrip("./")] = block.text
    unnamed = [b for b in fenced if b.language in _CUDA and b.filename is None]
    if unnamed and not any(name.endswith(".cu") for name in files):
        files[CUDA_FILE] = unnamed[-1].text  # as for `attention`: the last one is the corrected one
    if entry.open:
        return (
            Code(problem="the fenced block is never closed: the answer was cut off")
            if not _parses(entry.text)
            else Code(files)
        )
    return Code(files)


def _bare(answer: str) -> Code:
    text = answer.strip("\n") + "\n"
    if _DEFINES.search(text) and _parses(text):
        return Code({ENTRY: text})
    return Code(problem="there is no fenced block of code" if answer.strip() else "the answer is empty")


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def program_of(answer: str) -> str | None:
    """The LLM-TL program in an answer, or None. Of several blocks the last one that reads like one."""
    fenced = blocks(answer)
    likely = [b for b in fenced if b.language in _TL and _reads(b.text)]
    likely = likely or [b for b in fenced if _reads(b.text) and b.language not in ("python", "py")]
    if likely:
        marked = [b for b in likely if b.language not in ("", "text", "plaintext", "code")]
        return (marked or likely)[-1].text
    if not fenced and _reads(answer) and not _prose(answer.splitlines()):
        return answer.strip("\n") + "\n"
    return None


def _reads(text: str) -> bool:
    """Whether three lines or more begin like statements of the language."""
    return len(_STATEMENT.findall(text)) >= 3


def _prose(lines: Iterable[str]) -> bool:
    """Whether most lines are neither statements nor comments nor blank."""
    told = [line for line in lines if line.strip() and not line.strip().startswith(("#", "//"))]
    other = [line for line in told if not _STATEMENT.match(line) and line.strip().lower() != "end"]
    return len(other) * 3 > len(told)
