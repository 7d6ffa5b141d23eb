"""Loops that differ only in masks that change nothing become one: the same rounds in the same order, proved or left."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from harness.targets import find_target
from harness.tl import ir
from harness.tl.check import check
from harness.tl.interpret import interpret
from harness.tl.lower.cut import cut
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_aot import compile_for_hopper
from harness.tl.lower.gluon_view import view
from harness.tl.lower.join import join
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from harness.tl.space import hopper_space
from tasks import find
from tests.tl.study.machine_code import disassembled
from tests.tl.study.machine_code import loops as loops_of_code
from tests.tl.test_cut import CONDITIONS, EARLY, FULL, MASK, TILES, behind, causal, loops
from tests.tl.test_gluon import SHAPES, emulated
from tests.tl.triton_trial import TOLERANCE, inputs, shape, text_of

X = "i * BM + seq_k - seq_q"
ALL = "min(ceil(seq_k / BN), ceil(((i + 1) * BM + seq_k - seq_q) / BN))"
WORK = re.compile("F|HGMMA|MUFU|SHFL|VOTE|SYNCS|BAR|WARP")
HEAD = re.compile(r"for j = .* : .*\n")
# Where models have the mask begin, and all end.
WRITTEN = (
    (FULL, ALL),
    (f"max(0, {X} + 1) / BN", "max(0, ceil((min((i + 1) * BM, seq_q) + seq_k - seq_q) / BN))"),
    (f"max(0, ({X} + 1) / BN)", f"max(0, min(ceil(seq_k / BN), ceil(({X} + BM) / BN)))"),
    (f"max(0, {X} + 1) // BN", "ceil(max(0, min(seq_k, (i + 1) * BM + seq_k - seq_q)) / BN)"),
    (f"min(ceil(seq_k / BN), max(0, {X} + 1) // BN)", ALL),
)


def split(
    task: str, bounds: list[str], masks: list[str], names: str = "jjjj", twice: bool = False
) -> ir.Program:
    """The reference program with loops one after the other, each with lines of its own for a mask.

    With `twice` a second tile, T, is half of S, may be masked too, and raises S.
    """
    text = text_of("reference", task)
    if twice:
        text = two_tiles(text)
    loop = text[HEAD.search(text).start() : text.index("\nend\n") + 5]  # type: ignore[union-attr]
    (own,) = (line for line in loop.splitlines(keepends=True) if " Mask " in line)
    parts = []
    for start, stop, lines, name in zip(bounds, bounds[1:], masks, names, strict=False):
        part = HEAD.sub(f"for {name} = {start} : {stop}\n", loop.replace(own, lines))
        parts.append(part.replace("[L = j]", f"[L = {name}]"))
    return resolve(parse(text.replace(loop, "".join(parts))), find(task))


def two_tiles(text: str) -> str:
    (own,) = (line for line in text.splitlines(keepends=True) if " Mask " in line)
    text = text.replace(own, f"    Compute T = S * 0.5\n{own}    Compute S = max(S, T)\n")
    return text.replace(
        "Allocate S in register (BM, BN)\n",
        "Allocate S in register (BM, BN)\nAllocate T in register (BM, BN)\n",
    )


def after(prog: ir.Program) -> ir.Program:
    return replace(prog, kernels=tuple(join(cut(k)) for k in prog.kernels))


def results(prog: ir.Program, seqs: tuple[int, int], name: str = "mha_causal") -> torch.Tensor:
    task = find(name)
    w = shape(task, *seqs, "fp32")
    return interpret(prog, task, w, inputs(task, w), TILES).outputs["out"]


# --- what is joined ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("full", "tiles"), WRITTEN)
def test_a_mask_in_a_loop_of_its_own_is_one_loop_with_the_mask(full: str, tiles: str) -> None:
    apart = split("mha_causal", ["0", full, tiles], ["", MASK])
    (loop,) = loops(after(apart))
    assert sum(isinstance(n, ir.Mask) for n in loop.body) == 1
    for seqs in ((130, 203), (203, 130), (64, 64), (1, 65)):
        assert torch.equal(results(apart, seqs), results(after(apart), seqs)), seqs


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_mask_behind_a_branch_gives_the_kernel_of_one_without(condition: str) -> None:
    """Both forms came from a model; with the branch no product ran ahead, 10 to 20 % slower on an H100."""
    task = find("mha_causal")
    source = lower_gluon(causal(behind(condition)), task).files["attention.py"]
    assert source == lower_gluon(causal(MASK), task).files["attention.py"]


def test_loops_of_one_kernel_may_count_by_other_names() -> None:
    apart = split("mha_causal", ["0", FULL, ALL], ["", MASK], "jn")
    (loop,) = loops(after(apart))
    assert loop.var == "j" and torch.equal(results(apart, (130, 203)), results(after(apart), (130, 203)))


@pytest.mark.parametrize("together", [False, True])
def test_a_window_masked_at_both_ends_is_one_loop(together: bool) -> None:
    """Rounds at its beginning look at the lower bound only, those at its end at the upper, if not at both."""
    low, high = "k > q + seq_k - seq_q - window", "k <= q + seq_k - seq_q"
    begin = f"max(0, {X} - window + 1) // BN"
    bounds = [begin, f"max({begin}, ceil(max(0, {X} + BM - window) / BN))", ALL]
    masks = [f"    Compute Mask S where {low} and {high}\n", f"    Compute Mask S where {high}\n"]
    if not together:
        masks = [f"    Compute Mask S where {low}\n    Compute Mask S where {high}\n", masks[1]]
    apart = split("sliding_window", bounds, masks)
    behind_a_branch = split("sliding_window", [begin, ALL], [_behind(bounds[1], masks, low, together)])
    for prog in (apart, behind_a_branch):
        (loop,) = loops(after(prog))
        assert sum(isinstance(n, ir.Mask) for n in loop.body) == 2
        for seqs in ((200, 333), (333, 200), (64, 64)):
            found = [results(p, seqs, "sliding_window") for p in (prog, after(prog))]
            assert torch.equal(*found), seqs


def _behind(middle: str, masks: list[str], low: str, together: bool) -> str:
    if together:
        return f"    if j < {middle}\n    {masks[0]}    else\n    {masks[1]}    end\n"
    return f"    if j < {middle}\n        Compute Mask S where {low}\n    end\n{masks[1]}"


def test_the_kernel_of_two_loops_is_that_of_one_but_for_where_it_stops() -> None:
    """So what the one loop is known to take on a GPU, two take as well."""
    task, apart = find("mha_causal"), split("mha_causal", ["0", FULL, ALL], ["", MASK])
    sources = [lower_gluon(p, task).files["attention.py"].splitlines() for p in (apart, causal(MASK))]
    changed = [line[1:].strip() for line in difflib.ndiff(*sources) if line[0] in "+-"]
    stops = [line for line in changed if not line.startswith(("gl.m", ")"))]
    assert stops and all(re.match(r"j_(stop|start, j_stop) = ", line) for line in stops), changed
    gaps = emulated(task, apart, {"consumers": 2, "BN": 64}, SHAPES)
    assert max(gaps) < TOLERANCE["fp16"], gaps


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
def test_its_loops_have_the_same_machine_code(dim: int) -> None:
    """Products, exponentials, what threads tell each other; whole numbers tell where the loop ends."""
    task, apart = find("mha_causal"), split("mha_causal", ["0", FULL, ALL], ["", MASK])
    w = shape(task, 4096, 4096, "fp16", heads=16).with_(dim=dim, dim_v=dim)
    found = []
    for prog in (apart, causal(MASK)):
        (kernel,) = compile_for_hopper(lower_gluon(prog, task), task, w)
        listing = disassembled(kernel.cubin)
        if listing is None:
            pytest.skip("no disassembler")
        found.append([{n: c for n, c in x.opcodes.items() if WORK.match(n)} for x in loops_of_code(listing)])
        assert kernel.spill_bytes == 0
    assert found[0] == found[1] and all(code["HGMMA"] for code in found[0]) and found[0]


@pytest.mark.parametrize("condition", [*CONDITIONS, *EARLY])
def test_the_search_and_the_checker_know_that_products_run_ahead_of_a_mask_behind_a_branch(
    condition: str,
) -> None:
    task, text = find("mha_causal"), text_of("reference", "mha_causal").replace(MASK, behind(condition))
    line = next(line for line in text.splitlines() if line.startswith("Schedule"))
    text = text.replace(line, "Schedule overlap true, consumers 2")
    assert {choice["overlap"] for choice in hopper_space(causal(behind(condition)))} == {0, 1}
    report = check(text, task, target=find_target("h100"))
    assert report.ok and not [f for f in report.findings if f.code == "TL907"], report.findings


# --- what is not -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "masks"),
    [
        (["0", f"{FULL} + 1", ALL], ["", MASK]),  # a round too late: the mask would take keys away there
        (["0", f"max(0, {X} + 2) // BN", ALL], ["", MASK]),  # so it would, at the last key of a tile
        (["0", "3", ALL], ["", MASK]),
        (["0", f"({X} + 1) // BN", ALL], ["", MASK]),  # may be below 0, where the second loop then begins
        ([FULL, ALL, "ceil(seq_k / BN)"], [MASK, "    Compute Multiply S, 1 and get new S\n"]),
        (["0", FULL, ALL], ["    Compute Multiply S, 0.5 and get new S\n", MASK]),
        (["1", FULL, ALL], ["", MASK]),  # may begin behind the middle
        (["0", f"ceil(max(0, {X} + 1) / BN)", ALL], ["", MASK]),
        (["0", f"max(3, {FULL})", ALL], ["", MASK]),
        (["0", f"max(3, max(0, {X} + 1) // BN)", ALL], ["", MASK]),
        (["0 - 2", f"max(0 - 2, {FULL})", ALL], ["", MASK]),  # keys before the first, where X is below 0
        (["0", FULL, f"{FULL} + 1", ALL], ["", "    Compute Mask S where k < q - 3\n", MASK]),
    ],
)
def test_what_may_change_something_stays(bounds: list[str], masks: list[str]) -> None:
    apart = split("mha_causal", bounds, masks)
    assert after(apart) == apart


@pytest.mark.parametrize(
    "middle", [f"ceil(max(0, {X} + BM - window - 1) / BN)", f"max(0, {X} + BM - window) // BN"]
)
def test_a_window_that_is_not_masked_long_enough_stays(middle: str) -> None:
    """One row sees one key too many by that, if the window ends there; it is the program's to say so."""
    begin = f"max(0, {X} - window + 1) // BN"
    low, high = "k > q + seq_k - seq_q - window", "k <= q + seq_k - seq_q"
    masks = [f"    Compute Mask S where {low} and {high}\n", f"    Compute Mask S where {high}\n"]
    apart = split("sliding_window", [begin, f"max({begin}, {middle})", ALL], masks)
    assert after(apart) == apart


OTHER = MASK.replace("S", "T", 1)
READS = "    Compute Mask S where T > 0 - 1\n"


@pytest.mark.parametrize(
    "masks",
    [
        [
            MASK.replace("seq_q", "seq_q - 7"),
            OTHER.replace("seq_q", "seq_q - 7"),
        ],  # one condition, of two tiles
        [READS, OTHER + READS],  # T is masked before S looks at it, where it is
    ],
)
def test_masks_of_other_tiles_stay(masks: list[str]) -> None:
    apart = split("mha_causal", ["0", FULL, ALL], masks, twice=True)
    assert after(apart) == apart


def test_bounds_that_are_one_object_twice_are_no_matter() -> None:
    """As an outer loop with a step makes them."""
    loop = "    Copy K (BN, dim) in coordinate [L = n] from global to shared\n    Compute GEMM Q, K^T and get S\n"
    inner = [f"for n = {a} : {b}\n{loop}end\n" for a, b in (("j", "min(j, j)"), ("min(j, j)", "j"))]
    text = text_of("reference", "mha_causal")
    whole = text[HEAD.search(text).start() : text.index("\nend\n") + 5]  # type: ignore[union-attr]
    rest = whole.replace("for j", "for n").replace("[L = j]", "[L = n]")
    prog = resolve(
        parse(text.replace(whole, f"for j = 0 : 2 step 2\n{''.join(inner)}end\n{rest}")), find("mha_causal")
    )
    assert view(prog.kernels[0])


def test_a_mask_of_elements_stays() -> None:
    apart = split("mha_causal", ["0", FULL, ALL], ["", "    Compute Mask S where S < 3\n"])
    assert after(apart) == apart


BOUNDS = st.sampled_from([
    "0", "1", "2", FULL, f"{FULL} + 1", f"max(0, {X}) // BN", f"max(0, {X} + 2) // BN", f"max(0, {X} + BN) // BN",
    f"max(1, {FULL})", f"min(3, {FULL})", f"({X} + 1) // BN", f"ceil(max(0, {X} - 5) / BN)", f"ceil(max(0, {X} + 1) / BN)",
    "ceil(seq_k / BN)", ALL, f"max({ALL}, {FULL})", "i", "0 - 1",
])  # fmt: skip
OF_TWO = st.sampled_from([
    "", MASK, MASK.replace("S", "T", 1), MASK + MASK.replace("S", "T", 1), MASK.replace("S", "T", 1) + MASK,
    "    Compute Mask S where T > 0 - 1\n", MASK.replace("S", "T", 1) + "    Compute Mask S where T > 0 - 1\n",
    f"    Compute Mask T where k < {X} + 1\n", f"    Compute Mask S where k < {X} + 1\n",
])  # fmt: skip
MASKS = st.sampled_from([
    "", MASK, "    Compute Mask S where k >= 7\n", f"    Compute Mask S where k < {X} + 1\n",
    "    Compute Mask S where k > q + seq_k - seq_q - 40\n",
    "    Compute Mask S where k > q + seq_k - seq_q - 40 and k <= q + seq_k - seq_q\n",
    f"    Compute Mask S where i >= 0\n{MASK}",
])  # fmt: skip


LIKELY = st.sampled_from([FULL, f"max(0, {X}) // BN", f"max({FULL}, ceil(max(0, {X} + BM - 40) / BN))"])


@settings(deadline=None, max_examples=300)
@given(
    bounds=st.tuples(st.just("0") | BOUNDS, LIKELY | BOUNDS, BOUNDS, BOUNDS).map(list),
    masks=st.lists(MASKS, min_size=2, max_size=3),
    seqs=st.sampled_from([(70, 130), (64, 64), (130, 70), (33, 100)]),
)
def test_whatever_is_joined_computes_bit_for_bit_what_it_did(
    bounds: list[str], masks: list[str], seqs: tuple[int, int]
) -> None:
    apart = split("mha_causal", bounds, masks)
    joined = after(apart)
    event(f"{len(loops(apart)) - len(loops(joined))} joined")
    if joined != apart:
        assert torch.equal(results(apart, seqs), results(joined, seqs)), (bounds, masks)


@settings(deadline=None, max_examples=200)
@given(
    bounds=st.tuples(st.just("0"), LIKELY | BOUNDS, BOUNDS).map(list),
    masks=st.lists(OF_TWO, min_size=2, max_size=2),
    seqs=st.sampled_from([(70, 130), (64, 64), (130, 70), (33, 100)]),
)
def test_masks_of_two_tiles_that_are_joined_compute_bit_for_bit_what_they_did(
    bounds: list[str], masks: list[str], seqs: tuple[int, int]
) -> None:
    apart = split("mha_causal", bounds, masks, twice=True)
    joined = after(apart)
    event(f"{len(loops(apart)) - len(loops(joined))} joined")
    if joined != apart:
        assert torch.equal(results(apart, seqs), results(joined, seqs)), (bounds, masks)


@settings(deadline=None, max_examples=100)
@given(
    atoms=st.lists(
        st.tuples(
            st.sampled_from(["j", "(j + 1) * BN", "j * BN", "2 * j", "7 - j"]),
            st.sampled_from(["<", "<=", ">", ">="]),
            BOUNDS | st.just(X),
        ),
        min_size=1, max_size=2,
    ),
    mask=MASKS.map(lambda lines: lines or MASK), other=MASKS,
    seqs=st.sampled_from([(70, 130), (64, 64), (130, 70)]),
)  # fmt: skip
def test_a_branch_that_is_cut_and_joined_computes_bit_for_bit_what_it_did(
    atoms: list[tuple[str, str, str]], mask: str, other: str, seqs: tuple[int, int]
) -> None:
    condition = " and ".join(f"{a} {side} {b}" for a, side, b in atoms)
    otherwise = f"    else\n{other}" if other else ""
    whole = causal(f"    if {condition}\n{mask}{otherwise}    end\n")
    joined = after(whole)
    event(f"{len(loops(joined))} left")
    assert torch.equal(results(whole, seqs), results(joined, seqs)), condition


# --- keys past the end -------------------------------------------------------------------------------


@pytest.mark.parametrize(("full", "tiles"), WRITTEN)
def test_loops_as_models_write_them_are_known_to_stay_within_the_keys(full: str, tiles: str) -> None:
    """So where tiles divide the keys, none is looked at for keys that are not there."""
    prog = split("mha_causal", ["0", full, tiles], ["", MASK])
    assert "if not EVEN_seq_k_BN" in lower_gluon(prog, find("mha_causal")).files["attention.py"]


@pytest.mark.parametrize("stop", ["ceil(seq_k / BN) + 1", "5", f"ceil(max(0, {X} + 2 * BM) / BN)"])
@pytest.mark.parametrize("mask", ["", "    Compute Mask S where k > q + seq_k - seq_q - 40\n"])
def test_keys_past_the_end_count_in_nothing_where_tiles_divide_the_keys(stop: str, mask: str) -> None:
    task, prog = find("mha_causal"), split("mha_causal", ["0", stop], [mask])
    gaps = emulated(task, prog, {"consumers": 1, "BN": 32}, ((128, 128),))
    assert max(gaps) < TOLERANCE["fp16"], gaps
