"""Owns the foot of a command's help: examples, what comes next, exit codes. The same for every command."""

from __future__ import annotations

from harness.exits import EXIT_FOUND, EXIT_USAGE, MEANINGS

EXAMPLES, NEXT, CODES = "Examples:", "Next:", "Exit codes:"


def foot(*examples: str, then: str = "", codes: tuple[int, ...] = (EXIT_USAGE,), found: str = "") -> str:
    """Markdown for `epilog`. `codes`: those beside 0; `found`: what 1 means, where the command ends so."""
    meanings = {**MEANINGS, EXIT_FOUND: found}
    told = sorted({0, *codes, *([EXIT_FOUND] if found else [])})
    parts = []
    if examples:
        parts.append(f"{EXAMPLES}\n\n" + "\n".join(f"    {line}" for line in examples))
    if then:
        parts.append(f"{NEXT} {then}")
    parts.append(f"{CODES} " + "; ".join(f"{code} {meanings[code]}" for code in told) + ".")
    return "\n\n".join(parts)
