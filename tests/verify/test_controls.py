"""A task is in the suite only if its wrong answers are refused and its right ones accepted."""

import pytest
from torch import Tensor
from torch.nn.attention import SDPBackend

from harness.verify.controls import CONTROLS
from harness.verify.inputs import make_inputs, recipes_for
from harness.verify.tolerance import expect
from tasks import discover, oracle
from tasks.grids import hidden_for
from tasks.spec import Task, Workload
from tests.verify.honest import sdpa, tiled

SUITE = discover()
NEVER_APPLY = {  # by task, where all else must apply
    "mha": {"no_mask", "wrong_mask_edge", "no_window", "no_score_mod"},
    "cross": {"no_mask", "wrong_mask_edge", "no_window", "no_score_mod"},
    "mha_causal": {"no_window", "no_score_mod"},
    "gqa_causal": {"no_window", "no_score_mod"},
    "mqa_causal": {"no_window", "no_score_mod", "wrong_head_map"},
    "mla_prefill": {"no_window", "no_score_mod"},
    "sliding_window": {"no_score_mod"},
    "softcap": {"no_window"},
}


def _shapes(task: Task, dtype: str) -> tuple[Workload, ...]:
    """Hidden shapes of the smallest configuration of the set `models`, the long one first."""
    smallest = min(task.workload_set("models"), key=lambda w: (w.group, w.dim))
    if smallest.group > 2:  # the size of the group changes nothing here but the time
        smallest = smallest.with_(heads=2 * smallest.kv_heads)
    shapes = hidden_for(task, smallest.with_(dtype=dtype))
    return tuple(sorted((w for w in shapes if w.seq_q < 1000), key=lambda w: -w.seq_k))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("task", SUITE.values(), ids=SUITE)
def test_controls_are_refused_and_sound_computations_accepted(
    task: Task, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    yardsticks: list[dict[str, Tensor]] = []  # what `expect` computes anyway; half of this test's time
    plain = oracle.plain

    def kept(task: Task, w: Workload, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        yardsticks.append(plain(task, w, inputs))
        return dict(yardsticks[-1])

    monkeypatch.setattr(oracle, "plain", kept)
    refused: set[str] = set()
    applied: set[str] = set()
    for w in _shapes(task, dtype):
        for recipe in recipes_for(task, w):
            inputs = make_inputs(task, w, recipe, 11, "cpu")
            expectation = expect(task, w, inputs)
            sound = {
                "plain": yardsticks.pop(),
                "tiled": tiled(task, w, inputs),
                "math": sdpa(task, w, inputs, SDPBackend.MATH),
                "flash": sdpa(task, w, inputs, SDPBackend.FLASH_ATTENTION),
            }
            for name, outputs in sound.items():
                if outputs is not None:
                    found = expectation.compare(outputs)
                    assert found.passed, f"{name} refused on {w.key} {recipe}: {found.note}"
            for name in CONTROLS.keys() - refused:
                outputs = CONTROLS[name](task, w, inputs)
                if outputs is not None:
                    applied.add(name)
                    if not expectation.compare(outputs).passed:
                        refused.add(name)
    assert CONTROLS.keys() - applied == NEVER_APPLY.get(task.name, CONTROLS.keys() - applied)
    assert not applied - refused, f"{task.name} {dtype} accepts {sorted(applied - refused)}"


@pytest.mark.parametrize("task", SUITE.values(), ids=SUITE)
def test_every_recipe_refuses_zeros_and_half_accumulation_is_refused_where_sums_swing(task: Task) -> None:
    w = next(w for w in _shapes(task, "fp16") if w.seq_k > 2000)
    for recipe in recipes_for(task, w):
        inputs = make_inputs(task, w, recipe, 5, "cpu")
        zeros = CONTROLS["zeros"](task, w, inputs)
        assert zeros is not None and not expect(task, w, inputs).compare(zeros).passed, recipe
    inputs = make_inputs(task, w, "constant_keys", 5, "cpu")
    expectation = expect(task, w, inputs)
    half = CONTROLS["half_accumulation"](task, w, inputs)
    assert half is not None
    found = expectation.compare(half)
    assert found.tile_error > 3 * found.tile_error_allowed, "refused, and not by a hair"


@pytest.mark.parametrize("task", SUITE.values(), ids=SUITE)
def test_fp32_tasks_refuse_half_accumulation_and_accept_any_order_of_summation(task: Task) -> None:
    w = task.workload_set("smoke")[1]
    for recipe in recipes_for(task, w):
        inputs = make_inputs(task, w, recipe, 5, "cpu")
        expectation = expect(task, w, inputs)
        for block in (8, 64):
            found = expectation.compare(tiled(task, w, inputs, block))
            assert found.passed, f"{recipe}: {found.note}"
        half = CONTROLS["half_accumulation"](task, w, inputs)
        assert half is None or not expectation.compare(half).passed, recipe
