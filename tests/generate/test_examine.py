"""Claims about examining a program: right ones pass, wrong ones are told where, nothing hangs."""

from __future__ import annotations

import time

import pytest

from harness.generate import examine as module
from harness.generate.examine import disagreement, examine, rounded, shapes
from harness.targets import TARGETS
from harness.tl import ir
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from harness.tl.parse import parse_leniently
from harness.tl.resolve import resolve_leniently
from tasks import find
from tasks.spec import Task

H100 = TARGETS["h100"]
TEXTS = {e.task: e.text for e in corpus("reference")}
GPU = ("mha_causal", "gqa_causal", "sliding_window", "mla_prefill")


def resolved(text: str, task: Task) -> ir.Program:
    """What the text says, whatever the checker thinks of it."""
    tree, unread = parse_leniently(text)
    program = resolve_leniently(tree, task).program
    assert program is not None and not unread
    return program


@pytest.mark.parametrize("task", GPU)
def test_reference_programs_pass_on_the_shapes_of_models(task: str) -> None:
    t = find(task)
    found = examine(TEXTS[task], t, H100, t.workloads["models"], "code", 1)
    assert found.passed and not found.told, found.told
    assert found.program is not None


def test_a_finding_is_told_with_its_line_and_a_fix() -> None:
    text = TEXTS["mha_causal"].replace(" and rescale O", "")
    t = find("mha_causal")
    found = examine(text, t, H100, t.workloads["models"], "code", 1)
    assert not found.passed
    assert "TL501" in found.told and "fix:" in found.told and "line " in found.told


def test_a_disagreement_is_told_with_shape_place_and_size() -> None:
    # the checker is left out: what it would find, the interpreter finds too
    t = find("mha_causal")
    program = check(TEXTS["mha_causal"], t).program
    assert program is not None
    other = find("mha")
    told = disagreement(program, other, other.workloads["paper"][:1], 1)
    assert "differs from the task's on batch" in told and "worst at batch" in told


def test_the_same_is_told_each_time() -> None:
    t, other = find("mha_causal"), find("mha")
    program = check(TEXTS["mha_causal"], t).program
    assert program is not None
    first, second = (disagreement(program, other, other.workloads["paper"][:1], 7) for _ in range(2))
    assert first == second


def test_a_sketch_needs_no_sizes_and_is_not_run() -> None:
    sketch = next(e for e in corpus("sketch") if e.name == "sketch/02_causal").text
    t = find("mha_causal")
    assert examine(sketch, t, H100, t.workloads["models"], "sketch", 1).passed


def test_a_loop_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT_S", 0.5)
    t = find("mha")
    text = TEXTS["mha"].replace(": ceil(seq_k / BN)", ": ceil(seq_k / BN) + 100000000")
    begun = time.monotonic()
    told = disagreement(resolved(text, t), t, t.workloads["smoke"], 1)
    assert "takes too long" in told and time.monotonic() - begun < 20


def test_a_tile_no_block_has_room_for_is_not_run() -> None:
    t = find("mha")
    text = TEXTS["mha"].replace("Tile BM in {64, 128}, BN in {32, 64, 128}", "Tile BM = 65536, BN = 4096")
    assert "65536" in text
    told = disagreement(resolved(text, t), t, t.workloads["smoke"], 1)
    assert "more than any block has room for" in told


def test_every_task_has_a_shape_small_enough_to_interpret() -> None:
    for name in TEXTS:
        t = find(name)
        for w in shapes(t.workloads.get("models", t.workloads["smoke"])):
            assert w.batch * w.heads * w.seq_q * w.seq_k <= module.MOST_SCORES * 2, (name, w.key)


def test_last_digits_are_not_told_and_counts_are() -> None:
    told = rounded(
        "an element is off by 0.123456 where 0.00321 is allowed; 17 rows at query 1234, got 1.5e-07"
    )
    assert told == "an element is off by 0.12 where 0.0032 is allowed; 17 rows at query 1234, got 1.5e-07"
