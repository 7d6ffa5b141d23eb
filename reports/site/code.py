"""Owns source code in colours, as HTML: by Pygments, with a lexer of our own for LLM-TL."""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePath

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import RegexLexer, include, words
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, Text
from pygments.util import ClassNotFound

LIGHT, DARK = "default", "github-dark"
LONGEST = 200_000  # characters that are coloured; what is longer stands in one colour


class TlLexer(RegexLexer):  # type: ignore[misc]
    """LLM-TL: its statements, levels of memory and functions."""

    name = "LLM-TL"
    aliases = ("tl",)
    filenames = ("*.tl",)
    flags = re.IGNORECASE | re.MULTILINE
    tokens = {  # noqa: RUF012 - as Pygments has it
        "root": [
            (r"(#|//).*?$", Comment.Single),
            (r"[(\[{]", Punctuation, "bracket"),
            include("words"),
        ],
        "bracket": [  # where `//` divides
            (r"#.*?$", Comment.Single),
            (r"[(\[{]", Punctuation, "#push"),
            (r"[)\]}]", Punctuation, "#pop"),
            include("words"),
        ],
        "words": [
            (
                words(
                    ("kernel", "let", "tile", "grid", "allocate", "copy", "compute", "reshape", "for", "if",
                     "then", "else", "end", "step", "schedule"),
                    prefix=r"\b",
                    suffix=r"\b",
                ),
                Keyword,
            ),
            (
                words(
                    ("in", "from", "to", "and", "get", "new", "accumulate", "rescale", "where", "with",
                     "offset", "init", "workspace", "coordinate", "pad", "via"),
                    prefix=r"\b",
                    suffix=r"\b",
                ),
                Keyword.Pseudo,
            ),
            (words(("global", "shared", "register", "registers"), prefix=r"\b", suffix=r"\b"), Keyword.Type),
            (words(("GEMM", "Softmax", "Multiply"), prefix=r"\b", suffix=r"\b"), Name.Function),
            (r"\d+(\.\d+)?(e[+-]?\d+)?", Number),
            (r"[A-Za-z_][\w.]*", Name),
            (r"[-+*/%<>=!^&|:]+", Operator),
            (r"[)\]},]", Punctuation),
            (r"\s+", Text),
            (r".", Text),
        ]
    }  # fmt: skip


@cache
def coloured(name: str, text: str) -> str:
    """The text of a file as HTML in `<pre>`, escaped; the file's name says which language."""
    html = str(highlight(text, _lexer(name, len(text)), HtmlFormatter(cssclass="code", wrapcode=True)))
    return html.replace("<pre>", '<pre tabindex="0">', 1)  # a long one scrolls: by keyboard too


def _lexer(name: str, length: int) -> object:
    if length > LONGEST:
        return get_lexer_for_filename("x.txt")
    suffix = PurePath(name).suffix
    if suffix == ".tl":
        return TlLexer()
    try:
        return get_lexer_for_filename("x.cu" if suffix == ".cuh" else name)
    except ClassNotFound:
        return get_lexer_for_filename("x.txt")


def styles() -> str:
    """CSS of the colours, for light and dark pages."""
    light = HtmlFormatter(style=LIGHT).get_style_defs(".code")
    dark = HtmlFormatter(style=DARK).get_style_defs(".code")
    own = ".code, .code pre { background: none; }"
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}\n"
