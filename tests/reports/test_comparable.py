"""Results that were recorded under other conditions are in no figure, and the report says which and why."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from harness.records import Result
from harness.runs import Environment
from harness.verdicts import Verdict
from reports import render
from reports.comparable import comparable, split
from reports.dataset import load_run
from reports.surroundings import warnings
from tests.reports import synthetic

ONE = synthetic.environment().model_copy(
    update={"sources": "abc", "gpu": {"power_limit": "700 W", "persistence_mode": "on"}, "cores": 16}
)
W = synthetic.workload(1024)


def other(**changes: Any) -> Environment:
    return ONE.model_copy(update=changes)


def libraries(**changes: str) -> dict[str, str]:
    return {**ONE.libraries, **changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device": "NVIDIA H200"}, "device NVIDIA H200, the others with NVIDIA H100 80GB HBM3"),
        ({"driver": "580.1"}, "driver 580.1, the others with 570.86"),
        ({"cuda": "13.0"}, "CUDA 13.0, the others with 12.8"),
        ({"libraries": libraries(torch="2.12")}, "torch 2.12, the others with 2.11.0"),
        ({"libraries": libraries(triton="3.7")}, "triton 3.7"),
        ({"sources": "abd"}, "harness sources abd, the others with abc"),
        ({"sources": ""}, "harness sources unknown"),
        ({"gpu": {"power_limit": "500 W"}}, "power limit 500 W, the others with 700 W"),
        ({"python": "3.13.0"}, "Python 3.13"),
    ],
)
def test_what_can_change_a_figure_must_agree(changes: dict[str, Any], says: str) -> None:
    assert says in str(comparable(other(**changes), ONE))
    assert comparable(ONE, other(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"python": "3.12.9"},
        {"baselines": {}},
        {"sandbox": "none"},
        {"platform": "Linux x86_64 glibc-2.40"},
        {"cores": 32},
        {"cpu": "another"},
        {"harness": "0.1.1"},  # the sources that decide are the same
        {"libraries": libraries(**{"flash-attn-4": "4.0"})},
        {"gpu": {"power_limit": "700 W", "persistence_mode": "off"}},
        {"gpu": {}},
    ],
)
def test_what_cannot_change_one_may_differ(changes: dict[str, Any]) -> None:
    assert comparable(other(**changes), ONE) is None


def test_where_the_processor_is_the_device_its_cores_must_agree() -> None:
    cpu = synthetic.environment("cpu", "AMD EPYC").model_copy(update={"cores": 4})
    assert "usable cores 4, the others with 8" in str(comparable(cpu, cpu.model_copy(update={"cores": 8})))


def test_without_sources_the_version_must_agree() -> None:
    old = other(sources="")
    assert comparable(old, old.model_copy(update={"python": "3.12.9"})) is None
    assert "attnbench 0.1.1" in str(comparable(old.model_copy(update={"harness": "0.1.1"}), old))


def results(env: Environment, *names: str, at: str = "2026-11-20T08:00:00Z") -> list[Result]:
    found = []
    for name in names:
        m = synthetic.measurement(W, name, "h100", 400.0, synthetic.ratio("cudnn", 1.0))
        who = synthetic.candidate(name, "baseline" if name == "cudnn" else "candidate")
        found.append(synthetic.result("mha", W, who, Verdict.OK, m, env=env, recorded_at=at))
    return found


def names(lines: list[tuple[int, Result]]) -> list[str]:
    return [r.candidate.name for _, r in lines]


def test_the_larger_part_is_kept_and_of_equal_ones_the_latest() -> None:
    new = other(driver="580.1")
    known = {e.digest: e for e in (ONE, new)}
    large = [*results(new, "a"), *results(ONE, "cudnn", "b")]
    kept, left = split(list(enumerate(large, 1)), known)
    assert (names(kept), [x.line for x in left]) == (["cudnn", "b"], [1])
    assert left[0].why == "recorded with driver 580.1, the others with 570.86"
    equal = [*results(new, "a", at="2026-11-21T08:00:00Z"), *results(ONE, "b")]
    kept, left = split(list(enumerate(equal, 1)), known)
    assert names(kept) == ["a"]


def test_comparable_with_one_is_not_comparable_with_the_next() -> None:
    """Of two versions of a library a third environment, without it, goes with the one that has more."""
    without, seven, eight = ONE, *(other(libraries=libraries(**{"flash-attn-4": v})) for v in "78")
    known = {e.digest: e for e in (without, seven, eight)}
    lines = [*results(without, "a"), *results(seven, "b", "c"), *results(eight, "d")]
    kept, left = split(list(enumerate(lines, 1)), known)
    assert names(kept) == ["a", "b", "c"] and "flash-attn-4 8" in left[0].why


def test_an_environment_that_nobody_knows_is_comparable_with_itself_only() -> None:
    lines = list(enumerate([*results(ONE, "a", "b"), *results(other(cuda="13"), "c")], 1))
    kept, left = split(lines, {ONE.digest: ONE})
    assert names(kept) == ["a", "b"] and "environment.json has nothing of" in left[0].why
    assert not split(lines[:2], {})[1]


def test_another_protocol_and_another_version_of_the_task_are_apart() -> None:
    one, two, three, four = results(ONE, "a", "b", "c", "d")

    def again(r: Result, **changes: str) -> Result:
        identity = r.identity.model_copy(update=changes)
        return r.model_copy(update={"id": identity.digest, "identity": identity})

    lines = [one, two, again(three, protocol="9"), again(four, task="f" * 64)]
    kept, left = split(list(enumerate(lines, 1)), {ONE.digest: ONE})
    assert names(kept) == ["a", "b"]
    assert [x.why for x in left] == [
        "recorded with protocol 9, the others with 1".replace("with 1", f"with {one.identity.protocol}"),
        "recorded with another version of the task mha than the others",
    ]
    assert split([], {}) == ([], [])


def test_a_report_of_two_machines_is_a_report_of_one_and_says_so(tmp_path: Path) -> None:
    """Every figure is as if the others had never been recorded."""
    mine = [*results(ONE, "cudnn", "a"), *results(other(driver="580.1"), "b")]
    new = other(driver="580.1")
    mixed = synthetic.write_run(tmp_path / "mixed" / "run", mine, env=ONE, more=[new])
    alone = synthetic.write_run(tmp_path / "alone" / "run", mine[:2], env=ONE)
    for run in (mixed, alone):
        render(run)
    assert (mixed / "report/report.csv").read_text() == (alone / "report/report.csv").read_text()
    said = json.loads((mixed / "report/report.json").read_text())
    without = json.loads((alone / "report/report.json").read_text())
    for key in ("headline", "cells", "funnel", "noise_floor", "telemetry", "verdicts_other_than_ok"):
        assert said[key] == without[key]
    assert [x["line"] for x in said["left_out"]] == [3] and without["left_out"] == []
    why = "1 result is left out of every figure: recorded with driver 580.1, the others with 570.86."
    assert why in said["warnings"]
    for name in ("report.md", "report.html"):
        text = (mixed / "report" / name).read_text()
        assert why in text and "Left out: not comparable" in text
        assert f"Environment {new.digest[:8]}, of results that are left out" in text
        assert "Left out" not in (alone / "report" / name).read_text()


def test_a_run_that_was_resumed_on_the_same_machine_stays_whole(tmp_path: Path) -> None:
    later = other(python="3.12.9", sandbox="none", baselines={})
    lines = [*results(ONE, "cudnn", "a"), *results(later, "b")]
    run = load_run(synthetic.write_run(tmp_path / "run", lines, env=ONE, more=[later]))
    assert len(run.rows) == 3 and not run.left_out
    assert any("2 environments that agree" in w for w in warnings(run))
    rows = csv.DictReader(io.StringIO((render(run.path)[2]).read_text()))
    assert {row["contender"] for row in rows} == {"cudnn", "a", "b"}
