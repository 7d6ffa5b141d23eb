"""Programs become Hopper kernels: what they are made of, what they compute in Python threads, that nothing spills."""

from __future__ import annotations

import difflib
import gc
import itertools
import json
import math
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.targets import find_target
from harness.tl import ir
from harness.tl.corpus_index import corpus
from harness.tl.interpret import interpret
from harness.tl.lower.backends import lower
from harness.tl.lower.choices import Row
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_aot import compile_for_hopper
from harness.tl.lower.gluon_choices import LIMIT, LONG, complete, default_choice, default_table, shared_bytes
from harness.tl.lower.lowered import LowerError
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from harness.tl.schedule import RESCALES
from harness.tuning_search import hopper_choices
from tasks import Task, Workload, find
from tasks.oracle import expected
from tests.tl.gluon_emulator import Deadlock, Device, Value
from tests.tl.triton_trial import TOLERANCE, inputs, program, program_of, shape, text_of

TUNED = Path(__file__).parents[2] / "examples" / "tuned" / "h100"

TASKS = ("mha", "mha_causal", "gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross")
SHAPES = ((130, 203), (203, 130), (128, 128))  # tails and offsets both ways, one that tiles divide
LENIENT = {entry.name: entry for entry in corpus("lenient")}
# The form of a program that is no plain loop of two products: branches, two loops, slices, a step, copies.
ODD = ("07", "08", "11", "15", "16", "17", "19", "20", "23", "28")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors are small here: more threads only wait for each other."""
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


def emulated(
    task: Task, prog: ir.Program, choice: dict[str, int], shapes: tuple[tuple[int, int], ...], dtype: str = "fp16",
    processors: int = 3,
) -> list[float]:  # fmt: skip
    """Largest differences between the kernel, run in Python, and the interpreter."""
    device = Device(processors)
    module = device.module(lower_gluon(prog, task, choice=choice or None).files["attention.py"])
    gaps = []
    for seqs in shapes:
        w = shape(task, *seqs, dtype)
        given = inputs(task, w)
        out = torch.full(task.outputs[0].shape(w), float("nan"), dtype=w.torch_dtype)
        module.attention(**given, out=out, **task.scalars(w))
        tiles = {n: choice[n] for n, _ in prog.parameters if n in choice}
        expected = interpret(prog, task, w, given, tiles).outputs["out"]
        gap = (out.double() - expected.double()).abs().max().item()
        gaps.append(gap if gap == gap else float("inf"))
        assert int(module.counter) == 0, "tickets are left over"
    return gaps


# --- what is computed -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_the_kernel_computes_what_the_interpreter_does(name: str) -> None:
    task, prog = program("reference", name)
    gaps = emulated(task, prog, {"consumers": 2, "BN": 64}, SHAPES)
    assert max(gaps) < TOLERANCE["fp16"], gaps


SCHEDULES = [
    dict(zip(("consumers", "BN", "stages", "overlap", "pingpong", "persistent"), values, strict=True))
    for values in (
        (3, 128, 2, 1, 1, 2), (2, 128, 2, 1, 0, 1), (2, 64, 3, 0, 0, 0), (1, 32, 1, 1, 0, 2), (3, 16, 1, 1, 1, 0),
        (2, 256, 2, 0, 0, 2),
    )
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", ["mha_causal", "sliding_window"])
def test_no_schedule_changes_the_result(name: str, schedule: dict[str, int]) -> None:
    task, prog = program("reference", name)
    dtype = "bf16" if schedule["consumers"] == 2 else "fp16"
    gaps = emulated(task, prog, schedule, SHAPES[:1], dtype)
    assert max(gaps) < TOLERANCE[dtype], gaps


ALL = {"overlap": 1, "q_stages": 2, "ahead": 1, "carry": 1, "arrivals": 1}
# The keys of the way from tile to tile: each alone, and all of them with every number of consumers.
BETWEEN = [
    {"consumers": 2, "BN": 64, "q_stages": 2}, {"consumers": 2, "BN": 64, "ahead": 1},
    {"consumers": 2, "BN": 64, "arrivals": 1}, {"consumers": 2, "BN": 64, "carry": 1},
    {"consumers": 3, "BN": 64, "pingpong": 1, "stages": 1, "carry": 1, "persistent": 1},
    {"consumers": 4, "BN": 64, "pingpong": 1}, {"consumers": 3, "BN": 128, "pingpong": 1, "carry": 1, "ahead": 1},
    *({**ALL, "consumers": n, "BN": 32, "pingpong": p} for n, p in ((1, 0), (2, 1), (3, 0), (4, 1))),
    *({"consumers": 2, "BN": 64, "pingpong": n % 2, "rescale": n} for n in (1, 2)),
    *({"consumers": n, "BN": 64, "q_stages": q, "reuse": 1} for n, q in ((1, 1), (2, 2), (3, 1))),
    {**ALL, "consumers": 2, "BN": 64, "reuse": 1, "rescale": 2}, {"consumers": 2, "BN": 64, "reuse": 1, "persistent": 1},
    {**ALL, "consumers": 3, "BN": 64, "pingpong": 1, "rescale": 2}, {"consumers": 2, "BN": 64, "overlap": 0, "rescale": 1},
]  # fmt: skip


@pytest.mark.parametrize("schedule", BETWEEN, ids=str)
@pytest.mark.parametrize("name", ["mha", "mha_causal", "sliding_window", "mla_prefill"])
def test_no_way_from_tile_to_tile_changes_the_result(name: str, schedule: dict[str, int]) -> None:
    task, prog = program("reference", name)
    shapes = SHAPES if name == "mha_causal" else SHAPES[:2]
    gaps = emulated(task, prog, {"overlap": 1, **schedule}, shapes)
    assert max(gaps) < TOLERANCE["fp16"], gaps


@pytest.mark.parametrize(("dim", "dim_v"), [(64, 64), (64, 128), (128, 64), (96, 64)])
def test_a_result_of_another_width_than_the_query_rows_has_a_buffer(dim: int, dim_v: int) -> None:
    task, prog = program("reference", "mha")
    choice = {"consumers": 2, "BN": 64, "reuse": 1}
    source = lower_gluon(prog, task, choice=choice).files["attention.py"]
    w = shape(task, 130, 200, "fp16").with_(dim=dim, dim_v=dim_v)
    given, out = inputs(task, w), torch.full(task.outputs[0].shape(w), float("nan"), dtype=w.torch_dtype)
    Device().module(source).attention(**given, out=out, **task.scalars(w))
    expected = interpret(prog, task, w, given, {"BM": 128, "BN": 64}).outputs["out"]
    assert (out.double() - expected.double()).abs().max().item() < TOLERANCE["fp16"]


@pytest.mark.parametrize("name", ["mha_causal", "cross", "softcap"])
def test_a_softmax_that_is_spelled_out_works_as_well(name: str) -> None:
    task, prog = program("primitive", name)
    gaps = emulated(task, prog, {}, SHAPES[:2])
    assert max(gaps) < TOLERANCE["fp16"], gaps


@pytest.mark.parametrize("name", [n for n in LENIENT if n.split("/")[-1][:2] in ODD])
def test_programs_of_other_forms_work_too(name: str) -> None:
    task, prog = program_of(LENIENT[name])
    gaps = emulated(task, prog, {}, SHAPES[:2])
    assert max(gaps) < TOLERANCE["fp16"], gaps


def reordered(name: str, tile: str) -> tuple[Task, ir.Program]:
    """The task's reference program, but block i works on that tile of rows."""
    text = text_of("reference", name)
    grid = next(line for line in text.splitlines() if line.startswith("Grid"))
    before, after = text.split(grid)
    text = f"{before}{grid}\nLet t = {tile}" + re.sub(r"\bi\b", "t", after)
    return find(name), resolve(parse(text), find(name))


@pytest.mark.parametrize("tile", ["ceil(seq_q / BM) - 1 - i", "(i + 1) % ceil(seq_q / BM)"])
@pytest.mark.parametrize("name", ["mha", "mha_causal", "sliding_window"])
def test_blocks_may_take_tiles_of_rows_in_any_order(name: str, tile: str) -> None:
    """Which rows are past the end is told by where they are stored, not by the block's number."""
    task, prog = reordered(name, tile)
    gaps = emulated(task, prog, {"consumers": 2, "BN": 64}, ((129, 257), (257, 129), (333, 130)))
    assert max(gaps) < TOLERANCE["fp16"], gaps


@pytest.mark.parametrize(
    ("line", "loop"),
    [
        ("Copy O (BM, dim_v) in coordinate [L = i]", "    Copy O (BM, dim_v) in coordinate [L = i + n]"),
        ("Compute Divide O, l and get new O", "    Compute Divide O, l and get new O"),
    ],
)
def test_a_loop_may_store_or_load_nothing(line: str, loop: str) -> None:
    """Where rows are stored is not known before the loop that stores them; rounds without copies cannot go by."""
    text = text_of("reference", "mha")
    whole = next(found for found in text.splitlines() if found.startswith(line))
    inner = whole.replace(line, loop)
    task, prog = find("mha"), resolve(parse(text.replace(whole, f"for n = 0 : 1\n{inner}\nend")), find("mha"))
    gaps = emulated(task, prog, {"consumers": 2, "BN": 64}, ((129, 257), (257, 129)))
    assert max(gaps) < TOLERANCE["fp16"], gaps


@pytest.mark.parametrize("backend", ["gluon", "triton", "cuda"])
def test_a_program_that_begins_with_the_last_rows_has_the_kernel_of_one_that_ends_with_them(
    backend: str,
) -> None:
    """The order of tiles is the compilers': with the longest loops first, twice the other way around is the worst."""
    task, forwards = program("reference", "mha_causal")
    backwards = reordered("mha_causal", "ceil(seq_q / BM) - 1 - i")[1]
    sources = []
    for prog in (forwards, backwards):
        files = lower(prog, task, backend, find_target("h100")).files
        text = "\n".join(text for name, text in sorted(files.items()) if name.endswith((".py", ".cu")))
        sources.append([line for line in text.splitlines() if not line.strip().startswith(("#", "//"))])
    assert sources[0] == sources[1]


def test_any_number_of_blocks_works_off_the_tiles() -> None:
    task, prog = program("reference", "mha_causal")
    for processors, grid in itertools.product((1, 2, 7, 1000), (1, 2)):
        gaps = emulated(
            task, prog, {"consumers": 1, "BN": 64, "persistent": grid}, ((150, 100),), "fp16", processors
        )
        assert max(gaps) < TOLERANCE["fp16"]


def test_the_emulator_notices_a_kernel_that_would_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tl.gluon_emulator.PATIENCE", 0.3)
    task, prog = program("reference", "mha")
    source = lower_gluon(prog, task, choice={"consumers": 1, "BN": 64}).files["attention.py"]
    broken = source.replace("mbarrier.arrive(V_empty.index(V_place), count=1)", "pass")
    w = shape(task, 64, 512, "fp16")
    module = Device().module(broken)
    with pytest.raises(Deadlock):
        module.attention(
            **inputs(task, w), out=torch.empty(task.outputs[0].shape(w)).half(), **task.scalars(w)
        )


WAITED = r"( *%s = warpgroup_mma_wait\(0, deps=\[%s\]\)\n)"
EARLY = {  # choice, and what is done to the kernel's text
    "values before their product is waited for": (
        {}, WAITED % ("O, S_operand", "O_sum, S_operand") + r"( *mbarrier\.arrive\(V_empty.*\n)", r"\2\1"
    ),
    "values, by every thread": (
        {"arrivals": 1}, WAITED % ("O, S_operand", "O_sum, S_operand") + r"( *give_back\(V_empty.*\n)", r"\2\1"
    ),
    "keys of a carried product": (
        {"carry": 1}, WAITED % ("S", "S_next") + r"((?:.*\n){3}( *)mbarrier\.arrive\(K_empty.*\n)",
        r"\2\3S = warpgroup_mma_wait(0, deps=[S_next])\n",
    ),
    "an output that is still copied out": ({}, r"tma\.store_wait\(0\)  # the buffer", "pass  # the buffer"),
    "query rows, over an output that is still copied out": (
        {"reuse": 1}, r"tma\.store_wait\(0\)  # the place.*\n(( *)mbarrier\.arrive\(Q_empty.*\n.*\n)",
        r"pass\n\1\2warpgroup_mma_wait(0, deps=[O])\n\2tma.store_wait(0)\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EARLY)
def test_the_emulator_notices_a_place_that_is_written_too_early(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.tl.gluon_emulator.LAG", 0.002)
    task, prog = program("reference", "mha")
    choice, pattern, instead = EARLY[what]
    choice = {"consumers": 1, "BN": 64, "overlap": 1, **choice}
    source = lower_gluon(prog, task, choice=choice).files["attention.py"]
    w = shape(task, 64, 512, "fp16")
    given = inputs(task, w)
    expected = interpret(prog, task, w, given, {"BN": 64}).outputs["out"]

    def gap(text: str) -> float:
        out = torch.full(task.outputs[0].shape(w), float("nan"), dtype=w.torch_dtype)
        Device(1).module(text).attention(**given, out=out, **task.scalars(w))
        found = (out.double() - expected.double()).abs().max().item()
        return found if found == found else float("inf")

    assert gap(source) < TOLERANCE["fp16"]
    broken = re.sub(pattern, instead, source)
    assert broken != source
    assert gap(broken) > TOLERANCE["fp16"]


# --- the text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["reference", "primitive", "lenient"])
def test_every_program_of_the_corpus_becomes_a_kernel(style: str) -> None:
    for entry in corpus(style)[: None if style != "lenient" else 12]:
        task, prog = program_of(entry)
        lowered = lower(prog, task, "gluon")
        own = {"candidate.toml", "attention.py", "fallback.py"}
        assert set(lowered.files) == own | {"schedule.toml"}
        source = lowered.files["attention.py"]
        compile(source, "attention.py", "exec")
        assert lowered.files == lower(prog, task, "gluon").files
        said = " ".join(line.strip().lstrip("# ") for line in source.splitlines() if "# " in line)
        for line in ("from global to shared", "Compute GEMM", "from register to global", "for "):
            assert line.lower() in said.lower() or "15_" in entry.name, (entry.name, line)


def test_every_statement_of_a_program_stands_above_its_code() -> None:
    task, prog = program("reference", "sliding_window")
    source = lower_gluon(prog, task).files["attention.py"]
    text = " ".join(line.strip().lstrip("# ") for line in source.splitlines() if line.strip().startswith("#"))
    for statement in (
        "Copy Q (BM, dim) in coordinate [L = i] from global to shared",
        "Compute GEMM Q, K^T and get S", "Compute Multiply S, scale and get new S",
        "Compute Softmax S, m, l and rescale O", "Copy V (BN, dim_v) in coordinate [L = j] from global to shared",
        "Compute GEMM S, V and accumulate O", "Compute Divide O, l and get new O",
        "Copy O (BM, dim_v) in coordinate [L = i] from register to global",
    ):  # fmt: skip
        assert statement in text, statement


def test_keys_that_are_off_leave_no_trace() -> None:
    task, prog = program("reference", "mha_causal")
    source = lower_gluon(prog, task, choice={"consumers": 2, "BN": 64}).files["attention.py"]
    words = (
        "q_stages", "Q_STAGES", "AHEAD", "CARRY", "carry", "give_back", "import async_copy", "(112, 32)",
        "rescale=", "RESCALE", "RESCALING", "MOVING", "moved", "_parts", "reuse", "REUSE",
    )  # fmt: skip
    assert not [word for word in words if word in source]
    on = {"consumers": 4, "BN": 64, **ALL, "rescale": 2}
    table = [Row.of(2, dim, 0, {**on, "reuse": reuse}) for dim, reuse in ((64, 0), (128, 1))]
    every = lower_gluon(prog, task, table=table).files["attention.py"]
    assert all(word in every for word in words)


def helpers_of(rescale: int) -> Any:
    task, prog = program("reference", "mha_causal")
    choice = {"consumers": 2, "BN": 64, "overlap": 1, "rescale": rescale}
    return Device().module(lower_gluon(prog, task, choice=choice).files["attention.py"])


def test_a_maximum_moves_where_it_counts() -> None:
    """One that grows little by little stays behind by 5.5 at most; one that leaps is followed at once."""
    old = torch.tensor([0.0, 0.0, 0.0, -math.inf, -math.inf]).repeat(13)[:64, None].expand(64, 4).contiguous()
    found = torch.full((64, 4), -math.inf)
    best = torch.tensor([5.0, 6.0, -1.0, 3.0, -math.inf]).repeat(13)[:64]
    found[torch.arange(64), torch.arange(64) % 4] = best  # one of a row's threads has it
    now, factor = helpers_of(1).moved(found, old)
    wanted = torch.tensor([0.0, 6.0, 0.0, 3.0, -math.inf]).repeat(13)[:64]
    assert torch.equal(now, wanted[:, None].expand(64, 4))
    assert torch.allclose(
        factor, torch.tensor([1, math.exp(-6), 1, 0, 1]).repeat(13)[:64, None].expand(64, 4)
    )


def test_threads_ask_each_other_only_where_one_has_found_a_maximum_that_counts() -> None:
    """In a warp without, no thread's value reaches another; a warp has sixteen rows."""
    old, found = torch.zeros(64, 4), torch.zeros(64, 4)
    found[:, 0] = 5.0
    now, factor = helpers_of(1).moved(found, old)
    assert torch.equal(now, old) and torch.equal(factor, torch.ones(64, 4))
    found[3, 1] = 7.0
    now, factor = helpers_of(1).moved(found, old)
    assert now.nonzero()[:, 0].unique().tolist() == [3] and (now[3] == 7).all()
    assert torch.allclose(factor[3], torch.tensor(math.exp(-7)))


def test_what_threads_hold_by_themselves_is_the_row_s() -> None:
    of = helpers_of(1)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).as_subclass(Value)
    assert torch.equal(of.maxima(x).amax(1), x.amax(1)) and torch.allclose(
        of.sums(x).sum(1), x.sum(1), atol=1e-5
    )
    columns = torch.arange(64) % 8 // 2  # the thread that holds a column
    for thread in range(4):
        assert torch.equal(of.maxima(x)[:, thread], x[:, columns == thread].amax(1))
    less = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(of.powers(x, 0.5, less), torch.exp2(x * 0.5 - less[:, columns]))


@pytest.mark.parametrize("columns", [16, 32, 64, 128, 256])
def test_the_assembly_multiplies_every_row_of_a_warp_that_has_one_to_rescale(columns: int) -> None:
    """A warp holds sixteen rows, a thread two of them. Factors of 1 change no bit, whoever skips them."""
    rescaled = helpers_of(1).rescaled
    x = torch.randn(64, columns, generator=torch.Generator().manual_seed(columns)).as_subclass(Value)
    for rows in ([], [0], [8], [63], [5, 21, 40], list(range(64))):
        factor = torch.ones(64, 4)
        factor[rows] = 0.37
        assert torch.equal(rescaled(x, factor), x * factor[:, :1]), rows


def growing(task: Task, w: Workload, step: float) -> dict[str, torch.Tensor]:
    """Inputs of which each key's score is greater by `step` than the last one's."""
    given = inputs(task, w)
    given["q"] = torch.ones_like(given["q"]) / w.dim**0.5
    ramp = step * torch.arange(w.seq_k).view(1, -1, 1, 1) / (task.scalars(w)["scale"] * w.dim**0.5)
    given["k"] = (ramp - ramp.max()).expand_as(given["k"]).to(given["k"].dtype).contiguous()
    return given


@pytest.mark.parametrize("rescale", [0, 1, 2])
@pytest.mark.parametrize("step", [0.05, 0.4, 3.0, -0.05, -0.4, -3.0])
def test_rare_rescaling_gives_the_result_where_maxima_keep_growing(rescale: int, step: float) -> None:
    """By little, by less than what counts in a round, and by leaps; rounds run from the last to the first."""
    task, prog = program("reference", "mha")
    w = shape(task, 128, 512, "fp16")
    given = growing(task, w, step)
    lowered = lower_gluon(prog, task, choice={"consumers": 2, "BN": 64, "overlap": 1, "rescale": rescale})
    out = torch.full(task.outputs[0].shape(w), float("nan"), dtype=w.torch_dtype)
    module = Device().module(lowered.files["attention.py"])
    seen = moves(module)
    module.attention(**given, out=out, **task.scalars(w))
    wanted = expected(task, w, given, torch.float64)["out"]
    assert (out.double() - wanted.double()).abs().max() < TOLERANCE["fp16"]
    later = [share for share in seen if share is not None]
    if not rescale:
        assert not seen
    elif step > 0:  # the first round has found the greatest
        assert later and max(later) == 0
    elif step == -0.05:
        assert 0 < sum(later) < len(later)
    else:
        assert later and min(later) == 1


def moves(module: Any) -> list[float | None]:
    """Of each round that asks, the share of maxima that have moved; None for a first one, where all do."""
    seen: list[float | None] = []
    space = module.attention.__globals__
    asked = space.get("moved")

    def moved(part: Any, parts: Any) -> Any:
        found = asked(part, parts)
        before, now = torch.as_tensor(parts), torch.as_tensor(found[0])
        seen.append(None if torch.isinf(before).all() else float((now != before).float().mean()))
        return found

    if asked is not None:
        space["moved"] = moved
    return seen


def test_a_carried_product_is_issued_before_the_result_is_stored() -> None:
    task, prog = program("reference", "mla_prefill")
    source = lower_gluon(prog, task, choice={"consumers": 2, **ALL}).files["attention.py"]
    carrying = source.split("while more:")[1].split("\n    else:")[0]
    order = (
        "S = warpgroup_mma_wait(0, deps=[S_next])",
        "S_next = warpgroup_mma(",
        "O = O * down_rows(inverse",
        "tma_store(",
    )
    at = [carrying.index(line) for line in order]
    assert at == sorted(at)
    assert "[done_b, done_h, done_i * BM + group_row, 0]" in carrying


def changed(name: str, before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines of the kernel that go and that come when a line of the program changes; comments left out."""
    task = find(name)
    text = text_of("reference", name)
    assert before in text

    def lines(t: str) -> list[str]:
        source = lower_gluon(resolve(parse(t), task), task).files["attention.py"]
        code = source.split("_producer(")[0].split("\ndef tile_of(")[-1]
        return [line.strip() for line in code.splitlines() if not line.strip().startswith("#")]

    diff = list(difflib.ndiff(lines(text), lines(text.replace(before, after))))
    return [d[2:] for d in diff if d[0] == "-"], [d[2:] for d in diff if d[0] == "+"]


def test_another_scale_is_another_factor_and_nothing_else() -> None:
    gone, come = changed("mha", "Multiply S, scale", "Multiply S, scale * 2")
    assert come and all("factor" in line or "scale" in line for line in (*gone, *come)), (gone, come)


def test_another_mask_is_another_limit() -> None:
    gone, come = changed("mha_causal", "k <= q + seq_k - seq_q", "k < q + seq_k - seq_q")
    assert any("keep_until" in line for line in come)
    assert all(re.search(r"keep_until|j_|gl\.|\)|1,", line) for line in (*gone, *come))
    assert not any("warpgroup_mma" in line or "exp2" in line for line in (*gone, *come))


def test_a_statement_on_the_scores_comes_between_product_and_softmax() -> None:
    old = "Compute Softmax S"
    _gone, come = changed("mha", f"    {old}", f"    Compute Tanh S and get new S\n    {old}")
    assert any("tanh(" in line for line in come)


def test_a_window_has_masks_on_both_sides_and_a_causal_mask_on_one() -> None:
    window = lower_gluon(*reversed(program("reference", "sliding_window"))).files["attention.py"]  # type: ignore[arg-type]
    causal = lower_gluon(*reversed(program("reference", "mha_causal"))).files["attention.py"]  # type: ignore[arg-type]
    assert "keep_since" in window and "LAST_j" in window
    assert "keep_since" not in causal and "if LAST_j" not in causal
    assert "if LATER_j" in causal


def test_rounds_run_backwards_only_where_their_order_is_free() -> None:
    task = find("mha")
    text = text_of("primitive", "mha").replace(
        "Compute l = l * alpha + row_sum", "Compute l = l * 0.5 + row_sum"
    )
    source = lower_gluon(resolve(parse(text), task), task).files["attention.py"]
    assert "j_first + j_round" in source and "j_last - 1 - j_round" not in source


# --- choices and refusals ---------------------------------------------------------------------------


def test_defaults_are_what_was_fastest_and_all_have_room() -> None:
    task, prog = program("reference", "mha_causal")
    rows = {row.dim: dict(row.choice) for row in default_table(prog) if not row.seq}
    assert (rows[128]["BM"], rows[128]["BN"], rows[128]["consumers"], rows[128]["pingpong"]) == (
        128,
        128,
        2,
        0,
    )
    assert (rows[64]["BM"], rows[64]["BN"], rows[64]["consumers"], rows[64]["pingpong"]) == (192, 128, 3, 1)
    assert {dim: row["q_stages"] for dim, row in rows.items()} == {64: 2, 128: 2, 192: 1, 256: 1}
    assert {dim: (row["stages"], row["BN"], row["reuse"]) for dim, row in rows.items()} == {
        64: (2, 128, 0), 128: (2, 128, 0), 192: (2, 128, 1), 256: (2, 64, 1)
    }  # fmt: skip
    taken = {
        sizes: default_choice(prog, *sizes) for sizes in ((128, 2047), (100, 2048), (300, 4096), (20, 4096))
    }
    assert [taken[s]["consumers"] for s in taken] == [2, 3, 2, 3] and taken[300, 4096] == rows[256]
    (longer,) = (row for row in default_table(prog) if row.seq)
    assert (longer.dim, longer.seq) == (128, 2048)
    assert LONG.items() <= dict(longer.choice).items() and dict(longer.choice)["BN"] == 64
    assert shared_bytes(prog, dict(longer.choice), 128, 128) <= LIMIT
    for dim, row in rows.items():
        assert shared_bytes(prog, row, dim, 128 if dim == 192 else dim) <= LIMIT
    assert len(hopper_choices(prog, task, find_target("h100"), (128, 128))) > 4


def chosen(name: str, table: list[Row]) -> Any:
    task, prog = program("reference", name)
    return Device(132).module(lower_gluon(prog, task, table=table).files["attention.py"])._choose


def test_few_tiles_are_made_smaller_where_that_is_done_sooner() -> None:
    """132 processors. 512 queries of 32 heads: 96 tiles of 192 rows, or 128 of 128, a processor each."""
    small, large = ({"consumers": n, "BN": 64, "BM": 64 * n} for n in (2, 3))
    choose = chosen("mha", [Row.of(2, 128, 512, small), Row.of(2, 128, 2048, large)])
    rows = {
        (n, heads): 64 * choose(128, max(n, 8192), n, heads, 132).consumers
        for n, heads in (
            (512, 32),
            (512, 1),
            (8192, 32),
            (2048, 16),
            (64, 8),
            (384, 132),
            (385, 132),
            (4096, 1000),
        )
    }
    assert rows == {
        (512, 32): 128, (512, 1): 128, (8192, 32): 192, (2048, 16): 128, (64, 8): 128, (384, 132): 192,
        (385, 132): 128, (4096, 1000): 192,
    }  # fmt: skip
    assert choose(128, 512, 512, 1000, 132).consumers == 2, "never larger ones"
    assert choose(128, 8192, 0, 0, 1).consumers == 3, "where nothing is known of the tiles"


@pytest.mark.parametrize("name", ["mha", "mha_causal"])
def test_on_the_paper_s_grid_a_found_table_is_taken_as_it_was_found(name: str) -> None:
    found = json.loads((TUNED / f"tl_{name}_gluon_tuned" / "tuning.json").read_text())
    table = [Row.of(r["bytes"], r["dim"], r["seq"], dict(r["choice"])) for r in found["rows"]]
    choose = chosen(name, table)
    for row in table:
        heads = 2048 // row.dim
        taken = choose(row.dim, row.seq, row.seq, heads * 16384 // row.seq, 132)
        assert taken.consumers == dict(row.choice)["consumers"], (row.dim, row.seq)


def scheduled(tile: str, schedule: str) -> tuple[Task, ir.Program]:
    """`mha_causal` with another `Tile` and `Schedule` line."""
    task = find("mha_causal")
    text = re.sub(r"(?m)^Tile .*", f"Tile {tile}", text_of("reference", "mha_causal"))
    return task, resolve(parse(re.sub(r"(?m)^Schedule .*", f"Schedule {schedule}", text)), task)


def test_a_schedule_of_single_values_is_what_the_kernel_does() -> None:
    line = "consumers 3, stages 3, overlap off, persistent static, order linear, heads 8, registers 152"
    task, prog = scheduled("BM = 192, BN = 64", line)
    wanted = {
        "consumers": 3, "stages": 3, "overlap": 0, "persistent": 1, "longest_first": 0, "heads": 8,
        "registers": 152, "BM": 192, "BN": 64,
    }  # fmt: skip
    for row in (*default_table(prog), *hopper_choices(prog, task, find_target("h100"), (64, 64))):
        told = row if isinstance(row, dict) else dict(row.choice)
        assert told | wanted == told
    files = lower_gluon(prog, task).files
    assert "BM=192" in files["attention.py"] and "192" not in files["fallback.py"].partition("def ")[0]


def test_a_key_of_several_values_is_left_to_the_compiler() -> None:
    task, prog = scheduled("BM in {64, 128}, BN in {64, 128}", "overlap in {off, on}, stages in {2, 3}")
    assert {dict(row.choice)["overlap"] for row in default_table(prog)} == {1}
    assert {c["overlap"] for c in hopper_choices(prog, task, find_target("h100"), (64, 64))} == {0, 1}


def test_a_choice_is_completed_from_its_rows() -> None:
    _, prog = program("reference", "mha")
    assert complete(prog, {"BM": 192})["consumers"] == 3
    assert complete(prog, {"consumers": 1, "pingpong": 1})["pingpong"] == 0
    assert complete(prog, {"warps": 8, "BN": 64})["BN"] == 64
    between = {"consumers": 2, "carry": 1, "ahead": 1}
    assert [complete(prog, {**between, **more})[key] for key in ("carry", "ahead") for more in (
        {"overlap": 1}, {"overlap": 0}, {"overlap": 1, "persistent": 1}, {"overlap": 1, "persistent": 0}
    )] == [1, 0, 1, 0, 1, 1, 0, 0]  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"BM": 96}, "96 query rows"), ({"consumers": 2, "BM": 64}, "2 consumers compute 128 rows"),
        ({"consumers": 5}, "registers suffice"), ({"consumers": 2, "q_stages": 3}, "one place or two"), ({"consumers": 2, "BN": 96}, "powers of two"),
        ({"consumers": 2, "persistent": 3}, "kinds of grid"), ({"consumers": 2, "stages": 0}, "needs a place"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_refused(choice: dict[str, int], words: str) -> None:
    task, prog = program("reference", "mha")
    with pytest.raises(LowerError, match=words):
        lower_gluon(prog, task, choice=choice)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("Copy Q (BM, dim) in coordinate [L = i] from global to shared",
         "Copy Q (BM, dim) in coordinate [L = i] from global to register", "registers"),
        ("Copy K (BN, dim) in coordinate [L = j] from global to shared",
         "Copy K (BN, dim) in coordinate [L = j] from global to shared pad 1", "zeros only"),
    ],
)  # fmt: skip
def test_what_cannot_be_lowered_names_its_statement(before: str, after: str, words: str) -> None:
    task = find("mha")
    prog = resolve(parse(text_of("reference", "mha").replace(before, after)), task)
    with pytest.raises(LowerError, match=words) as error:
        lower_gluon(prog, task)
    assert error.value.statement


def test_a_grid_without_tiles_of_rows_is_refused() -> None:
    task, prog = program("reference", "mha")
    (kernel,) = prog.kernels
    grid = tuple(a for a in kernel.grid if a.role != "rows")
    with pytest.raises(LowerError, match="counts no tiles of query rows"):
        lower_gluon(replace(prog, kernels=(replace(kernel, grid=grid),)), task)


def test_only_hopper_is_a_target() -> None:
    task, prog = program("reference", "mha")
    with pytest.raises(LowerError, match="for Hopper"):
        lower(prog, task, "gluon", find_target("a100"))
    assert lower(prog, task, "gluon", find_target("h100")).backend == "gluon"


def test_no_number_of_a_shape_makes_another_kernel() -> None:
    """A number that Triton knew to be 1, or a multiple of 16, would be compiled again for the next shape."""
    for name in TASKS:
        task, prog = program("reference", name)
        source = lower_gluon(prog, task).files["attention.py"]
        told = re.search(r"do_not_specialize=\((.*?)\)\)", source, re.DOTALL)
        head = re.search(rf"def {prog.kernels[0].name}_kernel\((.*?)\):", source, re.DOTALL)
        assert told and head
        taken = [a.strip() for a in head[1].split(",") if a.strip() and ":" not in a]
        numbers = [a for a in taken if not re.search(r"_(src|dst)\d*$|^counter$", a)]
        assert numbers and re.findall(r'"(\w+)"', told[1]) == numbers


# --- machine code -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim"), [("mha_causal", 128), ("mha", 64), ("mla_prefill", 192), ("sliding_window", 128)]
)
def test_a_kernel_compiles_for_hopper_without_spills_in_its_loops(name: str, dim: int) -> None:
    task, prog = program("reference", name)
    w = shape(task, 4096, 4096, "fp16", heads=16).with_(dim=dim, dim_v=min(dim, 128))
    (kernel,) = compile_for_hopper(lower_gluon(prog, task), task, w)
    assert "wgmma.mma_async" in kernel.ptx and "cp.async.bulk.tensor" in kernel.ptx
    # A few whole numbers may wait in memory from one tile to the next.
    assert kernel.spill_bytes <= (32 if name in ("mla_prefill", "sliding_window") else 0)
    assert kernel.shared_bytes <= LIMIT
    found = kernel.opcodes()
    assert not found or (found["HGMMA"] and found["USETMAXREG"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim", "choice"),
    [("mha_causal", 64, {"consumers": 4, "BN": 64, "pingpong": 1}), ("mha", 128, {"consumers": 2, "BN": 128}),
     ("mha_causal", 64, {"consumers": 3, "BN": 128, "pingpong": 1})],
)  # fmt: skip
def test_a_carried_product_neither_spills_nor_makes_others_wait(
    name: str, dim: int, choice: dict[str, int]
) -> None:
    """ptxas waits for every single wgmma where it cannot follow one that is on its way."""
    task, prog = program("reference", name)
    w = shape(task, 512, 512, "fp16", heads=16).with_(dim=dim, dim_v=dim)
    plain, between = (
        compile_for_hopper(lower_gluon(prog, task, choice=c), task, w)[0]
        for c in (choice, {**ALL, "rescale": 2, **choice})
    )
    assert plain.spill_bytes == between.spill_bytes == 0
    assert "cp.async.mbarrier.arrive.noinc" in between.ptx
    found = between.opcodes()
    assert not found or found["WARPGROUP"] < found["HGMMA"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim", "choice"),
    [
        ("mha", 128, {"consumers": 2, "BN": 128}),
        ("mha_causal", 64, {"consumers": 3, "BN": 128, "pingpong": 1}),
    ],
)
def test_rare_rescaling_spills_nothing_and_asks_other_threads_in_rare_rounds_only(
    name: str, dim: int, choice: dict[str, int]
) -> None:
    """Every round, a row's four threads exchange their maxima and their sums: four shuffles each for two rows."""
    task, prog = program("reference", name)
    w = shape(task, 4096, 4096, "fp16", heads=16).with_(dim=dim, dim_v=dim)
    for rescale in RESCALES:
        lowered = lower_gluon(prog, task, choice={**choice, "overlap": 1, "rescale": rescale})
        (kernel,) = compile_for_hopper(lowered, task, w)
        found = kernel.instructions()
        assert kernel.spill_bytes == 0 and kernel.opcodes()["WARPGROUP"] <= kernel.opcodes()["HGMMA"]
        assert ("vote.sync.any.pred" in kernel.ptx) == (rescale > 0)
        if not found:
            pytest.skip("no disassembler")
        assert (_shuffles_of_a_round(found) >= 8) == (rescale == 0)


def _shuffles_of_a_round(instructions: list[str]) -> int:
    """The most beside a round's exponentials; those behind a vote, which most rounds pass by, included."""
    counts, since, powers = [0], 0, 0
    for op in instructions:
        if op.startswith("HGMMA"):
            counts += [since] if powers >= 32 else []
            since = powers = 0
        since += op.startswith("SHFL")
        powers += op == "MUFU.EX2"
    return max(counts)


def test_counters_stay_when_their_module_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that was captured before may be replayed later."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    task, prog = program("reference", "mha_causal")
    module = Device().module(lower_gluon(prog, task).files["attention.py"])
    slots = weakref.ref(module._Counters(torch.device("cpu")).slots)
    del module
    gc.collect()
    assert slots() is not None
