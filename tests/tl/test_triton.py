"""Claims about the Triton compiler on the CPU: its kernels compute what the language's own interpreter says.

Triton interprets them, for every task, style and tile choice; a changed program gives an equally changed
kernel.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from harness.targets import find_target
from harness.tl.corpus_index import Entry, corpus
from harness.tl.interpret import interpret
from harness.tl.lower.choices import Row, candidates, default_table, shared_bytes
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.triton import lower_triton
from harness.tl.lower.triton_aot import architectures, compile_for
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from tasks import find
from tests.tl.triton_trial import TOLERANCE, Trial, inputs, load, program, run_all, shape, text_of

TASKS = ("mha", "mha_causal", "gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross")
TILES = tuple(itertools.product((64, 128), (32, 64, 128)))
Differences = dict[str, list[float] | str]  # by the trial's name; the error's text where it raised

EDITS = {
    "mask edge": ("k <= q + seq_k - seq_q\n", "k < q + seq_k - seq_q\n"),
    "no rescale": (" and rescale O", ""),
    "no divide": ("Compute Divide O, l and get new O\n", ""),
    "scale twice": ("Compute Multiply S, scale", "Compute Multiply S, scale * scale"),
    "one tile fewer": ("min(ceil(seq_k / BN), ", "min(ceil(seq_k / BN) - 1, "),
    "a block of rows short": ("((i + 1) * BM + seq_k", "(i * BM + seq_k"),
}
# One kernel through every element-wise function.
FUNCTIONS = (
    "exp(x * 0.1)", "exp2(x * 0.1)", "log(abs(x) + 1)", "log2(abs(x) + 1)", "sqrt(abs(x))",
    "rsqrt(abs(x) + 1)", "tanh(x)", "sigmoid(x)", "relu(x)", "reciprocal(x + 9)", "max(x, 0.5)",
    "min(x, 0.5)", "-x", "x ** 2", "where(x > 0.3, x, 0.1)", "x / 3", "x - 1",
    "where(0 < x and x < 1 or x < -1, 1, 2)", "where(not x > 0, 3, 4)", "abs(x) ** 0.5", "x / x", "fp16(x)",
    "floor(x)",
)  # fmt: skip
EVERYTHING = (
    "Kernel all\nTile BM = 64\nGrid b = batch, h = heads, i = ceil(seq_q / BM)\n"
    "Allocate Q in global (seq_q, dim) with offset (b, h)\n"
    "Allocate O in global (seq_q, dim_v) with offset (b, h)\n"
    "Allocate y in register (BM, dim) init 0\n"
    "Copy Q (BM, dim) in coordinate [L = i] from global to register\n"
    "Compute Assign Q and get x\n"
    + "".join(f"Compute y = y + {f}\n" for f in FUNCTIONS)
    + "Compute Assign y and get O\nCopy O (BM, dim_v) in coordinate [L = i] from register to global\n"
)


# Two launches: the first leaves scaled queries in a workspace, the second adds them to what it reads.
WORKSPACE = """Kernel first
Tile BM = 64
Grid b = batch, h = heads, i = ceil(seq_q / BM)
Allocate Q in global (seq_q, dim) with offset (b, h)
Allocate W in global (batch, heads, seq_q, dim) with offset (b, h) workspace
Copy Q (BM, dim) in coordinate [L = i] from global to register
Compute W = Q * 2
Copy W (BM, dim) in coordinate [L = i] from register to global
Kernel second
Grid b = batch, h = heads, i = ceil(seq_q / BM)
Allocate Q in global (seq_q, dim) with offset (b, h)
Allocate W in global (batch, heads, seq_q, dim) with offset (b, h) workspace
Allocate O in global (seq_q, dim_v) with offset (b, h)
Copy Q (BM, dim) in coordinate [L = i] from global to register
Copy W (BM, dim) in coordinate [L = i] from global to register
Compute O = Q + W
Copy O (BM, dim_v) in coordinate [L = i] from register to global
"""


def edited(edit: str) -> str:
    old, new = EDITS[edit]
    text = text_of("reference", "mha_causal")
    assert old in text
    return text.replace(old, new, 1)


def tile_trial(name: str, tiles: tuple[int, int]) -> Trial:
    """Both ways through the loop, both dtypes that Triton interprets rightly, tails and offsets both ways."""
    turn = TILES.index(tiles) + TASKS.index(name)
    choice = (("BM", tiles[0]), ("BN", tiles[1]), ("overlap", turn % 2))
    seq_q, seq_k = ((150, 150), (130, 200), (200, 130))[turn % 3]
    w = shape(find(name), seq_q, seq_k, ("fp32", "fp16")[turn // 2 % 2])
    return Trial(name, text_of("reference", name), (w,), choice)


def trials() -> dict[str, Trial]:
    small = (("BM", 64), ("BN", 32))
    out = {f"tiles {name} {tiles}": tile_trial(name, tiles) for name in TASKS for tiles in TILES}
    for name in TASKS:
        shapes = tuple(shape(find(name), *seqs, "fp32") for seqs in ((100, 70), (64, 128)))
        out[f"primitive {name}"] = Trial(name, text_of("primitive", name), shapes, small)
    for entry in corpus("lenient"):
        choice = small if "Tile BM" in entry.text and "BN" in entry.text else ()
        out[entry.name] = Trial(entry.task, entry.text, (shape(find(entry.task), 70, 90, "fp32"),), choice)
    causal = find("mha_causal")
    for edit in EDITS:
        w = shape(causal, 100, 128, "fp32")
        out[f"edit {edit}"] = Trial("mha_causal", edited(edit), (w,), (*small, ("overlap", 1)))
    shapes = tuple(replace(shape(causal, 70, 90, "fp32"), scale=scale) for scale in (-0.2, 0.0))
    out["scale"] = Trial("mha_causal", text_of("reference", "mha_causal"), shapes, small)
    out["workspace"] = Trial("mha", WORKSPACE, (shape(find("mha"), 70, 64, "fp32"),))
    out["functions"] = Trial("mha", EVERYTHING, (shape(find("mha"), 70, 64, "fp32"),))
    return out


@pytest.fixture(scope="module")
def differences() -> Differences:
    planned = trials()
    return dict(zip(planned, run_all(list(planned.values()), 2, interpreted=True), strict=True))


def agrees(found: list[float] | str, *tolerances: float) -> bool:
    return not isinstance(found, str) and all(x < t for x, t in zip(found, tolerances, strict=True))


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_every_tile_choice_agrees_with_the_interpreter(
    differences: Differences, name: str, tiles: tuple[int, int]
) -> None:
    found = differences[f"tiles {name} {tiles}"]
    assert agrees(found, TOLERANCE[tile_trial(name, tiles).workloads[0].dtype]), found


@pytest.mark.parametrize("name", TASKS)
def test_the_primitive_style_agrees_too(differences: Differences, name: str) -> None:
    found = differences[f"primitive {name}"]
    assert agrees(found, TOLERANCE["fp32"], TOLERANCE["fp32"]), found


@pytest.mark.parametrize("entry", corpus("lenient"), ids=lambda e: e.name)
def test_programs_as_models_write_them_lower_and_agree(differences: Differences, entry: Entry) -> None:
    assert agrees(differences[entry.name], TOLERANCE["fp32"]), differences[entry.name]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_mutant_gives_the_mutant_kernel(differences: Differences, edit: str) -> None:
    found = differences[f"edit {edit}"]
    assert agrees(found, 1e-4), found  # as the interpreter says of the mutant
    task, right = program("reference", "mha_causal")
    w = shape(task, 100, 128, "fp32")
    wrong = resolve(parse(edited(edit)), task)
    outputs = [
        interpret(p, task, w, inputs(task, w), {"BM": 64, "BN": 32}).outputs["out"] for p in (wrong, right)
    ]
    assert not (outputs[0] - outputs[1]).abs().max() < 1e-3  # and the mutant is one


def test_a_scale_that_cannot_be_folded_is_multiplied(differences: Differences) -> None:
    assert agrees(differences["scale"], TOLERANCE["fp32"], TOLERANCE["fp32"]), differences["scale"]


def test_every_function_of_the_language_has_triton_code(differences: Differences) -> None:
    assert agrees(differences["functions"], 2e-4), differences["functions"]


def test_the_source_is_the_same_each_time_and_names_every_statement() -> None:
    task, prog = program("reference", "gqa_causal")
    one, two = (lower_triton(prog, task, find_target("h100")).files["attention.py"] for _ in range(2))
    assert one == two
    compile(one, "attention.py", "exec")
    for statement in (
        "Compute GEMM Q, K^T and get S",
        "Compute Softmax S, m, l and rescale O",
        "Reshape S from",
    ):
        assert f"# {statement}" in one


def test_a_table_serves_each_call_its_row(tmp_path: Path) -> None:
    task, prog = program("reference", "mha")
    rows = [Row.of(2, 64, 0, {"BM": 64, "BN": 32, "warps": 4, "stages": 2, "overlap": 0}),
            Row.of(2, 64, 1024, {"BM": 128, "BN": 32, "warps": 8, "stages": 2, "overlap": 0}),
            Row.of(2, 128, 0, {"BM": 64, "BN": 64, "warps": 4, "stages": 3, "overlap": 0})]  # fmt: skip
    module = load(lower_triton(prog, task, table=rows), tmp_path)
    assert module._choose(2, 64, 512).BM == 64
    assert module._choose(2, 64, 4096).BM == 128
    assert module._choose(2, 96, 4096).BN == 64
    assert module._choose(2, 512, 1).stages == 3  # larger than any row: the largest
    assert module._choose(4, 64, 512).BM == 64  # no row for the size of element: any


@pytest.mark.parametrize("name", ["t4", "cpu"])
def test_targets_without_triton_tensor_cores_are_refused(name: str) -> None:
    task, prog = program("reference", "mha")
    with pytest.raises(LowerError, match="sm_80"):
        lower_triton(prog, task, find_target(name))


@pytest.mark.parametrize("tiles", [{"BM": 96}, {"BN": 8}])
def test_tiles_that_triton_cannot_have_are_refused(tiles: dict[str, int]) -> None:
    task, prog = program("reference", "mha")
    with pytest.raises(LowerError, match="powers of two"):
        lower_triton(prog, task, choice=tiles)


def test_what_cannot_be_lowered_names_its_statement() -> None:
    text = next(e.text for e in corpus("reference") if e.task == "mha")
    whole = text.replace("Copy K (BN, dim) in coordinate [L = j]", "Copy K (seq_k, dim)").replace(
        "    Copy V (BN, dim_v) in coordinate [L = j]", "    Copy V (seq_k, dim_v)"
    ).replace("Allocate S in register (BM, BN)", "Allocate S in register (BM, seq_k)")  # fmt: skip
    task = find("mha")
    with pytest.raises(LowerError, match="as long as a sequence"):
        lower_triton(resolve(parse(whole), task), task)


def test_default_tables_fit_the_target() -> None:
    for name in ("a100", "l40s", "h100"):
        target = find_target(name)
        for task_name in TASKS:
            _, prog = program("reference", task_name)
            for row in default_table(prog, target):
                need = shared_bytes(prog, dict(row.choice), row.dim, row.dim, row.bytes)
                smallest = min(shared_bytes(prog, c, row.dim, row.dim, row.bytes) for c in candidates(prog))
                assert need <= (target.smem_per_block or 0) or need == smallest


def test_kernels_hand_over_through_a_workspace(differences):
    assert agrees(differences["workspace"], 1e-6), differences["workspace"]


def test_a_workspace_is_read_through_pointers_where_tensors_have_descriptors():
    task = find("mha")
    w = shape(task, 128, 128, "fp16").with_(dim=64, dim_v=64)
    lowered = lower_triton(resolve(parse(WORKSPACE), task), task, find_target("h100"))
    found = compile_for(lowered, task, w, {"sm_90": (9, 0)})
    assert [c.kernel for c in found] == ["first_kernel", "second_kernel"]


@pytest.mark.slow
def test_ahead_of_time_compilation_uses_the_tensor_cores_of_each_architecture() -> None:
    task, prog = program("reference", "gqa_causal")
    target = find_target("a100")
    w = shape(task, 256, 256, "fp16").with_(dim=64, dim_v=64)
    found = compile_for(lower_triton(prog, task, target), task, w, architectures(target))
    by_arch = {c.arch: c for c in found}
    assert sorted(by_arch) == ["sm_80", "sm_89", "sm_90"]
    assert by_arch["sm_90"].tensor_core == "wgmma.mma_async"
    assert by_arch["sm_80"].tensor_core.startswith("mma.sync")
    for c in found:
        assert 32 < c.registers <= 255 and c.shared_bytes <= 99 * 1024 and c.spill_bytes == 0, c
