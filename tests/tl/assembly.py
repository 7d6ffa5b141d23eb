"""Runs the few instructions of PTX that generated kernels write out themselves, for all threads of a warpgroup at once."""

from __future__ import annotations

import re
import struct

import torch
from torch import Tensor

WARP, WARPGROUP = 32, 128


def in_fragments(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each element that a thread holds of a product's result with 64 rows: (thread, element).

    PTX ISA, wgmma: pairs of columns of one row and of the row eight below, in turn.
    """
    threads, held = torch.arange(WARPGROUP), torch.arange(tile.shape[0] * tile.shape[1] // WARPGROUP)
    rows = 16 * (threads // WARP) + threads % WARP // 4
    return rows[:, None] + 8 * (held // 2 % 2), 2 * (threads % 4)[:, None] + 8 * (held // 4) + held % 2


def by_threads(values: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a value for each of the four threads that hold a row: (thread, row of two)."""
    threads = torch.arange(WARPGROUP)
    rows = 16 * (threads // WARP) + threads % WARP // 4
    return rows[:, None] + 8 * torch.arange(2), (threads % 4)[:, None].expand(-1, 2)


def elementwise(text: str, args: list[Tensor], pack: int, results: int = 1) -> Tensor | tuple[Tensor, ...]:
    """What `inline_asm_elementwise` gives: so many elements of a thread at a time, of each argument."""
    shape = args[0].shape
    if len(shape) == 1:
        return run(text, [args[0]])[0]
    tiles = [a.expand(shape).reshape(64, -1) for a in args]
    rows, columns = by_threads(tiles[0]) if shape == (64, 4) else in_fragments(tiles[0])
    held = [tile[rows, columns] for tile in tiles]
    outs = [torch.full_like(tiles[0], float("nan")) for _ in range(results)]
    for begin in range(0, rows.shape[1], pack):
        part = slice(begin, begin + pack)
        made = run(text, [a[:, n] for a in held for n in range(begin, begin + pack)], pack * results)
        for n, out in enumerate(outs):
            out[rows[:, part], columns[:, part]] = torch.stack(made[n * pack : (n + 1) * pack], 1)
    found = tuple(out.reshape(shape) for out in outs)
    return found if results > 1 else found[0]


def run(text: str, given: list[Tensor], results: int = 1) -> list[Tensor]:
    """The outputs `$0` on, of inputs that follow them; each register is a value for every thread."""
    registers = {f"${results + n}": value.clone() for n, value in enumerate(given)}
    active = torch.ones_like(given[0], dtype=torch.bool)
    left: dict[str, Tensor] = {}  # threads that are on their way to a label
    flags: dict[str, Tensor] = {}

    def value(name: str) -> Tensor:
        if name.startswith("0f"):
            return torch.full_like(given[0], struct.unpack(">f", bytes.fromhex(name[2:]))[0])
        return registers[name]

    for code in re.findall(r"\w+:|[^{};]+;", text):
        line = code.strip().rstrip(";")
        if line.endswith(":"):
            active = active | left.pop(line[:-1], torch.zeros_like(active))
            continue
        match = re.fullmatch(r"(?:@(!?)(\w+) )?([\w.]+)(?: (.*))?", line)
        assert match is not None, line
        negated, guard, op, rest = match.groups()
        words = [w.strip() for w in (rest or "").split(",")]
        taken = active if guard is None else active & (flags[guard] != bool(negated))
        match op.split(".")[0]:
            case "":
                assert op.startswith(".reg"), op
            case "setp":
                a, b = value(words[1]), value(words[2])
                found = a != b if ".neu" in op else a > b if ".gt" in op else a < b
                flags[words[0]] = found | flags[words[3]] if ".or." in op else found
            case "vote":
                assert op == "vote.sync.any.pred", op
                flags[words[0]] = flags[words[1]].view(-1, WARP).any(1).repeat_interleave(WARP)
            case "mov":
                registers[words[0]] = torch.where(
                    taken, value(words[1]), registers.get(words[0], value(words[1]))
                )
            case "add" | "sub" | "mul" | "max" | "ex2" | "shfl":
                made = _made(op, [value(word) for word in words[1:3] if not word.isdigit()], words)
                registers[words[0]] = torch.where(taken, made, registers.get(words[0], made))
            case "bra":
                by_warp = taken.view(-1, WARP)
                assert (by_warp.any(1) == by_warp.all(1)).all(), "a warp parts"
                left[words[0]], active = taken, active & ~taken
            case _:
                raise AssertionError(f"no emulation of {op}")
    assert active.all() and not left
    return [registers[f"${n}"] for n in range(results)]


def _made(op: str, given: list[Tensor], words: list[str]) -> Tensor:
    match op.split(".")[0]:
        case "add":
            return given[0] + given[1]
        case "sub":
            return given[0] - given[1]
        case "mul":
            return given[0] * given[1]
        case "max":
            return torch.fmax(*given)  # of a number and none it is the number
        case "ex2":
            return torch.exp2(given[0])
    assert op == "shfl.sync.bfly.b32" and words[3:] == ["31", "0xffffffff"], op
    lanes = torch.arange(WARPGROUP) ^ int(words[2])
    return given[0][lanes]
