"""What a call would launch is known before anything is compiled; what comes out wrong is told from rounding."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from harness import tuning, tuning_clock
from harness.targets import find_target
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from harness.tuning_compile import lighter
from harness.tuning_search import hopper_choices
from tasks import find

TASK = find("mha_causal")
ON_DEVICE = {  # what a candidate asks its device
    "_capability": lambda _: (9, 0),
    "_processors": lambda _: 132,
    "_counter": lambda _: torch.zeros(1),
}


@pytest.mark.parametrize(("dim", "choices", "kernels"), [(128, 396, 132), (64, 744, 248)])
def test_the_paper_s_lengths_and_groups_of_heads_share_kernels(
    dim: int, choices: int, kernels: int, tmp_path: Path
) -> None:
    """Numbers that are 1 or multiples of 16 would make many more of them; both types of 16 bits, twice as many."""
    pytest.importorskip("triton.experimental.gluon")
    program = check(next(e.text for e in corpus("reference") if e.task == TASK.name), TASK).program
    assert program is not None
    space = hopper_choices(program, TASK, find_target("h100"), (dim, dim))
    folder = str(tuning.searchable(program, TASK, {(dim, dim): space}, "gluon").write(tmp_path))
    vars(tuning_clock._module(folder)).update(ON_DEVICE)
    found: dict[str, set[str]] = {"fp16": set(), "bf16": set()}
    for w in TASK.workloads["paper"]:
        if w.dim == dim and w.batch * w.seq_q == 16384:
            tensors = {t.name: torch.empty(t.shape(w), dtype=w.torch_dtype) for t in TASK.tensors}
            found[w.dtype] |= {tuning_clock.kernels_of(folder, TASK, w, tensors, c) for c in space}
    assert len(space) == choices and {len(seen) for seen in found.values()} == {kernels}
    assert not found["fp16"] & found["bf16"]
    odd = {n: t[..., 1:] for n, t in tensors.items()}  # addresses that descriptors cannot have
    assert "plain" in tuning_clock.kernels_of(folder, TASK, w, odd, space[0])
    assert "Recorder" not in repr(vars(tuning_clock._module(folder))["mha_causal_kernel"])


@pytest.mark.parametrize("name", ["mha", "gqa_causal", "mqa_causal", "mla_prefill", "cross"])
def test_a_trial_with_fewer_heads_launches_the_same_kernel(name: str, tmp_path: Path) -> None:
    """Fourteen processes draw it in float32 and compute what must come out: 0.1 GB a tensor, 0.2 at most."""
    pytest.importorskip("triton.experimental.gluon")
    task = find(name)
    program = check(next(e.text for e in corpus("reference") if e.task == name), task).program
    assert program is not None
    for w in [w for kind in ("paper", "models") for w in task.workloads.get(kind, ()) if w.dtype == "fp16"]:
        space = hopper_choices(program, task, find_target("h100"), (w.dim, w.dim_v))[::40]
        folder = str(
            tuning.searchable(program, task, {(w.dim, w.dim_v): space}, "gluon").write(tmp_path / w.key)
        )
        vars(tuning_clock._module(folder)).update(ON_DEVICE)
        light = lighter(w)
        assert light.heads <= max(8, w.group) and light.group == w.group
        assert light.batch * light.seq_q * light.heads * light.dim * 4 <= 0.21e9
        whole, few = (
            {t.name: torch.empty(t.shape(x), dtype=x.torch_dtype) for t in task.tensors} for x in (w, light)
        )
        for c in space:
            wanted = tuning_clock.kernels_of(folder, task, w, whole, c)
            assert tuning_clock.kernels_of(folder, task, light, few, c) == wanted


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [(lambda out: out, ""), (lambda out: out * 1.004, ""), (lambda out: out * 1.1, "off by"),
     (lambda out: out.clone().index_fill_(1, torch.tensor(3), math.nan), "off by nan")],
)  # fmt: skip
def test_a_wrong_result_is_told_from_rounding(spoiled, said, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    tuning_clock._EXPECTED.clear()
    w = TASK.workload_set("smoke")[0].with_(dtype="fp16")
    tensors = {t.name: torch.randn(t.shape(w)).half() for t in TASK.tensors}
    right = tuning_clock.expected(TASK, w, tensors)["out"].half()
    found = tuning_clock.wrong(lambda: tensors["out"].copy_(spoiled(right)), TASK, w, tensors)
    assert (said in found) if said else found == ""
    assert "off by nan" in tuning_clock.wrong(lambda: None, TASK, w, tensors)  # nothing was written


def test_a_candidate_is_asked_for_nothing_that_it_has_no_code_for(tmp_path: Path) -> None:
    program = check(next(e.text for e in corpus("reference") if e.task == TASK.name), TASK).program
    assert program is not None
    space = hopper_choices(program, TASK, find_target("h100"), (128, 128))[:2]
    module = tuning_clock._module(
        str(tuning.searchable(program, TASK, {(128, 128): space}, "gluon").write(tmp_path))
    )
    own = tuning_clock._own(module, {**space[0], "carry": 0})
    assert {key: getattr(own, key) for key in own._fields} == {key: space[0][key] for key in own._fields}
    with pytest.raises(ValueError, match="no code for carry"):
        tuning_clock._own(module, {**space[0], "carry": 1})
