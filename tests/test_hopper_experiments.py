"""The two shipped experiments of the Hopper compiler mean what they say: cells in both types, programs, one session."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from baselines import BASELINES
from harness.build.manifest import Manifest, scan_candidates
from harness.experiment import make_plan, read_experiment
from harness.programs import program_candidates
from harness.store import Store
from harness.targets import find_target
from tasks import discover

TASKS = {
    "h100-hopper": ["mha", "mha_causal"],
    "h100-hopper-models": ["gqa_causal", "mqa_causal", "mla_prefill", "sliding_window", "softcap", "cross"],
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_program_beside_a_tuned_one_in_the_same_session(name: str, tmp_path: Path) -> None:
    experiment, known = read_experiment(name), discover()
    with Store(tmp_path / "run", resume=False) as store:
        programs, refused = program_candidates(experiment, known, store, name)
    assert not refused and [m.tasks for m in programs] == [(task,) for task in TASKS[name]]
    assert {m.backend for m in programs} == {"gluon"} and all(m.fits("h100") for m in programs)
    for m in programs:
        folder = tmp_path / "tuned" / f"{m.name}_tuned"
        folder.mkdir(parents=True)
        for file, content in m.files.items():
            (folder / file).write_bytes(content.replace(m.name.encode(), f"{m.name}_tuned".encode()))
    tuned = [m for m in scan_candidates(tmp_path / "tuned") if isinstance(m, Manifest)]
    both = [*tuned, *programs]
    assert len({m.name for m in both}) == len(both) == 2 * len(TASKS[name])
    plan = make_plan(experiment, known, both)
    assert not plan.unusable and len(plan.groups(experiment.group)) == 1


def test_the_paper_s_grid_is_there_in_both_types_and_every_human_can_run_it() -> None:
    plan = make_plan(read_experiment("h100-hopper"), discover(), [])
    cells = Counter(c.workload.dtype for c in plan.cells if c.workload.seq_q == c.workload.seq_k)
    assert cells == {"fp16": 24, "bf16": 24} and plan.baselines == ("cudnn", "flash-attn-4")
    for name in plan.baselines:
        assert not any(
            BASELINES[name].unsupported(c.task, c.workload, find_target("h100")) for c in plan.cells
        )


def test_every_cell_of_models_has_two_humans_at_least() -> None:
    plan = make_plan(read_experiment("h100-hopper-models"), discover(), [])
    assert plan.baselines == ("cudnn", "flash-attn-4", "sdpa-flash", "flex")
    for c in plan.cells:
        able = [
            n for n in plan.baselines if not BASELINES[n].unsupported(c.task, c.workload, find_target("h100"))
        ]
        assert len(able) >= 2, c.workload.key
