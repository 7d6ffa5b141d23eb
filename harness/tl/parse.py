"""Owns reading a text into a syntax tree, with every syntax error found and none guessed away."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lark import Lark, UnexpectedInput
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF

from harness.tl.build import ALONE, INLINE, Builder, Unreadable
from harness.tl.diagnostics import Finding, TLError, finding
from harness.tl.syntax import Kernel, Pos, Program

_OPEN, _CLOSE = "([{", ")]}"
_PLAIN = str.maketrans({"\t": " ", INLINE: "\ufffd", ALONE: "\ufffd"})
_MOST_ERRORS = 20
# Where `//` may divide outside brackets: the statements that hold index arithmetic.
_ARITHMETIC = re.compile(r"\s*(let|grid|for|if)\b", re.IGNORECASE)
_OPERAND = re.compile(r"\s*[-+(\w.]")
_NEIGHBOURS = re.compile(r"(\w+|[)\]'])(?=\s+(\w+))")
_JOINING = {"for": {"step", "to"}, "if": {"and", "or", "not", "then"}}
_BLOCK_COLON = re.compile(r"^(\s*(?:for|if|else)\b[^\x01\x02]*?):(\s*(?:[\x01\x02].*)?)$", re.IGNORECASE)
_BLOCK = re.compile(r"\s*(for|if|while|else|end(?:[ ]*(?:for|if))?)\b", re.IGNORECASE)
_KEYWORD = re.compile(
    r"\s*(kernel|let|tile|grid|alloc(ate)?|copy|compute|reshape|for|if|else|end(for|if)?|schedule)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Text:
    """A program's text with the positions of its lines."""

    source: str
    starts: tuple[int, ...]

    @classmethod
    def of(cls, source: str) -> Text:
        return cls(source, (0, *(m.end() for m in re.finditer("\n", source))))

    def pos(self, offset: int) -> Pos:
        line = bisect.bisect_right(self.starts, min(offset, len(self.source))) - 1
        return Pos(line + 1, offset - self.starts[line] + 1)

    def line(self, number: int) -> str:
        lines = self.source.split("\n")
        return lines[number - 1].rstrip() if 0 < number <= len(lines) else ""


def parse(source: str) -> Program:
    """The syntax tree; raises TLError that holds a finding for every syntax error."""
    program, findings = parse_leniently(source)
    if findings:
        raise TLError(findings)
    return program


def parse_leniently(source: str) -> tuple[Program, tuple[Finding, ...]]:
    """The syntax tree of what could be read, and a finding for each line that could not."""
    text = Text.of(_plain(source))
    clean = _join_brackets(_mark_comments(text))
    found: list[Finding] = []
    for _ in range(_MOST_ERRORS):
        try:
            tree = _parser().parse(clean)
            break
        except UnexpectedInput as error:
            clean = _without_error(text, clean, error, found)
    else:
        tree = _parser().parse("\n")
    try:
        program = Builder(text.pos).program(tree)
    except Unreadable as error:
        found.append(finding("TL001", error.pos, error.message))
        program = Program((Kernel(None, ()),))
    return program, tuple(found)


def _plain(source: str) -> str:
    """The text without byte order mark, tabs and carriage returns; every line ends in two blanks.

    With those, what `_without_error` puts in place of a line is never longer than the line.
    """
    source = source.removeprefix("\ufeff").translate(_PLAIN).rstrip()
    return "".join(f"{line.rstrip()}  \n" for line in source.split("\n"))


@cache
def _parser() -> Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", maybe_placeholders=False)


def _mark_comments(text: Text) -> str:
    """The text with every comment marked by a character that occurs nowhere else.

    A comment between brackets that stay open over several lines has no place among the statements:
    it becomes blanks.
    """
    lines, depth = [], 0
    for line in text.source.split("\n"):
        if _KEYWORD.match(line):
            depth = 0  # a bracket left open ends with its statement
        at, depth = comment_start(line, depth)
        if at is not None:
            mark = INLINE if line[:at].strip() else ALONE
            line = line[:at] + (" " * (len(line) - at) if depth else mark + line[at + 1 :])
        line = _BLOCK_COLON.sub(lambda m: m[1] + " " + m[2], line)  # Python's habit
        lines.append(line)
    return "\n".join(lines)


def comment_start(line: str, depth: int) -> tuple[int | None, int]:
    """Column of the comment, and how many brackets are open before it.

    `//` divides inside brackets, and in index arithmetic where what follows is an operand, not prose.
    """
    arithmetic = _ARITHMETIC.match(line)
    for at, char in enumerate(line):
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth = max(0, depth - 1)
        elif char == "#":
            return at, depth
        elif line.startswith("//", at) and not line.startswith("//", at - 1):
            divides = bool(line[:at].strip()) and (
                depth or (arithmetic and _continues(arithmetic[1].lower(), line[at + 2 :]))
            )
            if not divides:
                return at, depth
    return None, depth


def _continues(keyword: str, rest: str) -> bool:
    """Whether arithmetic goes on in `rest`; in prose, words follow each other with nothing between them."""
    rest = re.split("#|//", rest)[0]
    joining = _JOINING.get(keyword, set())
    return _OPERAND.match(rest) is not None and all(
        {m[1].lower(), m[2].lower()} & joining for m in _NEIGHBOURS.finditer(rest)
    )


def _join_brackets(text: str) -> str:
    """Line breaks inside brackets become spaces, unless the next line starts a statement of its own."""
    out, depth, comment = [], 0, False
    for at, char in enumerate(text):
        comment = char != "\n" and (comment or char in (INLINE, ALONE))
        if comment:
            pass
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth = max(0, depth - 1)
        elif char == "\n" and depth:
            if _KEYWORD.match(text, at + 1) or at == len(text) - 1:
                depth = 0
            else:
                char = " "
        elif char == "\n":
            depth = 0
        out.append(char)
    return "".join(out)


def _without_error(text: Text, clean: str, error: UnexpectedInput, found: list[Finding]) -> str:
    """The text with the offending line taken out or a missing `end` put in, and the finding noted."""
    at = error.pos_in_stream if error.pos_in_stream is not None else len(clean)
    token = getattr(error, "token", None)
    if isinstance(error, UnexpectedEOF) or (token is not None and token.type == "$END"):
        end = text.pos(len(text.source.rstrip()))
        found.append(finding("TL002", end, "a loop or a branch is still open"))
        return clean + "end\n"
    start = clean.rfind("\n", 0, at) + 1
    stop = clean.find("\n", at)
    stop = len(clean) if stop < 0 else stop
    line = clean[start:stop]
    if token is not None and token.type == "_NL":
        at = start + len(line.rstrip())
    found.append(_syntax_finding(text.pos(at), error, line, at - start))
    return clean[:start] + _kept(line, at - start).ljust(stop - start) + clean[stop:]


def _kept(line: str, at: int) -> str:
    """What opens or closes a block still does, so that one error is not two."""
    word = _BLOCK.match(line)
    if not word:
        return ""
    if word[1].lower() in ("for", "if", "while"):
        return "if 1"
    return word[1] if at > word.start(1) else ""


def _syntax_finding(pos: Pos, error: UnexpectedInput, line: str, at: int) -> Finding:
    word = re.match(r"\s*([A-Za-z_]+)", line)
    block = _BLOCK.match(line)
    if word and block and not _kept(line, at):
        return finding("TL003", pos, f"`{word[1]}` closes nothing")
    if word and not _KEYWORD.match(line):
        return finding("TL001", pos, f"`{word[1]}` starts no statement")
    if isinstance(error, UnexpectedCharacters):
        return finding("TL001", pos, f"{error.char!r} is unexpected here")
    token = getattr(error, "token", None)
    shown = "the end of the line" if token is None or token.type == "_NL" else f"`{token}`"
    return finding("TL001", pos, f"{shown} is unexpected here")
