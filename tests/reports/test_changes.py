"""What changed between two runs: identities, verdicts, what is noise and what is not."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records import Result
from harness.runs import Environment
from harness.verdicts import Verdict
from reports.changes import compare
from reports.changes.drift import FEWEST_CONTROLS, USUAL_DRIFT, Role
from reports.changes.formats import json_text, markdown
from reports.changes.sections import warnings
from reports.changes.speeds import Change, denominator
from reports.changes.verdicts import Turn
from reports.dataset import Dataset, label_rows, load_run
from reports.figures import Standing
from tests.reports import synthetic
from tests.reports.synthetic import environment, sha, workload

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
GOLDEN = Path(__file__).parent / "golden"
CELLS = [workload(seq, dim) for dim in (64, 128) for seq in (512, 1024, 2048, 4096, 8192)]


def dataset(lines: list[Result], *env: Environment, name: str = "run") -> Dataset:
    known = {e.digest: e for e in env or (environment(),)}
    rows = label_rows(list(enumerate(lines, start=1)))
    return Dataset(name, Path(name), rows, known, (), "", ())


Rates = dict[str, float | Verdict]


def rates(**changed: float | Verdict) -> Rates:
    names = {"flash_attn_4": "flash-attn-4", "sdpa_flash": "sdpa-flash"}
    base: Rates = {"cudnn": 400.0, "flash-attn-4": 500.0, "sdpa-flash": 300.0, "mine": 350.0, "other": 200.0}
    return base | {names.get(k, k): v for k, v in changed.items()}


def kind(name: str) -> str:
    return "candidate" if name in ("mine", "other") else "baseline"


def made(
    of: Rates,
    env: Environment | None = None,
    cells: list[synthetic.WorkloadRecord] | None = None,
    tag: str = "",
    sources: str = "",
) -> Dataset:
    """A run in which every contender has one rate.

    `tag` makes its records other ones than another run's, `sources` the content of `mine`.
    """

    def rate(value: float | Verdict) -> synthetic.Rate:
        return lambda w: value

    who = {name: (kind(name), rate(value)) for name, value in of.items()}
    lines = synthetic.results("mha_causal", cells or CELLS, who, env=env)
    if tag:
        lines = [r.model_copy(update={"recorded_at": tag}) for r in lines]
    if sources:
        lines = [with_content(r, sources) if r.candidate.name == "mine" else r for r in lines]
    return dataset(lines, env or environment(), name=tag or "run")


def with_content(r: Result, content: str, **more: object) -> Result:
    return r.model_copy(update={"candidate": r.candidate.model_copy(update={"sha256": sha(content), **more})})


def pairs(a: Dataset, b: Dataset) -> dict[tuple[str, str], Change]:
    return {(c.after.contender, c.pair.after.workload.key): c for c in compare(a, b).speeds.of}


# Identities.
RATE = st.floats(50, 900)
OUTCOME = st.one_of(
    RATE, st.sampled_from([Verdict.WRONG_NUMERICS, Verdict.CRASH, Verdict.SKIPPED, Verdict.PROVEN])
)
RUN = st.fixed_dictionaries(
    {"cudnn": RATE, "flash-attn-4": OUTCOME, "sdpa-flash": OUTCOME, "mine": OUTCOME, "other": OUTCOME}
)


@settings(deadline=None, max_examples=40)
@given(RUN)
def test_a_run_compared_with_itself_shows_nothing(of: Rates) -> None:
    run = made(of, cells=CELLS[:3])
    found = compare(run, run)
    assert not found.verdicts and not found.differences
    assert not found.speeds.called and not found.times.called
    assert all(c.role is Role.COPY and c.estimate.median == 1 for c in (*found.speeds.of, *found.times.of))
    assert all(g.standing is Standing.SAME for g in found.geomeans)
    m = found.match
    assert not (m.cells_before or m.cells_after or m.contenders_before or m.contenders_after)


@settings(deadline=None, max_examples=40)
@given(RUN, RUN)
def test_the_other_way_round_is_the_inverse(first: Rates, second: Rates) -> None:
    a, b = made(first, cells=CELLS[:3], tag="a"), made(second, cells=CELLS[1:4], tag="b")
    there, back = compare(a, b), compare(b, a)
    flipped = {Turn.BROKE: Turn.MENDED, Turn.MENDED: Turn.BROKE}
    assert sorted(
        (v.before.line, v.after.line, flipped.get(v.turn, v.turn)) for v in there.verdicts
    ) == sorted((v.after.line, v.before.line, v.turn) for v in back.verdicts)
    opposite = {Standing.FASTER: Standing.SLOWER, Standing.SLOWER: Standing.FASTER}
    for ours, theirs in ((there.speeds, back.speeds), (there.times, back.times)):
        assert ours.apart == theirs.apart and ours.drift.value == pytest.approx(theirs.drift.value)
        inverse = {(c.after.line, c.before.line): c for c in theirs.of}
        assert len(ours.of) == len(inverse)
        for c in ours.of:
            other = inverse[(c.before.line, c.after.line)]
            assert c.estimate.median * other.estimate.median == pytest.approx(1)
            assert c.estimate.low * other.estimate.high == pytest.approx(1)
            assert (c.floor, c.role) == (pytest.approx(other.floor), other.role)
            assert opposite.get(c.standing, c.standing) is other.standing
    for g in there.geomeans:
        other_g = next(x for x in back.geomeans if x.contender == g.contender)
        assert g.estimate.median * other_g.estimate.median == pytest.approx(1)
        assert (g.cells, g.faster, g.slower) == (other_g.cells, other_g.slower, other_g.faster)
    assert there.match.contenders_before == back.match.contenders_after
    assert [(d.what, d.before, d.after) for d in there.differences] == [
        (d.what, d.after, d.before)
        for d in sorted(back.differences, key=lambda d: [x.what for x in there.differences].index(d.what))
    ]


# Verdicts.
@pytest.mark.parametrize(
    ("before", "after", "turn"),
    [
        (300.0, Verdict.WRONG_NUMERICS, Turn.BROKE),
        (300.0, Verdict.LIBRARY_DISPATCH, Turn.BROKE),
        (Verdict.PROVEN, Verdict.CRASH, Turn.BROKE),
        (Verdict.CRASH, 300.0, Turn.MENDED),
        (Verdict.CRASH, Verdict.TIMEOUT, Turn.OTHERWISE),
        (300.0, Verdict.PROVEN, Turn.TIMED),
        (300.0, Verdict.SKIPPED, Turn.APART),
        (Verdict.INFRA, Verdict.CRASH, Turn.APART),
    ],
)
def test_a_changed_verdict_is_named_for_what_it_means(
    before: float | Verdict, after: float | Verdict, turn: Turn
) -> None:
    found = compare(made(rates(mine=before)), made(rates(mine=after))).verdicts
    assert {(v.turn, v.after.contender) for v in found} == {(turn, "mine")}
    assert len(found) == len(CELLS)


def test_what_broke_comes_first_and_is_loud() -> None:
    a = made(rates(other=Verdict.CRASH, mine=350.0))
    b = made(rates(other=200.0, mine=Verdict.WRONG_NUMERICS))
    found = compare(a, b)
    assert [v.turn for v in found.verdicts] == [Turn.BROKE] * len(CELLS) + [Turn.MENDED] * len(CELLS)
    assert "RIGHT -> WRONG" in markdown(found)
    assert synthetic.REASONS[Verdict.WRONG_NUMERICS].split(",")[0] in markdown(found)


# Speed.
def test_a_change_is_the_ratio_of_the_ratios_over_one_baseline() -> None:
    found = pairs(made(rates(), tag="a"), made(rates(mine=700.0, cudnn=410.0), tag="b", sources="new"))
    change = found[("mine", CELLS[0].key)]
    assert change.speedups is not None
    before, after = change.speedups
    assert before.baseline.contender == after.baseline.contender == "flash-attn-4"
    assert change.estimate.median == pytest.approx(after.estimate.median / before.estimate.median)
    assert change.standing is Standing.FASTER and change.same_denominator
    logs = [math.log(e.high / e.median) for e in (after.estimate, before.estimate.inverse)]
    assert math.log(change.estimate.high / change.estimate.median) == pytest.approx(math.hypot(*logs))


def test_what_lies_within_the_usual_drift_is_no_change() -> None:
    few = CELLS[:3]
    inside, outside = 350 * math.exp(USUAL_DRIFT - 0.01), 350 * math.exp(USUAL_DRIFT + 0.02)
    for rate, called in ((inside, 0), (outside, len(few))):
        found = compare(
            made(rates(), cells=few, tag="a"), made(rates(mine=rate), cells=few, tag="b", sources="new")
        )
        assert len(found.speeds.called) == called
        assert found.speeds.drift.controls == 2 * len(few) + len(few), (
            "two baselines, and the other candidate"
        )
        assert found.speeds.drift.value == USUAL_DRIFT


def test_with_enough_controls_their_own_drift_counts() -> None:
    a = made(rates(), tag="a")
    still = compare(a, made(rates(mine=350 * 1.02), tag="b", sources="new"))
    assert still.speeds.drift.controls >= FEWEST_CONTROLS and still.speeds.drift.value == 0
    assert {c.after.contender for c in still.speeds.called} == {"mine"}
    moved = compare(a, made(rates(mine=350 * 1.02, sdpa_flash=300 * 1.06), tag="b", sources="new"))
    assert 0.05 < moved.speeds.drift.value < 0.06
    assert moved.speeds.drift.worst is not None and moved.speeds.drift.worst[1].contender == "sdpa-flash"
    assert not moved.speeds.called, "an unchanged library moved by more"


def test_sources_that_changed_are_no_control() -> None:
    a, b = made(rates(), tag="a"), made(rates(mine=500.0), tag="b")
    files = {"kernel.py": sha("x"), "more.py": sha("y")}
    lines = [
        with_content(r.result, "new", files=files) if r.contender == "mine" else r.result for r in b.rows
    ]
    found = compare(a, dataset(lines, name="b"))
    assert {c.role for c in found.speeds.of if c.after.contender == "mine"} == {Role.OTHER}
    assert {c.after.contender for c in found.speeds.called} == {"mine"}
    (difference,) = found.differences
    assert difference.about == "candidate" and difference.what == "mine: kernel.py, more.py"


def test_an_unchanged_kernel_in_unchanged_conditions_never_changes() -> None:
    """Its movement is the noise itself."""
    found = compare(made(rates(), tag="a"), made(rates(mine=500.0), tag="b"))
    assert not found.speeds.called and found.speeds.drift.value > 0.3
    assert "mine in mha_causal" in " ".join(warnings(found)), "but it is said aloud"


def test_another_machine_is_no_noise_and_its_times_are_not_compared() -> None:
    other = environment(device="NVIDIA H100 PCIe")
    found = compare(made(rates()), made(rates(mine=500.0), env=other))
    assert found.speeds.drift.controls == 0 and found.speeds.drift.value == USUAL_DRIFT
    assert {c.after.contender for c in found.speeds.called} == {"mine"}
    assert not found.times.of
    ((why, count),) = found.times.apart.items()
    assert "NVIDIA H100 PCIe" in why and count == 5 * len(CELLS)
    assert any("other conditions (device)" in line for line in markdown(found).splitlines())


def test_a_baseline_of_another_version_is_taken_last_and_named() -> None:
    a = made(rates(), tag="a")

    def newer(names: set[str]) -> Dataset:
        rows = made(rates(mine=500.0), tag="b").rows
        lines = [
            with_content(r.result, f"{r.contender} 10", family="x 10.0") if r.contender in names else r.result
            for r in rows
        ]
        return dataset(lines, name="b")

    found = compare(a, newer({"flash-attn-4"}))
    over = {c.speedups[1].baseline.contender for c in found.speeds.of if c.speedups}
    assert over == {"cudnn"}, "flash-attn-4 is faster, and another one"
    assert [d.what for d in found.differences if d.about == "baseline"] == ["flash-attn-4"]
    every = compare(a, newer({"flash-attn-4", "cudnn", "sdpa-flash"}))
    assert not any(c.same_denominator for c in every.speeds.of)
    assert "flash-attn-4 (another version)" in markdown(every)


def test_without_a_common_baseline_nothing_is_made_up() -> None:
    a = made(rates(flash_attn_4=Verdict.SKIPPED, sdpa_flash=Verdict.SKIPPED))
    lines = [r.result for r in made(rates(), tag="b").rows if r.contender in ("mine", "other")]
    found = compare(a, dataset(lines))
    assert not found.speeds.of
    assert found.speeds.apart == {"no human baseline was measured in both runs": 2 * len(CELLS)}
    assert denominator(found.match.cells[0]) is None


def test_the_surest_and_largest_come_first() -> None:
    def rate(w: synthetic.WorkloadRecord) -> float:
        return 350 * (1 + w.seq_k / 8192)

    def same(value: float | Verdict) -> synthetic.Rate:
        return lambda w: value

    who = {n: (kind(n), rate if n == "mine" else same(v)) for n, v in rates().items()}
    b = synthetic.results("mha_causal", CELLS, who)
    other = [with_content(r, "new") if r.candidate.name == "mine" else r for r in b]
    called = compare(made(rates()), dataset(other)).speeds.called
    assert [c.sure for c in called] == sorted((c.sure for c in called), reverse=True)
    assert {c.after.result.workload.seq_k for c in called[:2]} == {8192}


def test_cells_and_contenders_of_one_run_are_named() -> None:
    a = made(rates(), cells=CELLS[:3])
    b = dataset([r.result for r in made(rates(), cells=CELLS[1:5]).rows if r.contender != "other"])
    found = compare(a, b)
    assert len(found.match.cells) == 2
    assert (len(found.match.cells_before), len(found.match.cells_after)) == (1, 2)
    assert found.match.contenders_before == ("other",) and not found.match.contenders_after
    assert "Only in run: contenders other; cells mha_causal (1)" in markdown(found)


def test_runs_of_two_targets_are_paired_by_shape() -> None:
    other = environment("h200", "NVIDIA H200")
    found = compare(made(rates()), made(rates(), env=other))
    assert len(found.match.cells) == len(CELLS) and found.match.across == ("h100", "h200")
    assert "other targets" in markdown(found)


def test_protocol_task_and_environment_are_named_where_they_differ() -> None:
    a = made(rates())
    env = environment().model_copy(
        update={"driver": "600.1", "libraries": {"torch": "2.12.0", "numba": "0.60"}}
    )
    lines = [
        r.result.model_copy(update={"environment": env.digest, "identity": r.result.identity.model_copy(update={"protocol": "9", "task": sha("v2")})})
        for r in made(rates()).rows
    ]  # fmt: skip
    found = compare(a, dataset(lines, env))
    said = {(d.about, d.what): (d.before, d.after, d.decisive) for d in found.differences}
    assert said[("protocol", "protocol")] == ("2", "9", True)
    assert said[("environment", "driver")] == ("570.86", "600.1", True)
    assert said[("environment", "torch")] == ("2.11.0", "2.12.0", True)
    assert said[("environment", "triton")] == ("3.6.0", "none", False)
    assert said[("environment", "numba")] == ("none", "0.60", False)
    assert said[("task", "mha_causal")][2]
    assert "verdicts and times mean something else" in markdown(found)


# Formats.
def test_json_holds_every_figure() -> None:
    found = compare(made(rates(), tag="a"), made(rates(mine=Verdict.CRASH, other=300.0), tag="b"))
    data = json.loads(json_text(found))
    assert len(data["speedups"]["changes"]) == len(found.speeds.of)
    assert len(data["verdicts"]) == len(CELLS) and data["verdicts"][0]["turn"] == "right -> wrong"
    assert {c["role"] for c in data["speedups"]["changes"]} == {"control"}
    assert data["matched"]["results"] == found.results


def test_markdown_is_the_golden_one(tmp_path: Path) -> None:
    a = load_run(synthetic.tiny_run(tmp_path / "before"))
    w = [workload(1024), workload(4096), workload(8192)]
    who: dict[str, tuple[str, synthetic.Rate]] = {
        "cudnn": ("baseline", lambda w: 400.0 if w.seq_k < 4096 else 550.0),
        "flash-attn-4": ("baseline", lambda w: 380.0 if w.seq_k < 4096 else 600.0),
        "mine": ("candidate", lambda w: 360.0 if w.seq_k < 4096 else Verdict.WRONG_NUMERICS),
        "broken": ("candidate", lambda w: 300.0),
        "newcomer": ("candidate", lambda w: 100.0),
    }
    env = environment().model_copy(update={"driver": "590.10"})
    b = load_run(
        synthetic.write_run(tmp_path / "after", synthetic.results("mha_causal", w, who, env=env), env=env)
    )
    written = markdown(compare(a, b))
    golden = GOLDEN / "compare.md"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(written, encoding="utf-8")
    assert written == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h100-2026-11-23-paper", "h100-2026-11-25-cute"),
        ("h100-2026-11-23-paper", "h100-2026-11-25-generation"),
        ("h100-2026-11-23-models", "h100-2026-11-25-generation"),
        ("h100-2026-11-23-models", "h100-2026-11-25-cuda-generation"),
    ],
)
def test_published_runs_of_like_machines_show_no_change_of_their_baselines(before: str, after: str) -> None:
    """The same libraries on H100s of several hosts: whatever moved there is noise between runs."""
    found = compare(load_run(PUBLISHED / before), load_run(PUBLISHED / after))
    assert len(found.speeds.of) > 10
    assert not [c for c in (*found.speeds.called, *found.times.called) if c.after.is_baseline]
