"""Claims that only a Hopper GPU can check: programs compiled to Gluon agree there with the language's interpreter.

For every core task and a set of schedules, all styles, odd shapes, tensors that descriptors cannot serve; on two
streams, in a CUDA graph, with shapes that change from call to call, and bit for bit the same each time.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.build.loader import load
from harness.tl import ir
from harness.tl.corpus_index import corpus
from harness.tl.interpret import interpret
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_choices import LIMIT, complete, shared_bytes
from tasks import Task, Workload, find
from tests.tl.test_cut import CONDITIONS, EARLY, behind, causal, late
from tests.tl.test_gluon import ALL, BETWEEN, growing
from tests.tl.triton_trial import TOLERANCE, inputs, program, program_of, shape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs a Hopper GPU",
    ),
]

TASKS = ("mha", "mha_causal", "gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross")
SHAPES = ((256, 256), (130, 333), (333, 130), (1, 65), (577, 577))
KEYS = ("consumers", "BN", "stages", "overlap", "pingpong", "persistent")
CHOICES = (
    None,
    (2, 128, 2, 1, 0, 2), (2, 64, 2, 1, 1, 2), (3, 128, 2, 1, 1, 2), (3, 64, 2, 1, 0, 1), (2, 64, 3, 0, 0, 0),
    (1, 64, 2, 1, 0, 2), (2, 32, 1, 1, 0, 1), (2, 64, 2, 1, 1, 0), (3, 16, 2, 0, 0, 2), (1, 128, 1, 0, 0, 1),
)  # fmt: skip


def built(prog: ir.Program, task: Task, choice: dict[str, int] | None, folder: Path) -> Any:
    lowered = lower_gluon(prog, task, choice=choice)
    where = lowered.write(folder / f"{lowered.name}_{abs(hash(lowered.files['attention.py']))}")
    return load(where, "attention.py", "gluon", torch.device("cuda")).function


def run(attention: Any, task: Task, w: Workload, given: dict[str, torch.Tensor]) -> torch.Tensor:
    out = torch.full(task.outputs[0].shape(w), float("nan"), dtype=w.torch_dtype, device="cuda")
    attention(**given, out=out, **task.scalars(w))
    return out


def on_gpu(task: Task, w: Workload, seed: int = 0) -> dict[str, torch.Tensor]:
    return {n: t.cuda() for n, t in inputs(task, w, seed).items()}


def expected(prog: ir.Program, task: Task, w: Workload, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return interpret(prog, task, w, {n: t.cpu() for n, t in given.items()}).outputs["out"]


def gap(out: torch.Tensor, wanted: torch.Tensor) -> float:
    found = (out.cpu().double() - wanted.double()).abs().max().item()
    return found if found == found else float("inf")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("values", CHOICES, ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_the_kernel_agrees_with_the_interpreter(
    name: str, values: tuple[int, ...] | None, dtype: str, folder: Path
) -> None:
    task, prog = program("reference", name)
    choice = dict(zip(KEYS, values, strict=True)) if values else None
    like = shape(task, 64, 64, dtype)
    if choice and shared_bytes(prog, complete(prog, choice), like.dim, like.dim_v) > LIMIT:
        pytest.skip("the tiles have no room")
    attention = built(prog, task, choice, folder)
    for seqs in SHAPES:
        w = shape(task, *seqs, dtype, batch=2)
        given = on_gpu(task, w)
        found = gap(run(attention, task, w, given), expected(prog, task, w, given))
        assert found < TOLERANCE[dtype], (seqs, found)


@pytest.mark.parametrize("schedule", BETWEEN, ids=str)
@pytest.mark.parametrize("name", ["mha", "mha_causal", "sliding_window", "mla_prefill"])
def test_no_way_from_tile_to_tile_changes_a_result_or_a_bit_of_its_repeats(
    name: str, schedule: dict[str, int], folder: Path
) -> None:
    task, prog = program("reference", name)
    like = shape(task, *SHAPES[0], "fp16")
    if shared_bytes(prog, complete(prog, {"overlap": 1, **schedule}), like.dim, like.dim_v) > LIMIT:
        pytest.skip("the tiles have no room")
    attention = built(prog, task, {"overlap": 1, **schedule}, folder)
    for seqs in (*SHAPES, (512, 512), (1024, 1024)):
        w = shape(task, *seqs, "fp16", batch=2)
        given = on_gpu(task, w)
        out = run(attention, task, w, given)
        assert gap(out, expected(prog, task, w, given)) < TOLERANCE["fp16"], seqs
        assert all(torch.equal(run(attention, task, w, given), out) for _ in range(20)), seqs


@pytest.mark.parametrize("rescale", [1, 2])
@pytest.mark.parametrize("dim", [64, 128])
def test_rare_rescaling_gives_the_result_where_maxima_keep_growing(
    dim: int, rescale: int, folder: Path
) -> None:
    """By little, by less than what counts in a round, and by leaps: warps rescale never, at times, always.

    Rounds run from the last to the first, so maxima grow where later keys score less.
    """
    task, prog = program("reference", "mha")
    choice = {"consumers": 3 if dim == 64 else 2, "BN": 128, "overlap": 1, "rescale": rescale}
    attention = built(prog, task, choice, folder)
    for step in (0.003, 0.05, 0.4, 3.0, -0.003, -0.05, -0.4, -3.0):
        w = shape(task, 500, 1000, "fp16").with_(dim=dim, dim_v=dim)
        given = growing(task, w, step)
        on_device = {n: t.cuda() for n, t in given.items()}
        found = gap(run(attention, task, w, on_device), expected(prog, task, w, on_device))
        assert found < TOLERANCE["fp16"], (step, found)


@pytest.mark.parametrize("style", ["primitive", "lenient"])
def test_every_style_agrees_with_the_interpreter(style: str, folder: Path) -> None:
    for entry in corpus(style):
        task, prog = program_of(entry)
        attention = built(prog, task, None, folder)
        for seqs in SHAPES[:3]:
            w = shape(task, *seqs, "fp16")
            given = on_gpu(task, w)
            found = gap(run(attention, task, w, given), expected(prog, task, w, given))
            assert found < TOLERANCE["fp16"], (entry.name, seqs, found)


@pytest.mark.parametrize(("dim", "dim_v"), [(128, 128), (64, 128), (96, 96), (256, 256), (40, 72), (21, 33)])
def test_any_head_dimension_works_some_by_the_fallback(dim: int, dim_v: int, folder: Path) -> None:
    task, prog = program("reference", "mha_causal")
    attention = built(prog, task, None, folder)
    for seqs in SHAPES[1:3]:
        w = shape(task, *seqs, "bf16").with_(dim=dim, dim_v=dim_v)
        given = on_gpu(task, w)
        found = gap(run(attention, task, w, given), expected(prog, task, w, given))
        assert found < TOLERANCE["bf16"], (seqs, found)


def test_strides_are_free(folder: Path) -> None:
    """Heads before the sequence in memory; and rows that descriptors cannot address."""
    task, prog = program("reference", "mha")
    attention = built(prog, task, None, folder)
    w = shape(task, 200, 300, "fp16", heads=4, batch=2)
    given = on_gpu(task, w)
    wanted = expected(prog, task, w, given)
    permuted = {n: t.transpose(1, 2).contiguous().transpose(1, 2) for n, t in given.items()}
    assert gap(run(attention, task, w, permuted), wanted) < TOLERANCE["fp16"]
    odd = {n: torch.nn.functional.pad(t, (0, 1))[..., :-1] for n, t in given.items()}
    assert gap(run(attention, task, w, odd), wanted) < TOLERANCE["fp16"]


@pytest.mark.parametrize("choice", [None, *BETWEEN[-4:]], ids=str)
@pytest.mark.parametrize("condition", [*EARLY, *CONDITIONS])
def test_a_loop_cut_where_a_branch_turns_agrees_with_the_interpreter(
    condition: str, choice: dict[str, int] | None, folder: Path
) -> None:
    task, prog = find("mha_causal"), causal(behind(condition))
    # A softmax goes from loop to loop, unless the loops are joined again.
    assert ("for_threads(" in lower_gluon(prog, task).files["attention.py"]) == (condition in EARLY)
    attention = built(prog, task, choice, folder)
    for dim, seqs in itertools.product((64, 128), (*SHAPES, (1024, 1024))):
        w = shape(task, *seqs, "fp16", batch=2).with_(dim=dim, dim_v=dim)
        given = on_gpu(task, w)
        out = run(attention, task, w, given)
        assert gap(out, expected(prog, task, w, given)) < TOLERANCE["fp16"], (dim, seqs)
        assert all(torch.equal(run(attention, task, w, given), out) for _ in range(10)), (dim, seqs)


@pytest.mark.parametrize("rescale", [0, 1, 2])
@pytest.mark.parametrize("dim", [64, 128])
def test_maxima_may_grow_from_loop_to_loop(dim: int, rescale: int, folder: Path) -> None:
    task, prog = find("mha"), late()
    choice = {"consumers": 2, "BN": 64, "overlap": 1, "rescale": rescale}
    attention = built(prog, task, choice, folder)
    for step in (-0.4, 0.003, 0.05, 0.4, 3.0):
        w = shape(task, 300, 700, "fp16").with_(dim=dim, dim_v=dim)
        given = {n: t.cuda() for n, t in growing(task, w, step).items()}
        found = gap(run(attention, task, w, given), expected(prog, task, w, given))
        assert found < TOLERANCE["fp16"], (step, found)


# --- tickets ----------------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize("kind", ["default", "reuse", "cut", "all ways"])


def kernel(kind: str, folder: Path) -> tuple[Task, Any]:
    """Causal attention by default; its result through the query rows' place; of loops cut at a branch; with all ways."""
    task, prog = program("reference", "mha_causal")
    if kind == "cut":
        prog = causal(behind(EARLY[0]))
    choice = {
        "reuse": {"consumers": 2, "BN": 64, "overlap": 1, "reuse": 1},
        "all ways": {**ALL, "consumers": 2, "BN": 64, "overlap": 1, "reuse": 1, "rescale": 2},
    }.get(kind)
    return task, built(prog, task, choice, folder)


def test_results_are_the_same_bit_for_bit(folder: Path) -> None:
    for name, heads in (("mha_causal", 16), ("mha", 16)):
        task, prog = program("reference", name)
        attention = built(prog, task, None, folder)
        w = shape(task, 1024, 1024, "fp16", heads=heads, batch=4)
        given = on_gpu(task, w)
        first = run(attention, task, w, given)
        assert all(torch.equal(run(attention, task, w, given), first) for _ in range(20))


@KINDS
def test_shapes_may_change_from_call_to_call(kind: str, folder: Path) -> None:
    task, attention = kernel(kind, folder)
    work = [
        shape(task, n, n, "fp16", heads=h, batch=b)
        for n, h, b in ((64, 1, 1), (700, 8, 2), (129, 4, 3), (2048, 16, 1))
    ]
    given = [on_gpu(task, w) for w in work]
    first = [run(attention, task, w, g) for w, g in zip(work, given, strict=True)]
    for _ in range(3):
        for w, g, wanted in zip(work, given, first, strict=True):
            assert torch.equal(run(attention, task, w, g), wanted)


@KINDS
def test_two_streams_do_not_disturb_each_other(kind: str, folder: Path) -> None:
    task, attention = kernel(kind, folder)
    works = [shape(task, n, n, "fp16", heads=16, batch=2) for n in (1024, 1536)]
    given = [on_gpu(task, w, seed) for seed, w in enumerate(works)]
    wanted = [run(attention, task, w, g) for w, g in zip(works, given, strict=True)]
    streams = [torch.cuda.Stream() for _ in works]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    found: list[list[torch.Tensor]] = [[], []]
    for _, (n, stream) in itertools.product(range(10), enumerate(streams)):
        with torch.cuda.stream(stream):
            found[n].append(run(attention, task, works[n], given[n]))
    torch.cuda.synchronize()
    assert all(torch.equal(out, wanted[n]) for n in (0, 1) for out in found[n])


@KINDS
def test_a_graph_can_be_captured_and_replayed_beside_other_work(kind: str, folder: Path) -> None:
    task, attention = kernel(kind, folder)
    w = shape(task, 1024, 1024, "fp16", heads=16, batch=2)
    given = on_gpu(task, w)
    wanted = run(attention, task, w, given)
    out = torch.empty_like(wanted)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(3):
            attention(**given, out=out, **task.scalars(w))
    for _ in range(5):
        out.fill_(float("nan"))
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            graph.replay()
        beside = run(attention, task, w, given)
        torch.cuda.synchronize()
        assert torch.equal(out, wanted) and torch.equal(beside, wanted)


def test_a_graph_may_be_replayed_when_its_module_is_gone(folder: Path) -> None:
    """Its counter must not be memory that somebody else has by then: all that is free is filled here."""
    task, attention = kernel("default", folder)
    w = shape(task, 1024, 1024, "fp16", heads=16, batch=2)
    given = on_gpu(task, w)
    wanted = run(attention, task, w, given)
    out, graph = torch.empty_like(wanted), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        attention(**given, out=out, **task.scalars(w))
    slots = weakref.ref(attention.__globals__["COUNTERS"][out.device].slots)
    kernels = [v for n, v in attention.__globals__.items() if n.endswith("_kernel")]  # Triton unloads them
    del attention
    gc.collect()
    assert slots() is not None and kernels
    filled = [torch.full((1 << 18,), 7, dtype=torch.int32, device="cuda") for _ in range(64)]
    for _ in range(5):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, wanted)
    assert all(bool((block == 7).all()) for block in filled)


@KINDS
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_do_not_disturb_each_other(kind: str, folder: Path) -> None:
    """Whichever is the current one, with launches in flight on both, and other shapes on each."""
    task, attention = kernel(kind, folder)
    works = [shape(task, n, n, "fp16", heads=16, batch=2) for n in (1024, 1536)]
    given = [{n: t.to(f"cuda:{d}") for n, t in on_gpu(task, w, d).items()} for d, w in enumerate(works)]
    alone = [
        run(attention, task, w, {n: t.to("cuda:0") for n, t in g.items()})
        for w, g in zip(works, given, strict=True)
    ]
    outs = [[torch.full_like(alone[d], float("nan"), device=f"cuda:{d}") for _ in range(10)] for d in (0, 1)]
    for n, current, d in itertools.product(range(5), (0, 1), (0, 1)):
        with torch.cuda.device(current):
            attention(**given[d], out=outs[d][2 * n + current], **task.scalars(works[d]))
    for d in (0, 1):
        torch.cuda.synchronize(d)
        assert all(torch.equal(out.to("cuda:0"), alone[d]) for out in outs[d]), d
