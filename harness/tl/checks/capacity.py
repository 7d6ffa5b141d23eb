"""Owns TL701 to TL704: whether tiles fit in a target's shared memory and registers, choice by choice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from harness.targets import Target
from harness.tl import ir
from harness.tl.channels import BYTES
from harness.tl.diagnostics import Finding, Severity, finding
from harness.tl.evaluate import evaluate
from harness.tl.problem import TaskLike, all_workloads, scalars
from harness.tl.syntax import Level, Pos

MOST_REGISTERS = 255  # of one thread
REGISTER_FILE = 65_536  # 32-bit registers of one multiprocessor
_USUAL_WARPS = 8
_MOST_CHOICES = 2000
_ROWS, _COLUMNS, _WGMMA_ROWS = 16, 8, 64  # mma.m16n8k16 (sm_75 and later), wgmma.m64 (sm_90)


@dataclass(frozen=True, slots=True)
class Load:
    """What one choice takes: `shared` is (tile, bytes of one stage, stages); `registers` of one thread."""

    shared: tuple[tuple[str, int, int], ...]
    registers: int
    most_registers: int

    @property
    def shared_bytes(self) -> int:
        return sum(size * stages for _, size, stages in self.shared)

    @property
    def words(self) -> str:
        """The sum, by tile and stage."""
        parts = [
            f"{tile} {size / 1024:g} KB" + (f" x {stages} stages" if stages > 1 else "")
            for tile, size, stages in self.shared
        ]
        return f"{' + '.join(parts)} = {self.shared_bytes / 1024:g} KB"


class Demand:
    """What the kernels of a program take of a multiprocessor, for any choice."""

    def __init__(self, program: ir.Program, dtype: str) -> None:
        self.width = BYTES.get(dtype, 2)
        self.kernels = [KernelTiles(k) for k in program.kernels]
        self._sizes: dict[tuple[int, tuple[object, ...]], tuple[list[tuple[str, int, bool]], int]] = {}

    def of(self, choice: Mapping[str, object]) -> Load:
        """The largest demand of any kernel; `choice`: tile parameters, sizes, warps and stages."""
        return max((self._of(k, choice) for k in self.kernels), key=lambda d: d.shared_bytes)

    def _of(self, kernel: KernelTiles, choice: Mapping[str, object]) -> Load:
        stages, warps = (
            _int(choice.get(key), usual) for key, usual in (("stages", 1), ("warps", _USUAL_WARPS))
        )
        key = (id(kernel), tuple(choice.get(name) for name in kernel.symbols))
        known = self._sizes.get(key)
        if known is None:
            shared = []
            for tile, looped in kernel.shared:
                width = BYTES.get(tile.dtype, 2) if tile.dtype else self.width
                shared.append((tile.name, _elements(tile, choice) * width, looped))
            kept = sum(_elements(t, choice) for t in kernel.accumulators)
            passing = max((_elements(t, choice) for t in kernel.others), default=0)
            known = self._sizes[key] = (shared, kept + passing)
        threads = 32 * warps
        parts = tuple((name, size, stages if looped else 1) for name, size, looped in known[0])
        return Load(parts, -(-known[1] // threads), min(MOST_REGISTERS, REGISTER_FILE // threads))


class KernelTiles:
    """The tiles of a kernel by where and how they are kept."""

    def __init__(self, kernel: ir.Kernel) -> None:
        looped = {
            n.tile
            for f in ir.nodes(kernel.body)
            if isinstance(f, ir.For)
            for n in ir.nodes(f.body)
            if isinstance(n, ir.Load)
        }
        self.shared = [(t, t in looped) for t in kernel.tiles if t.level is Level.SHARED]
        nodes = list(ir.nodes(kernel.body))
        results = [n.result for n in nodes if isinstance(n, ir.Gemm)]
        fed = {t for n in nodes if isinstance(n, ir.Gemm) for t in (n.a.tile, n.b.tile)}
        wide = [t for t in kernel.tiles if t.level is Level.REGISTER and t.shape[1] != ir.Const(1)]
        self.accumulators = [
            t
            for t in wide
            if t in results
            and t not in fed
            and any(isinstance(n, ir.Gemm) and n.accumulate and n.result == t for n in nodes)
            and not any(isinstance(n, ir.Gemm) and not n.accumulate and n.result == t for n in nodes)
        ]
        copies = {n.target for n in nodes if isinstance(n, ir.Move)} | {
            n.tile for n in nodes if isinstance(n, ir.Load)
        }
        # scores and probabilities take turns in the same registers; copies of shared tiles need none
        self.others = [t for t in wide if t not in self.accumulators and t not in copies]
        tiles = [t for t, _ in self.shared] + self.accumulators + self.others
        self.symbols = sorted(
            {x.name for t in tiles for e in t.shape for x in ir.walk(e) if isinstance(x, ir.Sym)}
        )


def _int(value: object, usual: int) -> int:
    return value if isinstance(value, int) and value > 0 else usual


def _elements(tile: ir.Tile, values: Mapping[str, object]) -> int:
    rows, columns = (evaluate(extent, values) for extent in tile.shape)
    return int(rows) * int(columns)


def choices(program: ir.Program, keys: tuple[str, ...] = ("warps", "stages")) -> Iterator[dict[str, int]]:
    """Every choice of tile parameters and of those schedule keys that have whole numbers."""
    sets = dict(program.parameters)
    for key, values in program.schedule:
        numbers = tuple(v for v in values if isinstance(v, int))
        if key in keys and numbers and key not in sets:
            sets[key] = numbers
    for pick in itertools.product(*sets.values()):
        yield dict(zip(sets, pick, strict=True))


def shapes(program: ir.Program, task: TaskLike) -> list[dict[str, int | float]]:
    """The task's shapes, one for each set of sizes that some tile depends on."""
    used = {
        x.name
        for k in program.kernels
        for t in k.tiles
        for e in t.shape
        for x in ir.walk(e)
        if isinstance(x, ir.Sym)
    }
    found: dict[tuple[object, ...], dict[str, int | float]] = {}
    for workload in all_workloads(task):
        values = scalars(workload)
        found.setdefault(tuple(values.get(name) for name in sorted(used)), values)
    return list(found.values())


def check_capacity(
    program: ir.Program, task: TaskLike, target: Target, *, dtype: str = "fp16"
) -> list[Finding]:
    """What does not fit on the target for any choice (errors), or for some (a note)."""
    if not target.is_gpu or target.smem_per_block is None:
        return []
    demand = Demand(program, dtype)
    found = check_instruction(program, task, target)
    fits, all_dropped, dropped = False, [], 0
    total = 0
    least: Load | None = None
    for sizes in shapes(program, task):
        words = ", ".join(f"{n} = {sizes[n]}" for n in ("dim", "dim_v"))
        loads = []
        for choice in itertools.islice(choices(program), _MOST_CHOICES):
            try:
                loads.append((choice, demand.of({**sizes, **choice})))
            except (KeyError, ArithmeticError, ValueError, TypeError):
                return found
        good = [c for c, load in loads if load.shared_bytes <= target.smem_per_block]
        fits = fits or bool(good)
        dropped, total = dropped + len(loads) - len(good), total + len(loads)
        smallest = min((load for _, load in loads), key=lambda load: load.shared_bytes)
        if not good:
            all_dropped.append((words, smallest))
        if least is None or smallest.shared_bytes < least.shared_bytes:
            least = smallest
        inside = [load for c, load in loads if c in good] or [load for _, load in loads]
        if all(load.registers > load.most_registers for load in inside):
            few = min(inside, key=lambda load: load.registers)
            found.append(
                finding(
                    "TL702",
                    _allocation(program, Level.REGISTER),
                    f"accumulators take about {few.registers} registers "
                    f"a thread of {few.most_registers} ({words}); they will spill",
                )
            )
    pos = _allocation(program, Level.SHARED)
    limit = f"{target.smem_per_block / 1024:g} KB that {target.name} has"
    if not fits and least is not None and not _fits_unstaged(program, task, target, demand):
        several = sum(1 for _ in itertools.islice(choices(program, ()), 2)) > 1
        code = "TL704" if several else "TL701"
        said = (
            "no choice of the tile parameters fits: the smallest takes" if several else "shared memory takes"
        )
        found.append(finding(code, pos, f"{said} {least.words}, more than the {limit}"))
    elif fits and all_dropped:
        which = "; ".join(f"{words}: {load.words}" for words, load in all_dropped)
        found.append(
            finding(
                "TL701",
                pos,
                f"no choice fits in the {limit} for some shapes of the task ({which})",
                severity=Severity.WARNING,
            )
        )
    elif fits and dropped:
        found.append(
            finding(
                "TL701",
                pos,
                f"{dropped} of {total} choices do not fit in the {limit} and are left out",
                severity=Severity.NOTE,
            )
        )
    return list(dict.fromkeys(found))


def _fits_unstaged(program: ir.Program, task: TaskLike, target: Target, demand: Demand) -> bool:
    """Whether some choice fits when copies have one stage: then the stages are to blame (TL902)."""
    limit = target.smem_per_block or 0
    pairs = (
        (s, c) for s in shapes(program, task) for c in itertools.islice(choices(program, ()), _MOST_CHOICES)
    )
    return any(demand.of({**s, **c, "stages": 1}).shared_bytes <= limit for s, c in pairs)


def check_instruction(program: ir.Program, task: TaskLike, target: Target) -> list[Finding]:
    """TL703: sizes of a product that tile parameters or numbers give."""
    given = {name for name, _ in program.parameters}
    values: dict[str, object] = {}
    found = []
    for kernel in program.kernels:
        for node in ir.nodes(kernel.body):
            if not isinstance(node, ir.Gemm):
                continue
            for at, least, what in ((0, _ROWS, "rows"), (1, _COLUMNS, "columns")):
                extent = node.result.shape[at]
                names = {x.name for x in ir.walk(extent) if isinstance(x, ir.Sym)}
                if not names <= given:
                    continue
                sizes = sorted(
                    {
                        _size(extent, {**values, **c})
                        for c in itertools.islice(choices(program, ()), _MOST_CHOICES)
                    }
                )
                wrong = [n for n in sizes if n % least]
                pos = node.source.pos if node.source is not None else Pos(1, 1)
                name = node.result.name
                if wrong:
                    severity = Severity.ERROR if len(wrong) == len(sizes) else Severity.NOTE
                    text = f"`{name}` has {_listed(wrong)} {what}; the instruction takes multiples of {least}"
                    found.append(finding("TL703", pos, text, severity=severity))
                elif at == 0 and target.arch == "sm_90" and all(n % _WGMMA_ROWS for n in sizes):
                    text = f"`{name}` has {_listed(sizes)} rows; wgmma takes multiples of {_WGMMA_ROWS}"
                    found.append(finding("TL703", pos, text, severity=Severity.NOTE))
    return found


def _size(extent: ir.Expr, values: Mapping[str, object]) -> int:
    try:
        return int(evaluate(extent, values))
    except (KeyError, ValueError, ArithmeticError):
        return 0


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _allocation(program: ir.Program, level: Level) -> Pos:
    """The first statement that puts a tile there."""
    for kernel in program.kernels:
        for node in ir.nodes(kernel.body):
            if isinstance(node, ir.Init | ir.Load) and node.tile.level is level and node.source is not None:
                return node.source.pos
    return Pos(1, 1)
