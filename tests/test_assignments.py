"""Claims about which trials an experiment means, and about what it says it does not run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.assignments import commissions
from harness.experiment import ExperimentError, experiment_of, read_experiment
from harness.programs import program_candidates
from harness.store import Store
from harness.targets import TARGETS
from tasks import discover

KNOWN = discover()
GPUS = [t for t in TARGETS if TARGETS[t].is_gpu]


def given(**changes: object):  # type: ignore[no-untyped-def]
    base = {
        "target": "h100",
        "tasks": ["mha_causal", "gqa_causal"],
        "methods": ["vanilla", "tl"],
        "models": ["deferred:m"],
    }
    return experiment_of({**base, **changes}, "test")


def test_every_method_model_task_and_sample_is_one_trial() -> None:
    found = commissions(given(models=["deferred:a", "deferred:b"], samples=3), KNOWN).trials
    assert len(found) == len({c.id for c in found}) == 2 * 2 * 2 * 3
    assert [c.assignment.sample for c in found] == sorted(c.assignment.sample for c in found)


def test_only_limits_a_method_to_tasks() -> None:
    found = commissions(given(only={"tl": ["gqa_causal"]}), KNOWN).trials
    assert [c.assignment.task for c in found if c.method.name == "tl"] == ["gqa_causal"]


@pytest.mark.parametrize(
    ("overrides", "methods", "only"),
    [
        ({"tasks": ["mha_causal"]}, ("vanilla", "tl"), {}),
        ({"tasks": ["gqa_causal"]}, ("vanilla", "tl", "tl-one-stage"), {"tl-one-stage": ("gqa_causal",)}),
        ({"methods": ["tl"]}, ("tl",), {}),
        ({"tasks": ["mha_causal"], "methods": ["tl-one-stage"]}, ("tl-one-stage",), {"tl-one-stage": ()}),
        ({"samples": 2}, ("vanilla", "tl", "tl-one-stage"), {"tl-one-stage": ("gqa_causal", "cross")}),
    ],
)
def test_a_run_of_a_part_leaves_out_methods_that_are_for_the_rest(tmp_path, overrides, methods, only) -> None:
    file = tmp_path / "e.toml"
    file.write_text(
        'target = "cpu"\ntasks = ["mha_causal", "gqa_causal", "cross"]\nmodels = "deferred:m"\n'
        'methods = ["vanilla", "tl", "tl-one-stage"]\nonly = { tl-one-stage = ["gqa_causal", "cross"] }\n'
    )
    narrowed = read_experiment(str(file), overrides)
    assert (narrowed.methods, narrowed.only) == (methods, only)
    file.write_text(file.read_text().replace('gqa_causal", "cross"] }', 'mla"] }'))
    with pytest.raises(ExperimentError, match="mla is not among the tasks"):
        read_experiment(str(file), {"tasks": ["mha_causal"]})


@pytest.mark.parametrize(
    ("line", "with_line", "says"),
    [
        ("tasks = 5", "only = { tl = ['mha'] }", "tasks"),
        ("tasks = ['mha']", "only = { tl = 5 }", "only.tl"),
        ("tasks = ['mha']", "only = { tl = 'mha' }", "only.tl"),
        ("tasks = ['mha']", "only = 5", "only"),
    ],
)
def test_a_part_of_what_is_not_sound_is_refused_by_name(tmp_path, line, with_line, says) -> None:
    file = tmp_path / "e.toml"
    file.write_text(f'target = "cpu"\n{line}\n{with_line}\nmethods = "tl"\nmodels = "deferred:m"\n')
    with pytest.raises(ExperimentError, match=says):
        read_experiment(str(file), {"methods": ["tl"]} if "5" in line else {"tasks": ["mha"]})


def test_one_name_instead_of_a_list_is_narrowed_too(tmp_path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(
        'target = "cpu"\ntasks = ["mha", "cross"]\nmethods = "tl"\nonly = { tl = ["cross", "mha"] }\n'
        'models = "deferred:m"\n'
    )
    narrowed = read_experiment(str(file), {"tasks": ["mha"]})
    assert (narrowed.methods, narrowed.only) == (("tl",), {"tl": ("mha",)})


def test_a_translator_counts_only_where_something_is_translated() -> None:
    found = commissions(
        given(methods=["vanilla", "tl", "tl-compiled"], models=["deferred:a -> deferred:b"]), KNOWN
    )
    models = {c.method.name: c.assignment.models for c in found.trials}
    assert models == {
        "vanilla": ("deferred:a",), "tl": ("deferred:a", "deferred:b"), "tl-compiled": ("deferred:a",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["vanila"]}, "did you mean vanilla"),
        ({"backends": ["tritn"]}, "did you mean triton"),
        ({"only": {"tl-compiled": ["gqa_causal"]}}, "not among the methods"),
        ({"only": {"tl": ["cross"]}}, "not among the tasks"),
        ({"models": ["m"]}, "provider:model"),
        ({"budget": {"turn": 3}}, "did you mean turns"),
        ({"samples": 0}, "samples"),
    ],
)
def test_a_wrong_key_is_named_with_the_way_out(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ExperimentError, match=says):
        given(**changes)


def test_a_backend_that_is_not_timed_there_is_refused() -> None:
    with pytest.raises(ExperimentError, match="numba is not timed on h100"):
        commissions(given(backends=["numba"]), KNOWN)


@pytest.mark.parametrize("target", GPUS)
def test_a_gpus_experiment_without_a_model_runs_the_rest_and_says_what_would_run_it(
    target: str, tmp_path: Path
) -> None:
    experiment = read_experiment(target, {"models": []})
    found = commissions(experiment, KNOWN)
    assert not found.trials and len(found.not_run) == 1
    with Store(tmp_path / "run", resume=False) as store:
        programs, refused = program_candidates(experiment, KNOWN, store, target)
    assert "export ANTHROPIC_API_KEY" in found.not_run[0]
    assert f"attnbench eval {target} --model" in found.not_run[0]
    assert not refused
    assert Counter(p.backend for p in programs) == dict.fromkeys(experiment.backend_names, 8)
    assert all(p.origin.method == "program" and p.folder.is_dir() for p in programs)


def test_before_sm_80_kernels_are_asked_for_in_cuda() -> None:
    found = commissions(read_experiment("t4", {"models": ["anthropic:x"], "backends": ["triton"]}), KNOWN)
    assert not found.trials and "no tensor-core code" in found.not_run[0]
    for target, backends in (("t4", ("cuda",)), ("h100", ("triton",))):
        assert given(target=target, backends=[]).backend_names == backends


@pytest.mark.parametrize("target", GPUS)
def test_a_named_model_runs_every_method_on_every_task_in_every_backend(target: str) -> None:
    experiment = read_experiment(target, {"models": ["anthropic:x"]})
    found = commissions(experiment, KNOWN)
    assert len(found.trials) == 8 * 4 * len(experiment.backend_names) and not found.not_run


def test_programs_of_ones_own_name_their_task(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "harness/tl/corpus/reference/mha_causal.tl").read_text()
    (tmp_path / "own.tl").write_text(text)
    (tmp_path / "nameless.tl").write_text(text.replace("Kernel mha_causal", "Kernel x"))
    with Store(tmp_path / "run", resume=False) as store:
        (program,), _ = program_candidates(given(programs=[str(tmp_path / "own.tl")]), KNOWN, store, "test")
        assert program.tasks == ("mha_causal",)
        with pytest.raises(ExperimentError, match="# task: NAME"):
            program_candidates(given(programs=[str(tmp_path / "nameless.tl")]), KNOWN, store, "test")
        with pytest.raises(ExperimentError, match="cannot be read"):
            program_candidates(given(programs=["none.tl"]), KNOWN, store, "test")
