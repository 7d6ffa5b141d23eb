"""Owns what a kernel's machine code says: the loops with products in them, and how often each instruction is there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

from harness.tl.lower.gluon_aot import tool

_ADDRESS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TO = re.compile(r"\.L_x_\d+")
PRODUCT = "HGMMA"


@dataclass(frozen=True)
class Loop:
    """From its first instruction to the branch back: addresses, and instructions by name."""

    start: int
    end: int
    opcodes: Counter[str]


def loops(listing: str) -> list[Loop]:
    """The innermost loops of an nvdisasm listing that issue products, in the order of addresses."""
    labels: dict[str, int] = {}
    waiting: list[str] = []
    found: list[tuple[int, str, str]] = []
    for text in listing.splitlines():
        if label := _LABEL.match(text.strip()):
            waiting.append(label[1])
        elif instruction := _ADDRESS.search(text):
            at = int(instruction[1], 16)
            labels |= dict.fromkeys(waiting, at)
            waiting = []
            found.append((at, instruction[2], instruction[3]))
    spans = set()
    for at, name, operands in found:
        to = _TO.search(operands) if name.startswith("BRA") else None
        if to and labels.get(to[0], at + 1) <= at:
            spans.add((labels[to[0]], at))
    made = [
        Loop(start, end, Counter(name.split(".")[0] for at, name, _ in found if start <= at <= end))
        for start, end in sorted(spans)
    ]
    hot = [loop for loop in made if loop.opcodes[PRODUCT] and not _waits(loop)]
    return [
        loop for loop in hot
        if not any(loop is not o and loop.start <= o.start and o.end <= loop.end for o in hot)
    ]  # fmt: skip


def _waits(loop: Loop) -> bool:
    """Whether it is none: waits spin behind all other code, and their branches back span whatever is between."""
    return loop.opcodes["BRA"] * 20 > loop.opcodes.total()


def disassembled(cubin: bytes) -> str | None:
    """The listing of a kernel's machine code; None without a disassembler."""
    disassembler = tool("nvdisasm")
    if disassembler is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True)
    return done.stdout
