"""What every task of the suite keeps to, and the figures derived from it."""

import time

import pytest
import torch

from harness.verify.inputs import make_inputs
from tasks import discover, oracle
from tasks.spec import Task, TaskError, Workload

SUITE = discover()
CORE = (
    "mha",
    "mha_causal",
    "gqa_causal",
    "mqa_causal",
    "mla_prefill",
    "sliding_window",
    "softcap",
    "cross",
)
every_task = pytest.mark.parametrize("task", SUITE.values(), ids=SUITE)


def test_the_core_suite_is_there() -> None:
    assert set(CORE) <= set(SUITE)


@every_task
def test_sets_for_every_purpose(task: Task) -> None:
    assert {"smoke", "models", "hidden"} <= set(task.workloads)
    assert all(w.dtype == "fp32" for w in task.workload_set("smoke"))
    assert all(w.label or "paper" in task.workloads for w in task.workload_set("models"))
    assert any(w.seq_q != w.seq_k for w in task.workload_set("smoke"))


@every_task
def test_keys_are_unique_among_different_workloads(task: Task) -> None:
    by_key: dict[str, Workload] = {}
    for w in (w for group in task.workloads.values() for w in group):
        assert by_key.setdefault(w.key, w).with_(label="") == w.with_(label="")


@every_task
def test_visible_pairs_count_what_the_mask_allows(task: Task) -> None:
    for w in task.workload_set("smoke") + task.workload_set("hidden"):
        i, j = torch.arange(w.seq_q)[:, None], torch.arange(w.seq_k)[None, :]
        allowed = w.seq_q * w.seq_k if task.mask is None else int(task.mask(i, j, w).sum())
        assert task.visible_pairs(w) == allowed, w.key


@every_task
def test_smoke_shapes_take_less_than_a_second_on_a_cpu(task: Task) -> None:
    for w in task.workload_set("smoke"):
        inputs = make_inputs(task, w, "normal", 0, "cpu")
        best = min(_seconds(task, w, inputs) for _ in range(2))
        assert best < 1.0, w.key


def _seconds(task: Task, w: Workload, inputs: dict[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    oracle.plain(task, w, inputs)
    return time.perf_counter() - start


def test_flops_of_full_attention() -> None:
    w = Workload("mha", 8, 16, 16, 2048, 2048, 128, 128)
    assert SUITE["mha"].flops(w) == 4 * 8 * 16 * 2048 * 2048 * 128


def test_causal_flops_are_half_and_the_diagonal() -> None:
    w = Workload("mha_causal", 1, 1, 1, 1024, 1024, 64, 64)
    assert SUITE["mha_causal"].visible_pairs(w) == 1024 * 1025 // 2
    assert SUITE["mha_causal"].flops(w) == 4 * 64 * 1024 * 1025 // 2


def test_flops_of_unequal_head_dims_and_of_a_window() -> None:
    mla = Workload("mla_prefill", 1, 2, 2, 4, 4, 192, 128)
    assert SUITE["mla_prefill"].flops(mla) == 2 * 10 * 2 * (192 + 128)
    window = Workload("sliding_window", 1, 1, 1, 10, 10, 8, 8, parameters=(("window", 3),))
    assert SUITE["sliding_window"].visible_pairs(window) == 1 + 2 + 3 * 8


def test_bytes_count_each_tensor_once_and_shared_heads_once() -> None:
    w = Workload("gqa_causal", 2, 8, 2, 100, 300, 64, 64)
    q_and_out, k_and_v = 2 * 2 * 100 * 8 * 64, 2 * 2 * 300 * 2 * 64
    assert SUITE["gqa_causal"].bytes(w) == 2 * (q_and_out + k_and_v)
    assert SUITE["gqa_causal"].bytes(w.with_(dtype="fp32")) == 4 * (q_and_out + k_and_v)


def test_an_unknown_set_names_those_there_are() -> None:
    with pytest.raises(TaskError, match="it has: hidden, models, paper, smoke"):
        SUITE["mha"].workload_set("papers")
