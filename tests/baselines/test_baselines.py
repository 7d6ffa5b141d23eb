"""Claims about human baselines: what runs here is right, what does not says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tasks
from baselines import BASELINES, BaselineError, find_baseline
from baselines.base import Baseline, CannotRun
from baselines.features import Features, features, has_empty_rows
from baselines.flash_attn import FLASH_ATTN_2, FLASH_ATTN_4
from baselines.sdpa import CUDNN, SDPA_FLASH
from harness.targets import TARGETS, target_of_device
from tasks.oracle import expected, plain
from tasks.spec import Task, Workload

TASKS = tasks.discover()
CPU = TARGETS["cpu"]
# Flex compiles some ten seconds a shape on a CPU: a tasks' first shape is enough for it.
SMOKE = [(t, n, w) for t in TASKS.values() for n, w in enumerate(t.workloads["smoke"])]


def inputs_of(task: Task, workload: Workload, device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        spec.name: torch.randn(spec.shape(workload), generator=generator).to(device, workload.torch_dtype)
        for spec in task.inputs
    }


def assert_right(out: Tensor, task: Task, workload: Workload, inputs: dict[str, Tensor]) -> None:
    reference = expected(task, workload, inputs)["out"]
    allowed = 3 * (plain(task, workload, inputs)["out"] - reference).abs().max() + 1e-5
    assert out.shape == reference.shape
    assert not torch.isnan(out).any()
    assert (out - reference).abs().max() <= allowed


# FlexAttention compiles for 20 s a shape on a CPU: one shape of tasks whose masks and mods differ.
FLEX = ("mha_causal", "gqa_causal", "sliding_window", "softcap")


def cells() -> Iterator[tuple[Baseline, Task, Workload]]:
    for baseline in BASELINES.values():
        for task, number, workload in SMOKE:
            if baseline.name != "flex" or (number == 0 and task.name in FLEX):
                yield baseline, task, workload


@pytest.mark.parametrize(
    ("baseline", "task", "workload"), cells(), ids=lambda x: getattr(x, "name", getattr(x, "key", ""))
)
def test_what_claims_to_run_on_a_cpu_agrees_with_the_oracle(
    baseline: Baseline, task: Task, workload: Workload
) -> None:
    reason = baseline.unsupported(task, workload, CPU)
    if reason is not None:
        assert reason.strip()
        pytest.skip(reason)
    inputs = inputs_of(task, workload)
    call = baseline.plan(task, workload, inputs)
    assert_right(call(), task, workload, inputs)


@pytest.mark.parametrize("name", ["naive", "sdpa-math", "sdpa-flash"])
def test_queries_without_a_key_give_zero(name: str) -> None:
    task = TASKS["mha_causal"]
    workload = Workload("mha_causal", 1, 2, 2, 9, 5, 16, 16, "fp32")
    inputs = inputs_of(task, workload)
    out = find_baseline(name).plan(task, workload, inputs)()
    assert out[:, :4].abs().max() == 0
    assert_right(out, task, workload, inputs)


@pytest.mark.parametrize("name", ["naive", "sdpa-math", "sdpa-flash"])
def test_a_planned_call_reads_what_is_in_the_tensors_now(name: str) -> None:
    task = TASKS["gqa_causal"]
    workload = Workload("gqa_causal", 1, 4, 2, 33, 50, 16, 16, "fp32")
    inputs = inputs_of(task, workload)
    call = find_baseline(name).plan(task, workload, inputs)
    for tensor in inputs.values():
        tensor.mul_(-0.5)
    assert_right(call(), task, workload, inputs)


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_claims_are_given_for_every_cell(baseline: Baseline, target: object) -> None:
    for task in TASKS.values():
        for workload in {w for found in task.workloads.values() for w in found}:
            reason = baseline.unsupported(task, workload, target)  # type: ignore[arg-type]
            assert reason is None or reason.strip()


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_a_library_is_named_and_a_missing_one_says_how_to_get_it(baseline: Baseline) -> None:
    library = baseline.library()
    assert library.name
    assert library.version if library.usable else library.install


def test_the_table_is_keyed_by_name_and_an_unknown_name_lists_them() -> None:
    assert all(find_baseline(name).name == name for name in BASELINES)
    with pytest.raises(BaselineError, match="did you mean cudnn") as error:
        find_baseline("cuddnn")
    assert all(name in str(error.value) for name in BASELINES)


def test_flags_are_recognised_by_what_the_mods_do() -> None:
    def found(name: str) -> Features | None:
        return features(TASKS[name], TASKS[name].workloads["smoke"][0])

    assert found("mha") == Features()
    assert found("mha_causal") == Features(causal=True)
    assert found("sliding_window") == Features(causal=True, window=128)
    assert found("softcap") == Features(causal=True, softcap=50.0)


def test_a_mask_that_only_claims_to_be_a_window_gets_no_flag() -> None:
    task = TASKS["sliding_window"]
    workload = task.workloads["smoke"][0]
    off_by_one = replace(task, mask=lambda i, j, w: (i - j >= 0) & (i - j <= w.params["window"]))
    assert features(off_by_one, workload) is None
    assert FLASH_ATTN_2.unsupported(off_by_one, workload.with_(dtype="fp16"), TARGETS["h100"])
    with pytest.raises(CannotRun):
        FLASH_ATTN_4.plan(off_by_one, workload, inputs_of(off_by_one, workload))


def test_a_window_counts_the_query_itself() -> None:
    window = Features(causal=True, window=128)
    assert FLASH_ATTN_2.arguments(window) == {"causal": True, "window_size": (127, 0), "softcap": 0.0}
    assert FLASH_ATTN_4.arguments(Features()) == {
        "causal": False,
        "window_size": (None, None),
        "softcap": 0.0,
    }


def test_empty_rows_are_found_in_any_mask() -> None:
    task = TASKS["sliding_window"]
    assert not has_empty_rows(task, Workload(task.name, 1, 1, 1, 64, 64, 8, 8, parameters=(("window", 4),)))
    assert has_empty_rows(task, Workload(task.name, 1, 1, 1, 65, 64, 8, 8, parameters=(("window", 4),)))
    assert has_empty_rows(TASKS["mha_causal"], Workload("mha_causal", 1, 1, 1, 65, 64, 8, 8))
    assert not has_empty_rows(TASKS["mha"], Workload("mha", 1, 1, 1, 65, 64, 8, 8))


@pytest.mark.parametrize(
    ("target", "dim", "dim_v", "dtype", "runs"),
    [
        ("h100", 128, 128, "fp16", True),
        ("h100", 192, 128, "bf16", True),
        ("a100", 192, 128, "fp16", False),
        ("h100", 128, 128, "fp32", False),
        ("t4", 64, 64, "fp16", False),
        ("cpu", 64, 64, "fp16", False),
    ],
)
def test_cudnn_limits(target: str, dim: int, dim_v: int, dtype: str, runs: bool) -> None:
    workload = Workload("mha", 1, 2, 2, 64, 64, dim, dim_v, dtype)
    assert (CUDNN.unsupported(TASKS["mha"], workload, TARGETS[target]) is None) is runs


def test_flash_takes_no_window_on_a_gpu_and_two_dimensions_nowhere() -> None:
    window = TASKS["sliding_window"]
    workload = window.workloads["smoke"][0].with_(dtype="fp16")
    assert SDPA_FLASH.unsupported(window, workload, TARGETS["h100"])
    assert SDPA_FLASH.unsupported(window, workload, CPU) is None
    mla = Workload("mha", 1, 2, 2, 64, 64, 192, 128, "fp16")
    assert SDPA_FLASH.unsupported(TASKS["mha"], mla, TARGETS["h100"])


GPU_SHAPES = [(2, 64, 64), (1, 113, 203), (1, 203, 113), (1, 1024, 1024)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_claims_to_run_on_this_gpu_agrees_with_the_oracle(baseline: Baseline, task: Task) -> None:
    target = target_of_device(torch.cuda.get_device_name())
    library = baseline.library()
    if target is None or not library.usable:
        pytest.skip(library.missing or "this GPU is in no target's table")
    first = task.workloads["smoke"][0]
    ran = 0
    for batch, seq_q, seq_k in GPU_SHAPES[:2] if baseline.name == "flex" else GPU_SHAPES:
        workload = first.with_(batch=batch, seq_q=seq_q, seq_k=seq_k, dtype="fp16")
        if baseline.unsupported(task, workload, target):
            continue
        inputs = inputs_of(task, workload, "cuda")
        try:
            call = baseline.plan(task, workload, inputs)
        except CannotRun as refusal:
            print(f"{baseline.name} {workload.key}: {refusal}")
            continue
        assert_right(call(), task, workload, inputs)
        ran += 1
        if not baseline.slow:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = call()
            for tensor in inputs.values():
                tensor.mul_(-0.5)
            graph.replay()
            assert_right(out, task, workload, inputs)
    if not ran:
        pytest.skip("nothing of this task runs here")
