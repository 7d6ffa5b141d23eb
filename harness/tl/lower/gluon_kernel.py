"""Owns a Gluon kernel as text: what its producer and its consumers do, and the block that starts them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.facts import grows
from harness.tl.lower.gluon_carry import CarryingText
from harness.tl.lower.gluon_channels import Channel
from harness.tl.lower.gluon_loops import ConsumerText
from harness.tl.lower.gluon_prelude import in_gluon
from harness.tl.lower.gluon_rounds import overlap
from harness.tl.lower.gluon_tiles import TileText
from harness.tl.lower.gluon_values import ROW
from harness.tl.lower.gluon_view import View
from harness.tl.lower.gluon_ways import Ways
from harness.tl.lower.lowered import comment
from harness.tl.lower.python_layout import call, statement
from harness.tl.lower.triton_memory import Accesses

_SIZES = ("dim", "dim_v", "group")
_SETTINGS = (
    "OPERAND", "FOLD", "CONSUMERS", "STAGES", "OVERLAP", "PINGPONG", "GRID", "LONGEST_FIRST",
    "REGISTERS", "PRODUCER_REGISTERS", "Q_STAGES", "AHEAD", "CARRY", "ARRIVALS", "RESCALE",
    "REUSE",
)  # fmt: skip
_NEXT = ("next_tile", "next_full", "next_empty")


@dataclass
class Kernel:
    """The three functions of a kernel; `loads` are descriptors by channel, piece and matrix."""

    view: View
    text: ConsumerText
    channels: dict[ir.Tile, Channel]  # by tile of the block
    parameters: tuple[str, ...]
    scalars: tuple[str, ...]
    ways: Ways
    carrying: CarryingText | None = None  # where choices carry products over, and the kernel has that form

    def __post_init__(self) -> None:
        self.accesses = Accesses(self.view.whole)
        loops = (
            [n for n in ir.nodes(k.body) if isinstance(n, ir.For)] for k in (self.view.whole, self.view.group)
        )
        self._same = {id(whole): group for whole, group in zip(*loops, strict=True)}
        self.stem = self.text.function.removesuffix("_kernel")
        self.tiles = TileText(
            self.view, list(self.channels.values()), grows(self.view.whole, self.view.axis.name), self.ways,
            self.text.values.index,
        )  # fmt: skip
        self.text.run()
        if self.carrying is not None:
            self.carrying.run()
        self.consumer = self._consumer()
        self.producer = self._producer()
        words = self._names([*self.consumer, *self.producer])
        words |= {"CONSUMERS", "STAGES", "GRID", "REGISTERS", "PRODUCER_REGISTERS"}
        words |= {w for line in self._memory() for w in re.findall(r"\w+", line)}
        self.sources = self.accesses.all()
        self.targets = self.text.accesses.all()
        sizes = [n for size in self.text.sizes.values() for n in (size, f"{size}_p")]
        halves = [f"{name}{end}" for name in _SIZES for end in ("_1", "_2")]
        flags = [r.flag(name) for r in self.text.loops for name in ("SOME", "SKIPS", "LATER", "LAST")]
        constants = dict.fromkeys(
            [*_SIZES, *halves, *sizes, *self.parameters, *self.text.evens, *flags, *_SETTINGS]
        )
        self.constants = tuple(c for c in constants if c in words)
        self.flags = tuple(f for f in flags if f in words)
        numbers = [*self.scalars, "row_tiles", "tiles", "head_group", *self.text.factors]
        self.numbers = tuple(n for n in numbers if n in words and n not in _SIZES)

    # --- the source ---

    def source(self, consumers: tuple[int, ...]) -> str:
        """All functions; `consumers` are the numbers of warpgroups that choices ask for."""
        parts = [self._function("consumer", self.consumer, True), self._function("producer", self.producer)]
        return "".join([*parts, self._block(consumers)])

    def _function(self, role: str, lines: list[str], which: bool = False) -> str:
        names = self._names(lines)
        groups = [[n for n in group if n not in self.constants] for group in self._arguments(names)]
        constants = [f"{c}: gl.constexpr" for c in self.constants if c in names]
        if which:
            constants.insert(0, "WHICH: gl.constexpr")
        head = call(f"def {self.stem}_{role}", [*groups, constants], 0, "):")
        return "\n\n@gluon.jit\n" + "\n".join([*head, *lines]) + "\n"

    def _names(self, lines: list[str]) -> set[str]:
        return set(re.findall(r"[A-Za-z_]\w*", "\n".join(line.partition("#")[0] for line in lines)))

    def _arguments(self, names: set[str]) -> list[list[str]]:
        """What a partition takes, of all that there is, in groups."""
        buffers = [name for name, _ in self._buffers()]
        barriers = [f"{c.name}_{end}" for c in self.channels.values() for end in ("full", "empty")]
        descriptors = [a.argument for a in (*self.accesses.all(), *self.text.accesses.all())]
        groups = [descriptors, [*buffers, *barriers], [*_NEXT, "counter"], list(self.numbers)]
        return [[n for n in group if n in names] for group in groups]

    def _block(self, consumers: tuple[int, ...]) -> str:
        descriptors = [a.argument for a in (*self.sources, *self.targets)]
        head = call(
            f"def {self.text.function}",
            [descriptors, ["counter", *self.numbers], [f"{c}: gl.constexpr" for c in self.constants]],
            0, "):",
        )  # fmt: skip
        lines = [line for code in self._memory() for line in statement(code, 1)]
        for n in consumers:
            body = self._start(n)
            if len(consumers) > 1:
                lines += [f"    if CONSUMERS == {n}:", *("    " + line for line in body)]
            else:
                lines += body
        # Else Triton compiles again for a number that is 1 or a multiple of 16: on the paper's lengths 324
        # kernels, not 96, for the 288 choices of a head dimension; most of them while the device waits.
        jit = ["@gluon.jit(do_not_specialize=(", *_quoted(self.numbers), "))  # fmt: skip"]
        return "\n\n" + "\n".join([*jit, *head, *lines]) + "\n"

    def _start(self, consumers: int) -> list[str]:
        def given(lines: list[str], which: int | None) -> str:
            names = self._names(lines)
            parts = [n for group in self._arguments(names) for n in group if n not in self.constants]
            parts += [] if which is None else [str(which)]
            parts += [c for c in self.constants if c in names]
            return ", ".join(parts)

        parts = [(f"{self.stem}_consumer", given(self.consumer, n)) for n in range(consumers)]
        parts.append((f"{self.stem}_producer", given(self.producer, None)))
        lines = ["    gl.warp_specialize(", "        ["]
        for name, arguments in parts:
            lines += [f"            ({name}, (", *_wrapped(arguments, 16), "            )),"]
        warps = ", ".join(["4"] * (consumers - 1) + ["1"])
        registers = ", ".join(["REGISTERS"] * (consumers - 1) + ["PRODUCER_REGISTERS"])
        return [*lines, "        ],", f"        [{warps}], [{registers}],", "    )  # fmt: skip"]

    # --- memory ---

    def _buffers(self) -> list[tuple[str, str]]:
        """Name of each buffer in shared memory -> its allocation."""
        found = []
        for channel in self.channels.values():
            access = {a.shape: a for a in self.accesses.all() if a.argument in self.of[channel.name]}
            for piece in channel.pieces:
                rows = "64" if channel.grouped else self.text.block(channel.tile.shape[0])
                source = next(a for s, a in access.items() if s[1] == piece.width)
                ones = ["1"] * len(source.fixed)
                shape = ", ".join([channel.all_places, *ones, rows, self.text.block(piece.width)])
                made = f"gl.allocate_shared_memory(OPERAND, [{shape}], {source.argument}.layout)"
                found.append((f"{channel.name}_places{piece.suffix}", made))
        for tile, name in self.text.outputs.items():
            target = next(a for a in self.text.accesses.all() if a.shape == tile.shape)
            ones = ["1"] * len(target.fixed)
            shape = ", ".join(["CONSUMERS", *ones, "64", self.text.block(tile.shape[1])])
            made = f"gl.allocate_shared_memory(OPERAND, [{shape}], {target.argument}.layout)"
            place = self.reused
            found.append((name, made if place is None else f"{place[0]} if REUSE else {made}"))
        return found

    @property
    def reused(self) -> tuple[str, str, str] | None:
        """The places that a result can leave through, their width, and that of the result; None where it has
        its own."""
        if self.text.through is None:
            return None
        channel, (tile,) = self.text.channels[self.text.through], self.text.outputs
        piece = channel.pieces[0]
        widths = self.text.block(piece.width), self.text.block(tile.shape[1])
        return f"{channel.name}_places{piece.suffix}", *widths

    def _memory(self) -> list[str]:
        lines = [f"{name} = {made}" for name, made in self._buffers()]
        for channel in self.channels.values():
            lines.append(f"{channel.name}_full = barriers({channel.all_places}, 1)")
            lines.append(f"{channel.name}_empty = barriers({channel.all_places}, {channel.arrivals})")
        return [*lines, *self.tiles.memory(), "fence_async_shared()"]

    # --- the consumer ---

    def _consumer(self) -> list[str]:
        lines = ["group_row: gl.constexpr = 64 * WHICH"]
        for name, size in self.text.layouts.items():
            made = f"gl.NVMMADistributedLayout([3, 0], [4, 1], [16, {size}, 16])"
            lines.append(f"{name}: gl.constexpr = {made}")
        home = next(iter(self.text.layouts))
        lines.append(f"{ROW}: gl.constexpr = gl.SliceLayout(1, {home})")
        out = [f"    {line}" for line in lines]
        if any("PINGPONG" in line for line in self.text.lines):
            out += ["    if PINGPONG:", "        if WHICH == CONSUMERS - 1:"]
            out += ["            pass_turn(WHICH, CONSUMERS)  # to the first consumer"]
        out += self.tiles.opening()
        plain = self.tiles.loop(self.text.lines, self.tiles.received(3))
        if self.carrying is None:
            out += plain
        else:
            parts = self.carrying
            out += ["    if CARRY:"]
            out += _deeper(self.tiles.carrying(parts.opening, parts.lines, parts.ending, parts.last))
            out += ["    else:", *_deeper(plain)]
        return [*out, "    tma.store_wait(0)"]

    # --- the producer ---

    def _producer(self) -> list[str]:
        self.of: dict[str, set[str]] = {c.name: set() for c in self.channels.values()}
        lines = self._copies(self.view.whole.body, 2, ())
        out = [*self.tiles.opening(), *self.tiles.loop(lines, self.tiles.sent(3), self.tiles.drawn(2))]
        reset = ["    if GRID == 2:", "        if t == tiles + gl.num_programs(0) - 1:"]
        reset += ["            gl.store(counter, 0)  # by the last ticket of all, for the next launch"]
        return [*out, *reset]

    def _copies(self, body: tuple[ir.Node, ...], depth: int, before: tuple[ir.Load, ...]) -> list[str]:
        """The loads of the statements, in the order in which consumers wait for them."""
        out: list[str] = []
        pending = list(before)
        for node in body:
            match node:
                case ir.Load():
                    pending.append(node)
                case ir.For() if any(isinstance(n, ir.Load) for n in ir.nodes(node.body)):
                    out += self._loop(node, depth, tuple(pending) if depth == 2 else ())
                    pending = [] if depth == 2 else pending
                case ir.If() if any(isinstance(n, ir.Load) for n in ir.nodes((node,))):
                    out += [line for load in pending for line in self._copy(load, depth)]
                    pending = []
                    out += self._if(node, depth)
        return [*out, *(line for load in pending for line in self._copy(load, depth))]

    def _if(self, node: ir.If, depth: int) -> list[str]:
        index = self.text.values.index
        out = self._put(f"if {index(node.cond)}:", depth)
        out += self._copies(node.then, depth + 1, ()) or self._put("pass", depth + 1)
        if node.otherwise:
            out += self._put("else:", depth)
            out += self._copies(node.otherwise, depth + 1, ()) or self._put("pass", depth + 1)
        return out

    def _loop(self, node: ir.For, depth: int, before: tuple[ir.Load, ...]) -> list[str]:
        """A loop; loads before it wait until its first tile is on its way, which needs nothing of them."""
        rounds = next(r for r in self.text.loops if r.loop == self._same[id(node)])
        v, index = node.var, self.text.values.index
        out = [line for code in (f"{v}_start = {index(node.start)}", f"{v}_stop = {index(node.stop)}")
               for line in self._put(code, depth)]  # fmt: skip
        out += self._put(f"for {v}_round in range(0, {v}_stop - {v}_start):", depth)
        at = f"{v}_stop - 1 - {v}_round" if rounds.backwards else f"{v}_start + {v}_round"
        out += self._put(f"{v} = {at}", depth + 1)
        cut = overlap(node)
        loads = [n for n in node.body if isinstance(n, ir.Load)]
        if cut is not None:
            loads.sort(key=lambda n: n not in cut.first_loads)
        simple = len(loads) == sum(isinstance(n, ir.Load) for n in ir.nodes(node.body))
        if not simple:
            out = [line for load in before for line in self._copy(load, depth)] + out
            return out + self._copies(node.body, depth + 1, ())
        for n, load in enumerate(loads):
            out += self._copy(load, depth + 1)
            if n == 0 and before:
                out += self._put(f"if {v}_round == 0:", depth + 1)
                out += [line for first in before for line in self._copy(first, depth + 2)]
        if before:
            out += self._put(f"if {v}_stop <= {v}_start:", depth)
            out += [line for first in before for line in self._copy(first, depth + 1)]
        return out

    def _put(self, code: str, depth: int) -> list[str]:
        return statement(code if code.startswith("#") else in_gluon(code), depth)

    def _copy(self, load: ir.Load, depth: int) -> list[str]:
        """One tile's journey to shared memory, for each consumer its own rows where they have their own."""
        channel, index = self.channels[load.tile], self.text.values.index
        name, text = channel.name, self.text
        out = self._put(f"# {comment(load)}", depth)
        row, rows = index(load.row), text.block(load.tile.shape[0])
        if channel.grouped:
            out += self._put("for consumer in gl.static_range(CONSUMERS):", depth)
            depth += 1
            row, rows = f"{row} + consumer * 64", "64"
        place = channel.place("consumer")
        columns = " + ".join(text.block(p.width) for p in channel.pieces)
        full = f"{name}_full.index({place})"
        out += self._put(f"mbarrier.wait({name}_empty.index({place}), {name}_turn ^ 1)", depth)
        out += self._put(f"mbarrier.expect({full}, 2 * {rows} * ({columns}))", depth)
        for piece in channel.pieces:
            shape = (ir.Const(64) if channel.grouped else load.tile.shape[0], piece.width)
            access = self.accesses.of(load.matrix, shape, load.source)
            self.of[name].add(access.argument)
            fixed = [index(a) for a in load.matrix.axes if not isinstance(a, str)]
            start = index(ir.Op("add", (load.col, piece.start)) if load.col != ir.Const(0) else piece.start)
            corner = ", ".join([*fixed, row, start])
            target = f"{name}_places{piece.suffix}.index({place})"
            out += self._put(f"tma_load({access.argument}, [{corner}], {full}, {target})", depth)
        depth -= channel.grouped
        return out + self._put(channel.onward, depth)


def _deeper(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]


def _wrapped(arguments: str, indent: int) -> list[str]:
    lines, line = [], " " * indent
    for part in arguments.split(", "):
        if line.strip() and len(line) + len(part) + 2 > 110:
            lines.append(line.rstrip())
            line = " " * indent
        line += f"{part}, "
    return [*lines, line.rstrip()]


def _quoted(names: Iterable[str]) -> list[str]:
    """The names as strings, as many to a line as it takes."""
    return call("", [[f'"{name}"' for name in names]], 0)[1:-1]
