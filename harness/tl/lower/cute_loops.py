"""Owns the CuTe text of loops and branches: rounds without a mask apart, tiles fetched rounds ahead."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.cute_kernel import StatementText
from harness.tl.lower.cute_pipeline import Fetch, Pipeline, pipeline
from harness.tl.lower.cute_text import ONE, index
from harness.tl.lower.facts import grows
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.peel import Peeled, peel
from harness.tl.syntax import Level


@dataclass
class KernelText(StatementText):
    """Writes one kernel, loops and branches too."""

    pipelines: dict[int, Pipeline] = field(default_factory=dict)  # by the identity of the loop
    slots: dict[ir.Tile, str] = field(default_factory=dict)  # places of shared memory, where not one

    def run(self) -> None:
        """The kernel's body."""
        self.slots = self._plan()
        for line in self.grid():
            self.put(line)
        self.put("constexpr int THREADS = 32 * WARPS;")
        self.put("extern __shared__ __align__(128) unsigned char bytes[];")
        self.put("T* const shared = reinterpret_cast<T*>(bytes);")
        self.declare(self.slots)
        self.ringed = set(self.slots)
        self.partial = self._deferred_sums()
        last = max((n for n, x in enumerate(self.kernel.body) if isinstance(x, ir.For)), default=-1)
        self.top_level(self.kernel.body[: last + 1])
        rest = self.kernel.body[last + 1 :]
        if last < 0:
            self.top_level(rest)
            return
        # the block's index is read again after the loops: it need not stay in registers through them
        with self.block(""):
            for line in self.grid(again=True):
                self.put(line)
            self.top_level(rest)

    def top_level(self, body: tuple[ir.Node, ...]) -> None:
        for node in body:
            self._finish_sums(node)
            self.statement(node)

    # --- sums over a thread's own columns ---

    def _deferred_sums(self) -> set[ir.Tile]:
        """Sums of softmaxes that need not be whole before the loops that make them have ended."""
        softmaxes = [n for n in ir.nodes(self.kernel.body) if isinstance(n, ir.Softmax)]
        found = {n.l for n in softmaxes}
        for top in self.kernel.body:
            inside = list(ir.nodes((top,)))
            made = {n.l for n in inside if isinstance(n, ir.Softmax)}
            for node in inside:
                if not isinstance(node, ir.Softmax):
                    found -= made & {*ir.reads(node)}
                if isinstance(node, ir.Init) and node.value != ir.Const(0):
                    found.discard(node.tile)
                elif not isinstance(node, ir.Softmax | ir.Init):
                    found -= set(ir.writes(node))
        return found

    def _finish_sums(self, node: ir.Node) -> None:
        """Before the first statement that reads such a sum."""
        read = {t for n in ir.nodes((node,)) if not isinstance(n, ir.Softmax) for t in ir.reads(n)}
        for tile in sorted(read & self.partial, key=lambda t: t.key):
            name = self.names[tile]
            self.put("// the sums of the four threads that share a row meet")
            self.put(f"each({name}, [&](int mm, int hh) {{ {name}(mm, hh) = quad_sum({name}(mm, hh)); }});")
            self.partial.discard(tile)

    # --- branches ---

    def control(self, node: ir.For | ir.If) -> None:
        if isinstance(node, ir.For):
            self._for(node)
        else:
            self._if(node)

    def _if(self, node: ir.If) -> None:
        self.settle_all()
        self.await_tiles(self._reads_shared(node.then + node.otherwise))
        self.note(node)
        branches = [(f"if ({index(node.cond).code})", node.then)]
        if node.otherwise:
            branches.append(("else", node.otherwise))
        for head, body in branches:
            with self.block(head):
                self._inner(body)

    def _inner(self, body: tuple[ir.Node, ...]) -> None:
        """A body after which nothing is known of what it changed."""
        state = set(self.dead_inf), set(self.dead_zero), dict(self.operands)
        self.operands = {}
        self.body(body)
        self.settle_all()
        written = {t for n in ir.nodes(body) for t in ir.writes(n)}
        self.dead_inf, self.dead_zero = state[0] - written, state[1] - written
        self.operands = {t: name for t, name in state[2].items() if t not in written}
        if self.arriving:
            self.put("arrived<0>();")
            self.arriving.clear()

    def _reads_shared(self, body: tuple[ir.Node, ...]) -> set[ir.Tile]:
        return {t for n in ir.nodes(body) for t in ir.reads(n) if t.level is Level.SHARED}

    # --- loops ---

    def _for(self, node: ir.For) -> None:
        self.settle_all()
        peeled = peel(node)
        unmasked = peeled is not None and not (peeled.lows or peeled.highs)
        plan = self.pipelines.get(id(node))
        was = self.masked
        bounds = None if peeled is None or unmasked or node.step != ONE else peeled
        if plan is None:
            self._in_turn(node, bounds, unmasked)
        elif sum(isinstance(n, ir.For) for n in ir.nodes(self.kernel.body)) == 1:
            self._ahead(node, plan, bounds, unmasked)
        else:  # names of its own
            with self.block(""):
                self._ahead(node, plan, bounds, unmasked)
        self.masked = was

    def _in_turn(self, node: ir.For, peeled: Peeled | None, unmasked: bool) -> None:
        """Each round fetches what it needs, and waits for it."""
        self.await_tiles(self._reads_shared(node.body))
        self.note(node)
        v = node.var
        step = f"++{v}" if node.step == ONE else f"{v} += {index(node.step).code}"
        start, stop = index(node.start).code, index(node.stop).code
        with self.block(f"for (int {v} = {start}; {v} < {stop}; {step})"):
            self.masked = "false" if unmasked else "true"
            if peeled is not None:
                self.put(f"const bool masked_{v} = {self._edge(v, peeled)};")
                self.masked = f"masked_{v}"
            self._inner(node.body)

    @staticmethod
    def _edge(v: str, peeled: Peeled) -> str:
        """C++ of whether the round meets a mask or the end."""
        lows = [f"{v} < {index(low).inside(6)}" for low in peeled.lows]
        highs = [f"{v} >= {index(high).inside(6)}" for high in peeled.highs]
        return " || ".join([*lows, *highs])

    def _ahead(self, node: ir.For, plan: Pipeline, peeled: Peeled | None, unmasked: bool) -> None:
        """Rounds that fetch for the rounds after them."""
        v = node.var
        first_barrier = node.body[: plan.barriers[0]]
        loaded = {f.load.tile for f in plan.fetches}
        self.await_tiles(self._reads_shared(first_barrier) - loaded)
        self.note(node)
        self.put(f"const int {v}_start = {index(node.start).code}, {v}_stop = {index(node.stop).code};")
        if peeled is not None:
            self._bounds(v, peeled)
        for fetch in plan.fetches:
            self._fetcher(v, fetch)
        if loaded & self._touched:
            self.put("__syncthreads();  // the tiles are still being read")
        self._first_fetches(v, plan)
        with self.block(f"auto round_{v} = [&](const int {v}, auto masked)", "};"):
            for fetch in plan.fetches:
                name = self.names[fetch.load.tile]
                at = f"({v} - {v}_start) % {_atom(fetch.slots)}"
                self.put(f"const {name}_t {name}{{{name}_ring + {at} * {name}_t::elements}};")
            self.current |= loaded
            self.masked = "false" if unmasked else "true" if peeled is None else "masked"
            self._round(node, plan)
            self.current -= loaded
        self._touched |= loaded
        self._turns(v, peeled, unmasked)
        self.arriving.clear()

    def _bounds(self, v: str, peeled: Peeled) -> None:
        """The rounds from `whole` on, before `edge`, meet no mask."""
        lows = [index(low) for low in peeled.lows]
        highs = [index(high) for high in peeled.highs]
        if lows:
            code = lows[0].code
            for low in lows[1:]:
                code = f"most({code}, {low.code})"
            self.put(f"const int {v}_whole = {code};")
        code = highs[0].code if highs else f"{v}_stop"
        for high in highs[1:]:
            code = f"least({code}, {high.code})"
        self.put(f"const int {v}_edge = {code};")

    def _fetcher(self, v: str, fetch: Fetch) -> None:
        name = self.names[fetch.load.tile]
        at = f"({v} - {v}_start) % {_atom(fetch.slots)}"
        self.note(fetch.load)
        with self.block(f"auto fetch_{name} = [&](int {v})", "};"):
            self.put(f"if ({v} >= {v}_stop) return;")
            place = f"{name}_t{{{name}_ring + {at} * {name}_t::elements}}"
            self.put(self.fetch(fetch.load, place))

    def _first_fetches(self, v: str, plan: Pipeline) -> None:
        with self.block("for (int n = 0; n < STAGES; ++n)"):
            for barrier in range(len(plan.barriers)):
                for fetch in plan.begun_at(barrier):
                    name = self.names[fetch.load.tile]
                    if fetch.ahead == 0:
                        self.put(f"fetch_{name}({v}_start + n);")
                    else:
                        self.put(f"if (n > 0) fetch_{name}({v}_start + n - 1);")
                self.put("commit();")

    def _round(self, node: ir.For, plan: Pipeline) -> None:
        state = set(self.dead_inf), set(self.dead_zero), dict(self.operands)
        self.operands = {}
        loads = {id(f.load) for f in plan.fetches}
        for at, statement in enumerate(node.body):
            if at in plan.barriers:
                barrier = plan.barriers.index(at)
                self.put(f"arrived<{plan.pending_at(barrier)}>();")
                self.arriving.clear()
                for fetch in plan.begun_at(barrier):
                    ahead = "STAGES" if fetch.ahead == 0 else "STAGES - 1"
                    self.put(f"fetch_{self.names[fetch.load.tile]}({node.var} + {ahead});")
                self.put("commit();")
            if id(statement) not in loads:
                self.statement(statement)
        self.settle_all()
        written = {t for n in ir.nodes(node.body) for t in ir.writes(n)}
        self.dead_inf, self.dead_zero = state[0] - written, state[1] - written
        self.operands = {t: name for t, name in state[2].items() if t not in written}

    def _turns(self, v: str, peeled: Peeled | None, unmasked: bool) -> None:
        every = f"for (int {v} = {v}_start; {v} < {v}_stop; ++{v})"
        if peeled is None:
            self.put(f"{every} round_{v}({v}, Known<{str(not unmasked).lower()}>{{}});")
            return
        inside = f"{v} < {v}_edge" if not peeled.lows else f"{v} >= {v}_whole && {v} < {v}_edge"
        self.put("if constexpr (SPLIT) {")
        self.depth += 1
        if peeled.lows:
            with self.block(every):
                self.put(f"if ({inside}) round_{v}({v}, Known<false>{{}});")
                self.put(f"else round_{v}({v}, Known<true>{{}});")
        else:
            self.put(f"int {v} = {v}_start;")
            self.put(f"for (; {v} < least({v}_edge, {v}_stop); ++{v}) round_{v}({v}, Known<false>{{}});")
            self.put(f"for (; {v} < {v}_stop; ++{v}) round_{v}({v}, Known<true>{{}});")
        self.depth -= 1
        self.put("} else {")
        self.depth += 1
        self.put(f"{every} round_{v}({v}, !({inside}));")
        self.depth -= 1
        self.put("}")

    # --- before anything is written ---

    def _plan(self) -> dict[ir.Tile, str]:
        """Which loops fetch ahead, and how many places each of their tiles has."""
        slots: dict[ir.Tile, str] = {}
        for loop in [n for n in ir.nodes(self.kernel.body) if isinstance(n, ir.For)]:
            found = pipeline(loop)
            if found is None or any(f.load.via is not None for f in found.fetches):
                continue
            tiles = {f.load.tile for f in found.fetches}
            inside = sum(t in tiles for n in ir.nodes(loop.body) for t in ir.reads(n))
            loaded_elsewhere = self._loops_that_load(tiles)
            everywhere = sum(
                t in tiles for m in loaded_elsewhere for n in ir.nodes(m.body) for t in ir.reads(n)
            )
            anywhere = sum(t in tiles for n in ir.nodes(self.kernel.body) for t in ir.reads(n))
            if anywhere != everywhere or inside == 0:
                continue
            self.pipelines[id(loop)] = found
            for fetch in found.fetches:
                if slots.get(fetch.load.tile, "STAGES") == "STAGES":
                    slots[fetch.load.tile] = fetch.slots
        return slots

    def _loops_that_load(self, tiles: set[ir.Tile]) -> list[ir.For]:
        return [
            loop for loop in ir.nodes(self.kernel.body)
            if isinstance(loop, ir.For) and any(isinstance(n, ir.Load) and n.tile in tiles for n in loop.body)
        ]  # fmt: skip

    # --- the grid ---

    def grid(self, again: bool = False) -> list[str]:
        """The block's index on each axis: rows on x, the others from the last on y and z."""
        axes = self.grid_axes()
        lines = []
        for letter, axis in zip("xyz", axes, strict=False):
            here = f"block_{letter}()" if again else f"int(blockIdx.{letter})"
            if axis.role == "rows" and grows(self.kernel, axis.name):
                extent = index(axis.extent).inside(6)
                lines.append(f"const int {axis.name} = {extent} - 1 - {here};")
            else:
                lines.append(f"const int {axis.name} = {here};")
        if not again and any(a.role == "rows" and grows(self.kernel, a.name) for a in axes):
            lines.insert(0, "// the last rows have most to do: they start first")
        return lines

    def grid_axes(self) -> list[ir.GridAxis]:
        rows = [a for a in self.kernel.grid if a.role == "rows"]
        axes = [*rows, *(a for a in reversed(self.kernel.grid) if a.role != "rows")]
        if len(axes) > 3:
            raise LowerError("a grid of more than three axes has no CuTe code")
        return axes


def _atom(slots: str) -> str:
    return slots if slots.isidentifier() else f"({slots})"
