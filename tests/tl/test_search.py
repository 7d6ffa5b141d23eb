"""A search finds nearly the best choice with few measurements, counts them all, and knows failed ones."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.targets import TARGETS
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from harness.tl.search import SHARE, Cell, Search, Step, Why, neighbours, search, search_cells
from harness.tl.space import hopper_pruned, hopper_space
from tasks import find

TUNED = Path(__file__).parents[2] / "examples" / "tuned"
PROGRAMS = {e.task: check(e.text, find(e.task)).program for e in corpus() if e.name.startswith("reference")}


def key(choice):
    return tuple(sorted(choice.items()))


def kept(task, dim):
    return hopper_pruned(PROGRAMS[task], find(task), TARGETS["h100"], dims=(dim, dim)).kept


# --- how near, with how few ---------------------------------------------------------------------------------


def times_of(space, seed):
    """Times that are products of a factor for each value (12 %) and for each pair of values (4 %)."""
    drawn = random.Random(seed)
    factors = defaultdict(lambda: drawn.gauss(0, 0.12))
    pairs = defaultdict(lambda: drawn.gauss(0, 0.04))
    out = {}
    for choice in space:
        items = sorted(choice.items())
        log = sum(factors[i] for i in items) + sum(pairs[p] for p in itertools.combinations(items, 2))
        out[key(choice)] = math.exp(log)
    return out


@pytest.mark.parametrize("dim", [64, 128])
def test_a_hopper_space_needs_15_percent_to_come_within_2_percent(dim):
    """744 and 396 choices. With 60 seeds each and noise of 1 %: 120 of 120 within 2 %, 0.1 % at most; here 6
    seeds each. The times have the form that the search guesses."""
    space = kept("mha_causal", dim)
    for seed in range(6):
        times, noise = times_of(space, seed), random.Random(seed)
        found = search(
            space,
            lambda c, times=times, noise=noise: times[key(c)] * math.exp(noise.gauss(0, 0.01)),
            again=lambda cs, times=times, noise=noise: [
                times[key(c)] * math.exp(noise.gauss(0, 0.0025)) for c in cs
            ],
        )
        assert found.share <= SHARE
        assert times[key(found.best)] <= 1.02 * min(times.values())


def recorded(folder):
    """Each cell of a recorded exhaustive search, and what each of its choices took."""
    record = json.loads((TUNED / folder / "tuning.json").read_text())
    rows = defaultdict(list)
    for t in record["timings"]:
        rows[t["cell"], t["dim"], t["seq"]].append((t["choice"], t["time_ms"]))
    cells = [Cell(name, dim, seq, tuple(c for c, _ in found)) for (name, dim, seq), found in rows.items()]
    return cells, {name: {key(c): t for c, t in found} for (name, _, _), found in rows.items()}


def gaps_and_share(folder):
    cells, times = recorded(folder)
    found = search_cells(cells, lambda cell, choice: times[cell.name][key(choice)])
    gaps = []
    for name, result in found.items():
        best = min(t for t in times[name].values() if t is not None)
        gaps.append(times[name][key(result.best)] / best - 1)
    return gaps, sum(r.evaluations for r in found.values()) / sum(r.size for r in found.values())


@pytest.mark.parametrize(
    ("folder", "within", "most"),
    [("h200/tl_mha_triton", 12, 0.001), ("h200/tl_mha_causal_triton", 13, 0.001),
     ("h100/tl_mha_cute", 10, 0.07), ("h100/tl_mha_causal_cute", 11, 0.07)],
)  # fmt: skip
def test_recorded_searches_are_repeated_with_15_percent_of_their_timings(folder, within, most):
    """Twelve or thirteen cells of 44 to 54 choices each, with the timings of the exhaustive search.

    Triton on H200: the best choice in 25 of 25 cells with 14.6 and 14.9 % of the timings. CuTe on H100: 21 of
    25 within 2 %, 6.8 % at most, 1.1 % on average, with 13.2 and 13.7 %. All recorded searches together, those
    of three to six cells among them: 64 of 77 cells within 2 %, 1.1 % on average, 12.6 % at most, with 16.0 %;
    few cells share the first one's measurements. The constants were chosen on these timings.
    """
    gaps, share = gaps_and_share(folder)
    assert share <= SHARE
    assert sum(gap <= 0.02 for gap in gaps) >= within
    assert max(gaps) <= most


# --- what a search is --------------------------------------------------------------------------------------


SPACES = st.lists(
    st.fixed_dictionaries({"BN": st.sampled_from((64, 128)), "stages": st.integers(1, 4), "x": st.integers(0, 5)}),
    min_size=1, max_size=40, unique_by=key,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(SPACES, st.integers(1, 50), st.integers(0, 999), st.booleans(), st.booleans())
def test_it_keeps_to_its_budget_measures_nothing_twice_and_takes_the_fastest(
    space, budget, seed, failing, longer
):
    drawn, calls = random.Random(seed), []

    def measure(choice):
        calls.append(key(choice))
        return None if failing and drawn.random() < 0.4 else drawn.uniform(1, 2)

    again = (lambda cs: [0.5] * len(cs)) if longer else None
    found = search(space, measure, budget=budget, seeds=[{"BN": 64, "y": 3}], again=again)
    assert found.evaluations <= found.budget == min(budget, len(space)) and found.size == len(space)
    assert len(calls) == len(set(calls)) <= found.evaluations
    assert {key(s.choice) for s in found.trail} <= {key(c) for c in space}
    timed = [s.time_ms for s in found.trail if s.time_ms is not None]
    assert found.time_ms == (min(timed) if timed else None)
    assert (found.best is None) == (not timed)
    if budget >= len(space) and not longer:
        assert len(calls) == len(space)


def test_a_choice_that_fails_is_left_and_its_kind_avoided():
    space = kept("mha", 128)
    times = times_of(space, 1)
    found = search(space, lambda c: None if c["consumers"] == 2 else times[key(c)], budget=30)
    assert found.best is not None and found.best["consumers"] != 2
    assert sum(s.time_ms is None for s in found.trail) < 10
    assert search(space, lambda c: None, budget=5).best is None


def test_every_measurement_counts_and_says_why():
    space = kept("mha", 64)
    times = times_of(space, 2)
    found = search(
        space,
        lambda c: times[key(c)],
        budget=12,
        seeds=[space[5]],
        again=lambda cs: [times[key(c)] for c in cs],
    )
    assert [s.why for s in found.trail[:2]] == [Why.SEED, Why.SPREAD]
    assert [s.why for s in found.trail[-3:]] == [Why.AGAIN] * 3
    assert found.evaluations == found.budget == 12 and found.trail[0].choice == space[5]
    assert found.seconds >= 0 and found.share == pytest.approx(12 / len(space))


def test_the_longer_measurement_decides():
    space = [{"x": n} for n in range(6)]
    found = search(space, lambda c: 1 + c["x"] / 100, budget=6, again=lambda cs: [2.0 - c["x"] for c in cs])
    finalists = [s.choice["x"] for s in found.trail if s.why is Why.AGAIN]
    assert len(finalists) == 3 and found.leading(1) == [{"x": min(finalists)}]
    assert found.best == {"x": max(finalists)} and found.time_ms == 2.0 - max(finalists)


def test_values_that_go_together_are_one_step():
    space = [{"rows": 64 * n, "consumers": n, "z": z} for n in (1, 2, 3) for z in range(4)]
    found = search(space, lambda c: 2.0 + c["z"] / 10 - (c["consumers"] == 1), budget=12, seeds=[space[0]])
    assert found.best == space[0]
    assert {s.choice["consumers"] for s in found.trail if s.why is Why.NEAR} == {1, 2, 3}


def test_it_ends_where_nothing_is_gained():
    space = kept("mha", 64)
    times = times_of(space, 3)
    best = min(space, key=lambda c: times[key(c)])
    found = search(space, lambda c: times[key(c)], seeds=[best], patience=2)
    assert found.best == best and found.evaluations <= 4 < found.budget


def test_a_nearby_shape_of_the_same_head_dimension_gives_the_choices_to_begin_with():
    def result(*values):
        trail = tuple(Step({"x": x}, t, Why.NEAR) for x, t in values)
        return Search({"x": 0}, 1.0, 9, 9, 0.0, trail)

    near = Cell("near", 64, 2048, ())
    found = [
        (Cell("far", 64, 16384, ()), result((1, 2.0))),
        (Cell("other dim", 128, 1024, ()), result((2, 1.0))),
        (near, result((3, 4.0), (4, 3.0), (5, None))),
    ]
    assert neighbours(Cell("new", 64, 1024, ()), found) == [{"x": 4}, {"x": 3}, {"x": 1}]
    assert neighbours(Cell("new", 256, 1024, ()), found[1:2]) == [{"x": 2}]
    assert neighbours(near, []) == []


def test_it_is_told_soon_what_it_may_measure_and_its_finals_are_in_its_budget():
    """All of the first cell's space; of the next one's what is around its seeds, though its kernels are others."""
    space = tuple(kept("mha_causal", 128))
    times, told, measured = times_of(space, 1), {}, defaultdict(list)

    def measure(cell, choice):
        measured[cell.name].append(key(choice))
        return times[key(choice)]

    cells = [Cell(str(n), 128, n, space) for n in (512, 2048, 16384)]
    found = search_cells(
        cells, measure, lambda cell, cs: [times[key(c)] for c in cs],
        lambda cell, cs: told.update({cell.name: {key(c) for c in cs}}),
    )  # fmt: skip
    assert {n: len(t) for n, t in told.items()} == {
        "2048": 396,
        "512": len(told["512"]),
        "16384": len(told["16384"]),
    }
    for name, result in found.items():
        assert result.share <= SHARE and [s.why for s in result.trail[-3:]] == [Why.AGAIN] * 3
        assert name == "2048" or len(told[name]) < 60
        assert set(measured[name]) <= told[name]
        assert times[key(result.best)] <= 1.02 * min(times.values())


# --- the space ------------------------------------------------------------------------------------------------


def test_the_hopper_space_has_the_rows_of_its_consumers_and_nothing_without_effect():
    for task, program in PROGRAMS.items():
        points = list(hopper_space(program))
        assert points and len({key(c) for c in points}) == len(points)
        assert all(c["BM"] == 64 * c["consumers"] and c["BN"] in (64, 128, 256) for c in points)
        assert not any(c["pingpong"] for c in points if c["consumers"] == 1 or not c["overlap"])
        grown = task not in ("mha", "cross", "sliding_window")
        assert {c["longest_first"] for c in points} == {int(grown)}
        assert {c["persistent"] for c in points} == {2} and {c["stages"] for c in points} == {2, 3, 4}


def ways(points):
    return {
        tuple(c[k] for k in ("persistent", "q_stages", "ahead", "carry", "arrivals", "reuse")) for c in points
    }


def test_the_grid_and_the_way_from_tile_to_tile_are_as_the_programs_line_says():
    program = PROGRAMS["mha_causal"]
    plain = list(hopper_space(program))
    assert ways(plain) == {
        (2, places, ahead, 0, 0, reuse) for places in (1, 2) for ahead in (0, 1) for reuse in (0, 1)
    }
    line = (
        *program.schedule,
        ("persistent", ("static", "dynamic")),
        ("carry", ("true",)),
        ("q_stages", (1,)),
        ("reuse", ("off",)),
    )
    asked = list(hopper_space(replace(program, schedule=line)))
    assert len(asked) == len({key(c) for c in asked}) == 0.375 * len(plain)
    assert ways(asked) == {(1, 1, 0, 1, 0, 0), (2, 1, 0, 1, 0, 0), (2, 1, 1, 1, 0, 0)}


def test_fewer_places_are_tried_where_more_do_not_fit_or_the_line_says_so():
    """Of query rows and results: two and one; one each; one for both."""
    task, program, target = find("mha_causal"), PROGRAMS["mha_causal"], TARGETS["h100"]
    kept = hopper_pruned(program, task, target, dims=(128, 128)).kept
    tried = defaultdict(set)
    for c in kept:
        tried[tuple((k, v) for k, v in c.items() if k not in ("q_stages", "reuse"))].add(
            (c["q_stages"], c["reuse"])
        )
    assert {frozenset(places) for places in tried.values()} == {
        frozenset({(2, 0)}), frozenset({(1, 0)}), frozenset({(1, 1)})
    }  # fmt: skip
    for key_, values in (("q_stages", (1, 2)), ("reuse", ("on", "off"))):
        line = (*program.schedule, (key_, values))
        both = hopper_pruned(replace(program, schedule=line), task, target, dims=(128, 128)).kept
        assert {key(c) for c in kept} < {key(c) for c in both}


def test_four_consumers_have_registers_for_tiles_of_64_keys_and_a_head_dimension_of_64():
    four = [c for c in kept("mha_causal", 64) if c["consumers"] == 4 and c["overlap"]]
    assert four and all(c["BN"] == 64 for c in four)
    assert not any(c["consumers"] == 4 for c in kept("mha_causal", 128))


def test_what_is_left_out_of_the_hopper_space_does_not_fit():
    found = hopper_pruned(PROGRAMS["mla_prefill"], find("mla_prefill"), TARGETS["h100"], dims=(192, 128))
    named = {key(c) for c in (*found.kept, *(c for c, _ in found.dropped))}
    spared = [c for c in hopper_space(PROGRAMS["mla_prefill"]) if key(c) not in named]
    fit, better = {key(c) for c in found.kept}, ((2, 0), (1, 0), (2, 1))
    assert spared and all(
        c["consumers"] == 1 or any(key({**c, "q_stages": q, "reuse": r}) in fit for q, r in better)
        for c in spared
    )
    assert {f.code for _, f in found.dropped} == {"TL705", "TL706"}
    assert all(c["reuse"] for c in found.kept if c["BN"] == 128)
    causal = hopper_pruned(PROGRAMS["mha_causal"], find("mha_causal"), TARGETS["h100"], dims=(128, 128))
    assert {f.code for _, f in causal.dropped} == {"TL705", "TL706"}
    measured = {"consumers": 2, "BN": 128, "stages": 2, "overlap": 1}
    assert any(measured.items() <= c.items() for c in kept("mha_causal", 128))
    assert any(
        (measured | {"consumers": 3, "pingpong": 1}).items() <= c.items() for c in kept("mha_causal", 64)
    )
