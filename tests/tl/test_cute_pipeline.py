"""A loop's tiles are fetched ahead: each has arrived when it is used, and none is overwritten while it is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.tl import ir
from harness.tl.lower.cute_pipeline import Pipeline, pipeline
from harness.tl.syntax import Level
from tests.tl.triton_trial import program

SIZE = (ir.Sym("BN"), ir.Sym("dim"))


def tile(n: int) -> ir.Tile:
    return ir.Tile(f"K{n}", Level.SHARED, SIZE)


def load(n: int) -> ir.Load:
    matrix = ir.Matrix(
        f"K{n}", "k", (ir.Sym("b"), "row", "col"), ir.Sym("seq_k"), ir.Sym("dim"), "seq_k", None
    )
    return ir.Load(tile(n), matrix, ir.Sym("j"), ir.Const(0))


def use(n: int) -> ir.Gemm:
    scores = ir.Tile("S", Level.REGISTER, SIZE)
    return ir.Gemm(ir.Operand(scores), ir.Operand(tile(n)), scores, False)


def loop(*body: ir.Node) -> ir.For:
    return ir.For("j", ir.Const(0), ir.Sym("n"), ir.Const(1), body)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[ir.Node, ...]:
    """Loads of one to four tiles, each before its uses, in any order otherwise."""
    count = draw(st.integers(1, 4))
    uses = draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=8))
    uses += [n for n in range(count) if n not in uses]
    body: list[ir.Node] = [use(n) for n in uses]
    for n in range(count):
        first = next(at for at, x in enumerate(body) if isinstance(x, ir.Gemm) and x.b.tile == tile(n))
        body.insert(draw(st.integers(0, first)), load(n))
    return tuple(body)


def evaluated(text: str, stages: int) -> int:
    return int(eval(text, {"STAGES": stages}))


def simulate(body: tuple[ir.Node, ...], plan: Pipeline, stages: int, rounds: int) -> None:
    """Run the schedule as a block does and complain about every use that is not right."""
    slots = {f.load.tile: evaluated(f.slots, stages) for f in plan.fetches}
    holds: dict[tuple[ir.Tile, int], int] = {}  # place -> the round that was fetched into it last
    groups: list[list[tuple[ir.Tile, int]]] = []  # of copies, in the order they were committed
    passed = -1  # the barrier that every thread is past, counted over all rounds
    last_use: dict[ir.Tile, int] = {}  # barriers passed when the tile was last used

    def fetch(f_tile: ir.Tile, target: int, group: list[tuple[ir.Tile, int]]) -> None:
        if target >= rounds:
            return
        place = (f_tile, target % slots[f_tile])
        if place in holds:  # whoever used it must be known to have finished: a barrier lies between
            assert last_use.get(f_tile, -1) < passed, "overwritten while a slower thread may read it"
            assert used.get((f_tile, holds[place])), "overwritten before it was used"
        holds[place] = target
        group.append((f_tile, target))

    used: dict[tuple[ir.Tile, int], bool] = {}
    arrived: set[tuple[ir.Tile, int]] = set()
    for n in range(stages):
        for barrier in range(len(plan.barriers)):
            group: list[tuple[ir.Tile, int]] = []
            for f in plan.begun_at(barrier):
                target = n if f.ahead == 0 else n - 1
                if target >= 0:
                    fetch(f.load.tile, target, group)
            groups.append(group)
    for j in range(rounds):
        for at, node in enumerate(body):
            if at in plan.barriers:
                barrier = plan.barriers.index(at)
                pending = evaluated(plan.pending_at(barrier), stages)
                assert pending >= 0
                arrived |= {copy for g in groups[: len(groups) - pending] for copy in g}
                passed += 1
                group = []
                for f in plan.begun_at(barrier):
                    fetch(f.load.tile, j + stages + f.ahead, group)
                groups.append(group)
            if isinstance(node, ir.Gemm):
                there = node.b.tile
                assert holds.get((there, j % slots[there])) == j, "not what this round needs"
                assert (there, j) in arrived, "it may not have arrived"
                used[there, j] = True
                last_use[there] = passed


@settings(max_examples=300, deadline=None)
@given(bodies(), st.integers(1, 4), st.integers(0, 7))
def test_what_is_used_has_arrived_and_nothing_in_use_is_overwritten(
    body: tuple[ir.Node, ...], stages: int, rounds: int
) -> None:
    plan = pipeline(loop(*body))
    assert plan is not None
    simulate(body, plan, stages, rounds)


def test_keys_and_values_have_one_place_each_and_each_copy_runs_behind_a_product() -> None:
    _, prog = program("reference", "mha_causal")
    (found,) = [p for n in prog.kernels[0].body if isinstance(n, ir.For) and (p := pipeline(n))]
    keys, values = found.fetches
    assert (keys.slots, values.slots) == ("STAGES", "STAGES")
    assert [found.pending_at(n) for n in range(2)] == ["2 * STAGES - 2", "2 * STAGES - 2"]
    assert (keys.begun, keys.ahead) == (1, 0)  # the next keys, once these have been multiplied
    assert (values.begun, values.ahead) == (0, -1)  # this round's values, behind the product with the keys


def test_loops_that_cannot_fetch_ahead_are_left_as_they_are() -> None:
    assert pipeline(loop(use(0))) is None
    assert pipeline(loop(use(0), load(0))) is None  # used before it is loaded
    assert pipeline(loop(ir.If(ir.Sym("j"), (load(0),)), use(0))) is None
    assert pipeline(ir.For("j", ir.Const(0), ir.Sym("n"), ir.Const(2), (load(0), use(0)))) is None
