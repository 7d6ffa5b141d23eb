"""Programs become CuTe kernels: what they are made of, on which tensor cores, and that nothing spills.

By default a part of the architectures is compiled for each program; ATTNBENCH_EVERY_ARCHITECTURE=1 takes all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from harness.build.launches import Planned, planning
from harness.build.nvrtc import CompileError, compile_all
from harness.build.nvrtc import compiled as compile_one
from harness.build.products import Product
from harness.build.resources import facts, occupancy
from harness.targets import find_target
from harness.tl.corpus_index import corpus
from harness.tl.lower.backends import lower
from harness.tl.lower.cute import lower_cute
from harness.tl.lower.cute_choices import default_table, fitting, shared_bytes, space, unfit
from harness.tl.lower.lowered import LowerError
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from tasks import Task, find
from tests.tl.triton_trial import load, program, program_of

TASKS = ("mha", "mha_causal", "gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross")
TARGETS = {"sm_75": "t4", "sm_80": "a100", "sm_89": "l40s", "sm_90a": "h100"}
EVERY = os.environ.get("ATTNBENCH_EVERY_ARCHITECTURE") == "1"


def launches(task: Task, target: str, arch: str, folder: Path, dtype: str = "fp16") -> list[Planned]:
    """What the compiled reference program launches on the task's shapes for models, each kernel once."""
    _, prog = program("reference", task.name)
    module = load(lower_cute(prog, task, find_target(target)), folder)
    sets = [name for name in ("models", "paper", "smoke") if name in task.workloads]
    found: dict[str, Planned] = {}
    for w in task.workload_set(sets[0]):
        w = w.with_(dtype=dtype)
        tensors = {t.name: torch.empty(t.shape(w), dtype=w.torch_dtype, device="meta") for t in task.tensors}
        with planning(arch) as plans:
            module.attention(**tensors, **task.scalars(w))
        found |= {plan.recipes[0].names[0]: plan for plan in plans}
    return list(found.values())


def chosen() -> list[tuple[str, str]]:
    """(task, architecture): all of them, or two architectures for a task in turn and all for one task."""
    archs = list(TARGETS)
    pairs = [(task, arch) for task in TASKS for arch in archs]
    if EVERY:
        return pairs
    return [
        (task, arch) for n, task in enumerate(TASKS) for m, arch in enumerate(archs)
        if task == "mha_causal" or (n + m) % 4 == 0
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compiled(
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[tuple[str, str], list[tuple[Planned, Product]]]:
    folder = tmp_path_factory.mktemp("cute")
    plans = {
        (task, arch): launches(find(task), TARGETS[arch], arch, folder / arch) for task, arch in chosen()
    }
    if not EVERY:
        plans = {pair: found[:1] for pair, found in plans.items()}
    flat = [(pair, plan) for pair, found in plans.items() for plan in found]
    products = compile_all([plan.recipes[0] for _, plan in flat], folder / "cache")
    out: dict[tuple[str, str], list[tuple[Planned, Product]]] = {pair: [] for pair in plans}
    for (pair, plan), product in zip(flat, products, strict=True):
        assert not isinstance(product, CompileError), (pair, str(product)[:2000])
        out[pair].append((plan, product))
    return out


@pytest.mark.parametrize(("task", "arch"), chosen())
def test_a_program_compiles_for_tensor_cores_without_spills(
    compiled: Mapping[tuple[str, str], list[tuple[Planned, Product]]], task: str, arch: str
) -> None:
    assert compiled[task, arch]
    for plan, product in compiled[task, arch]:
        (kernel,) = facts(product)
        name = plan.recipes[0].names[0]
        shape = "m16n8k8" if arch == "sm_75" else "m16n8k16"
        assert [shape in core for core in kernel.tensor_core] == [True], (name, kernel.tensor_core)
        assert kernel.spill_bytes == 0, (name, kernel.spill_bytes)
        assert "ldmatrix" in kernel.copies
        assert any(c.startswith("cp.async.cg") for c in kernel.copies) is (arch != "sm_75")
        limit = find_target(TARGETS[arch]).smem_per_block
        assert limit is not None and plan.shared_bytes <= limit
        assert occupancy(arch, kernel.registers, plan.threads, plan.shared_bytes).blocks >= 1


@pytest.mark.parametrize("style", ["reference", "primitive", "lenient"])
def test_every_program_of_the_corpus_becomes_a_kernel(style: str) -> None:
    for entry in corpus(style):
        task, prog = program_of(entry)
        lowered = lower(prog, task, "cuda")
        own = {"candidate.toml", "attention.py", "kernel.cu", "tile.cuh"}
        assert set(lowered.files) == own | {"schedule.toml"}
        kernel = lowered.files["kernel.cu"]
        assert kernel.count("{") == kernel.count("}") and kernel.count("(") == kernel.count(")")
        assert max(map(len, kernel.splitlines())) <= 125
        compile(lowered.files["attention.py"], "attention.py", "exec")
        assert lowered.files == lower(prog, task, "cuda").files


def test_every_statement_of_a_program_stands_above_its_code() -> None:
    task, prog = program("reference", "gqa_causal")
    kernel = lower(prog, task, "cuda").files["kernel.cu"]
    text = " ".join(line.strip().removeprefix("//").strip() for line in kernel.splitlines() if "//" in line)
    for statement in (
        "Copy Q (BM, dim) in coordinate [L = i] from global to shared",
        "Compute GEMM Q, K^T and get S",
        "Compute Mask S where k <= q + seq_k - seq_q",
        "Compute Softmax S, m, l and rescale O",
        "Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)",
        "Compute GEMM S, V and accumulate O",
    ):
        assert statement in text, statement


def test_only_rounds_at_the_edge_look_at_the_mask() -> None:
    task, prog = program("reference", "mha_causal")
    kernel = lower(prog, task, "cuda").files["kernel.cu"]
    guarded = re.search(r"if \(masked\) \{(.*?)\n        \}", kernel, re.DOTALL)
    assert guarded is not None and "-kInfinity" in guarded[1]
    assert kernel.count("= -kInfinity") == 1


def test_a_window_has_rounds_with_a_mask_on_both_sides() -> None:
    task, prog = program("reference", "sliding_window")
    kernel = lower(prog, task, "cuda").files["kernel.cu"]
    assert "j >= j_whole && j < j_edge" in kernel


BASE = """Tile BM = 64, BN = 64
Grid b = batch, h = heads, i = ceil(seq_q / BM)
Allocate Q in global (seq_q, dim) with offset (b, h)
Allocate K in global (seq_k, dim) with offset (b, h)
Allocate V in global (seq_k, dim_v) with offset (b, h)
Allocate O in global (seq_q, dim_v) with offset (b, h)
Allocate S in register (BM, BN)
Allocate m in register (BM) init -inf
Allocate l in register (BM) init 0
Allocate O in register (BM, dim_v) init 0
Copy Q (BM, dim) in coordinate [L = i] from global to shared
for j = 0 : ceil(seq_k / BN)
    Copy K (BN, dim) in coordinate [L = j] from global to shared
    Compute GEMM Q, K^T and get S
    Compute Multiply S, scale and get new S
    Compute Softmax S, m, l and rescale O
    Copy V (BN, dim_v) in coordinate [L = j] from global to shared
    Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
    Compute GEMM S, V and accumulate O
end
Compute Divide O, l and get new O
Copy O (BM, dim_v) in coordinate [L = i] from register to global
"""


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("to shared\nfor j", "to shared pad 1\nfor j", "padded with zeros only"),
        (
            "Compute GEMM S, V and",
            "Copy V (BN, dim_v) from shared to register\n    Compute Multiply V, scale and get new V\n"
            "    Compute GEMM S, V and",
            "in registers, where no mma can take it whole",
        ),
        ("for j = 0 : ceil(seq_k / BN)", "for j = 0 : 1", "a tile as long as a sequence"),
    ],
)  # fmt: skip
def test_what_cannot_be_lowered_is_named(old: str, new: str, what: str) -> None:
    text = BASE.replace(old, new)
    if "as long as" in what:
        text = text.replace("BN", "seq_k").replace("Tile BM = 64, seq_k = 64", "Tile BM = 64")
    prog = resolve(parse(text), find("mha"))
    with pytest.raises(LowerError, match=what):
        lower_cute(prog, find("mha"))


def test_a_copy_to_registers_that_only_feeds_a_product_is_left_out() -> None:
    text = BASE.replace("Compute GEMM Q", "Copy K (BN, dim) from shared to register\n    Compute GEMM Q")
    kernels = [
        lower_cute(resolve(parse(t), find("mha")), find("mha")).files["kernel.cu"] for t in (BASE, text)
    ]
    assert kernels[0] == kernels[1]


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ({"BM": 24}, "multiples of 16"),
        ({"BM": 64, "warps": 8}, "cannot be shared by 8 warps"),
        ({"warps": 3}, "choose 1, 2, 4, 8 or 16"),
        ({"stages": 1}, "are the least"),
        ({"optimize": 0}, "levels 1 to 3"),
    ],
)
def test_choices_that_cute_cannot_have_are_refused_with_the_reason(
    choice: dict[str, int], problem: str
) -> None:
    task, prog = program("reference", "mha")
    full = {"BM": 64, "BN": 64, "warps": 4, "stages": 2, "optimize": 1} | choice
    assert problem in (unfit(prog, full) or "")
    with pytest.raises(LowerError, match=re.escape(problem)):
        lower_cute(prog, task, choice=full)


@pytest.mark.parametrize("target", TARGETS.values())
@pytest.mark.parametrize("name", TASKS)
def test_default_tiles_fit_the_target(name: str, target: str) -> None:
    _, prog = program("reference", name)
    limit = find_target(target).smem_per_block or 0
    for row in default_table(prog, find_target(target)):
        dim_v = 128 if row.dim == 192 else row.dim
        assert shared_bytes(prog, dict(row.choice), row.dim, dim_v) <= limit, row


def test_the_space_holds_only_what_can_be_lowered() -> None:
    _, prog = program("reference", "gqa_causal")
    every = list(space(prog))
    assert len({tuple(c.items()) for c in every}) == len(every) > 20
    assert all(unfit(prog, choice) is None for choice in every)
    assert {tuple(c.items()) for c in fitting(prog, find_target("t4"), 128, 128)} < {
        tuple(c.items()) for c in every
    }


def test_a_dtype_without_tensor_cores_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no tensor core of this code multiplies torch\.float32"):
        launches(find("mha"), "a100", "sm_80", tmp_path, "fp32")


def test_bf16_does_not_compile_where_no_tensor_core_multiplies_it(tmp_path: Path) -> None:
    (plan, *_) = launches(find("mha"), "t4", "sm_75", tmp_path, "bf16")
    with pytest.raises(CompileError, match="bf16 from sm_80 on"):
        compile_one(plan.recipes[0], tmp_path / "cache")


def test_a_loop_that_cannot_fetch_ahead_waits_before_it_overwrites() -> None:
    entry = next(e for e in corpus("lenient") if e.name.endswith("19_window_two_masks"))
    task, prog = program_of(entry)
    kernel = lower(prog, task, "cuda").files["kernel.cu"]
    loop = kernel[kernel.index("for (int j") :]
    for tile in ("K_shared", "V_shared"):
        before = loop[: loop.index(f"fetch<ALIGNED, THREADS>({tile}")]
        assert before.rstrip().endswith("__syncthreads();"), tile


def test_rows_that_are_not_aligned_take_the_slow_way(tmp_path: Path) -> None:
    task, prog = program("reference", "mha")
    module = load(lower_cute(prog, task), tmp_path)
    w = task.workload_set("smoke")[0].with_(dtype="fp16", dim=64, dim_v=64)
    for shift, aligned in ((0, "true"), (1, "false")):
        tensors = {
            t.name: torch.empty(*t.shape(w)[:-1], 64 + shift, dtype=torch.float16) for t in task.tensors
        }
        views = {name: t[..., :64] for name, t in tensors.items()}
        with planning("sm_80") as plans:
            module.attention(**views, **task.scalars(w))
        assert f", {aligned}, true, false>" in plans[0].recipes[0].names[0]


def test_a_negative_scale_is_not_folded_into_the_exponential(tmp_path: Path) -> None:
    task, prog = program("reference", "mha")
    module = load(lower_cute(prog, task), tmp_path)
    w = task.workload_set("smoke")[0].with_(dtype="fp16")
    tensors = {t.name: torch.empty(t.shape(w), dtype=torch.float16, device="meta") for t in task.tensors}
    with planning("sm_80") as plans:
        module.attention(**tensors, scale=-0.1)
    assert plans[0].recipes[0].names[0].endswith("true, false, false>")


@pytest.mark.parametrize("task", ["mha_causal", "sliding_window"])
@pytest.mark.parametrize("file", ["kernel.cu", "attention.py"])
def test_the_generated_source_is_the_golden_one(task: str, file: str) -> None:
    variant, prog = program("reference", task)
    written = lower_cute(prog, variant, find_target("a100")).files[file]
    golden = Path(__file__).parent / "golden" / f"{task}_cute_{file}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(written, encoding="utf-8")
    how = "if that is meant: UPDATE_GOLDEN=1 python -m pytest tests/tl/test_cute.py"
    assert written == golden.read_text(encoding="utf-8"), how
