"""What becomes of a case: every outcome, from saved files."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from reports.gate.accept import Refused, first, raised
from reports.gate.beside import former
from reports.gate.decision import Outcome, judge
from reports.gate.github import annotations
from reports.gate.junit import junit
from reports.gate.saved import OldSelf, read_saved
from reports.gate.table import as_json, markdown, report
from tests.gates import ANCHOR, CPU, GPU, OWN, anchor, beside, case, clocks, saved

SLOW, FAST = 1 / 1.1, 1.1


@pytest.fixture
def decide(tmp_path):
    """Judge runs, each a list of cases or of cases and failures, against a reference of the anchor and `mine`."""

    def judged(*runs, stored=None):
        reference = saved(tmp_path, "reference", stored or [anchor(), case()])
        files = [
            saved(tmp_path, f"run{n}", *(run if isinstance(run, tuple) else (run,)))
            for n, run in enumerate(runs)
        ]
        return judge(reference, files)

    return judged


def outcome(judgement, of=OWN):
    return next(d for d in judgement.decisions if d.case == of).outcome


def test_the_same_passes_and_the_anchor_is_not_judged(decide):
    found = decide([anchor(), case()])
    assert (outcome(found), outcome(found, ANCHOR)) == (Outcome.SAME, Outcome.ANCHOR)
    assert not found.failed and found.comparable and not found.again


def test_slower_once_is_measured_again_and_slower_twice_fails(decide):
    once = decide([anchor(), case(SLOW)])
    assert outcome(once) is Outcome.AGAIN
    assert once.again == (OWN,)
    assert not once.failed
    assert decide([anchor(), case(SLOW)], [case(SLOW)]).failed
    assert outcome(decide([anchor(), case(SLOW)], [case(1.0)])) is Outcome.SAME


def test_a_missing_case_fails_with_its_reason(decide):
    assert decide([anchor()]).failed
    found = decide(([anchor()], {OWN: "wrong_numerics: off by 3"}))
    assert outcome(found) is Outcome.MISSING
    assert "wrong_numerics: off by 3" in report(found)


def test_a_case_that_fails_when_measured_again_is_missing(decide):
    found = decide([anchor(), case(SLOW)], ([], {OWN: "crash: it died"}))
    assert outcome(found) is Outcome.MISSING


def test_a_new_kernel_that_is_wrong_fails_too(decide):
    found = decide(([anchor(), case()], {"a/b/new": "wrong_numerics: off by 3"}))
    assert outcome(found, "a/b/new") is Outcome.MISSING
    assert found.failed
    assert "a/b/new has no time: wrong_numerics" in report(found)


def test_what_the_machine_cannot_run_is_missing_only_where_it_could_before(tmp_path):
    other = "mha_causal/b/flash-attn-4"
    run = saved(
        tmp_path, "run", [anchor()], skipped={other: "skipped: not installed", OWN: "skipped: not installed"}
    )
    found = judge(saved(tmp_path, "reference", [anchor(), case()]), [run])
    assert outcome(found) is Outcome.MISSING
    assert "not installed" in report(found)
    assert other not in [d.case for d in found.decisions]
    assert set(accepted(tmp_path, first([run])).cases) == {ANCHOR}


def test_what_was_disturbed_is_measured_again_and_no_fault_of_the_kernel(tmp_path):
    reference = saved(tmp_path, "reference", [anchor(), case()])
    disturbed = saved(tmp_path, "run", [anchor()], disturbed={OWN: "infra: the speed changed"})
    found = judge(reference, [disturbed])
    assert found.again == (OWN,)
    assert not found.failed
    assert "once more: infra: the speed changed" in report(found)
    assert outcome(judge(reference, [disturbed, saved(tmp_path, "again", [case()])])) is Outcome.SAME
    with pytest.raises(Refused, match="the speed changed"):
        first([disturbed])


def test_a_new_case_passes_and_is_offered(decide):
    found = decide([anchor(), case(), case(kernel="other")])
    assert outcome(found, OWN.replace("mine", "other")) is Outcome.NEW
    assert not found.failed
    assert "accept" in report(found)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"machine": CPU.model_copy(update={"device": "Intel Xeon"})},
            "device Intel Xeon, the reference AMD EPYC",
        ),
        ({"machine": CPU.model_copy(update={"cores": 4})}, "usable cores 4, the reference 2"),
        ({"machine": CPU.model_copy(update={"protocol": "1"})}, "protocol 1, the reference 2"),
        ({"machine": CPU.model_copy(update={"settings": {"governor": "powersave"}})}, "governor powersave"),
        ({"anchor_sha256": "c" * 64}, "another version of sdpa-flash"),
        ({"clock": "graph_events"}, "clock graph_events, the reference wall"),
    ],
)
def test_what_cannot_be_compared_neither_passes_nor_fails(decide, changes, says):
    found = decide([anchor(), case(SLOW, **changes)])
    assert outcome(found) is Outcome.NOT_COMPARABLE
    assert not found.failed and not found.comparable and not found.again
    assert says in report(found)


def test_another_driver_power_limit_or_clock_of_a_gpu_is_not_comparable(decide):
    fast = clocks(1755)

    def on(machine=GPU, state=fast):
        return case(machine=machine, clocks=state)

    def against(new):
        return outcome(decide([new], stored=[on()]))

    limited = GPU.model_copy(update={"settings": {**GPU.settings, "power_limit": "350 W"}})
    assert against(on()) is Outcome.SAME
    assert against(on(state=clocks(1650))) is Outcome.SAME  # the power limit moves it by as much
    assert against(on(state=clocks(1400))) is Outcome.NOT_COMPARABLE
    assert against(on(state=clocks(1755, memory_mhz=1593))) is Outcome.NOT_COMPARABLE
    assert against(on(state=clocks(1755, "sw_power_cap"))) is Outcome.SAME
    assert against(on(state=clocks(1755, "hw_thermal_slowdown"))) is Outcome.NOT_COMPARABLE
    assert against(on(GPU.model_copy(update={"driver": "570.1"}))) is Outcome.NOT_COMPARABLE
    assert against(on(limited)) is Outcome.NOT_COMPARABLE
    idle = GPU.model_copy(update={"settings": {**GPU.settings, "persistence_mode": "off"}})
    assert against(on(idle)) is Outcome.SAME


def test_a_compiler_may_be_another_one_and_is_named_as_a_cause(decide):
    newer = CPU.model_copy(update={"libraries": {"numba": "0.62.0"}})
    slow = case(SLOW, machine=newer, sha256=case().sha256)
    found = decide([anchor(machine=newer), slow], [slow])
    assert outcome(found) is Outcome.SLOWER and found.failed
    assert "Its sources are the same; what changed: numba 0.61.0 -> 0.62.0" in report(found)


@pytest.mark.parametrize(("speed", "looks"), [(SLOW, "slower"), (FAST, "faster"), (0.5, "slower")])
def test_the_same_kernel_with_the_same_software_is_never_convicted(decide, speed, looks):
    same = case(speed, sha256=case().sha256)
    found = decide([anchor(), same], [same])
    assert outcome(found) is Outcome.UNCLEAR
    assert not found.failed and found.comparable and not found.again
    assert f"looks {looks} than the reference" in report(found)
    assert "byte for byte: it is the machine that is different" in report(found)
    assert any(line.startswith("::warning") for line in annotations(found))


def test_a_changed_kernel_without_its_old_self_is_decided_by_what_is_stored_and_told_how_to_do_better(decide):
    slow = case(SLOW)
    text = report(decide([anchor(), slow], [slow]))
    assert "Its sources have changed. By the stored measurement: its old sources are not kept" in text
    assert "attnbench gate --reference" in text
    gone = case(SLOW, old=OldSelf(sha256=case().sha256, reason="crash: it died"))
    assert "its old self gave no time to compare with (crash: it died)" in report(decide([gone], [gone]))
    library = case(SLOW, kernel="naive")
    text = report(decide([library], [library], stored=[case(kernel="naive")]))
    assert "have changed." in text and "old" not in text


@pytest.mark.parametrize("stored", [0.8, 1.0, 1.25])
def test_a_kernel_is_judged_by_its_old_self_of_the_same_session_before_what_is_stored(decide, stored):
    """The day moved the ratio over the anchor by 20 %, of old and new alike."""
    same, slow = beside(1.0, stored=stored), beside(SLOW, stored=stored)
    assert outcome(decide([anchor(), same])) is Outcome.SAME
    assert outcome(decide([anchor(), slow])) is Outcome.AGAIN
    found = decide([anchor(), slow], [slow])
    assert outcome(found) is Outcome.SLOWER and found.failed
    text = report(found)
    assert "is 9.1 % slower than its old self, measured side by side with it" in text
    assert "Its sources have changed; all else was the same for both" in text
    assert f"{stored:.3f}x beside" in text
    fast = beside(FAST, stored=stored)
    assert "faster than its old self" in report(decide([fast], [fast]))


def test_side_by_side_is_comparable_whatever_the_reference_was_measured_with(decide):
    elsewhere = CPU.model_copy(update={"device": "Intel Xeon", "driver": "999", "cores": 64})
    slow, kept = beside(SLOW, machine=elsewhere), case(kernel="kept", machine=elsewhere)
    found = decide([anchor(machine=elsewhere), slow], [slow])
    assert outcome(found) is Outcome.SLOWER
    assert found.comparable
    found = decide([anchor(machine=elsewhere), slow, kept], stored=[anchor(), case(), case(kernel="kept")])
    assert outcome(found, kept.id) is Outcome.NOT_COMPARABLE  # it has not changed, and has no old self


def test_the_old_self_of_another_reference_is_none(decide):
    other = beside(SLOW)
    other = other.model_copy(update={"old": other.old.model_copy(update={"sha256": "c" * 64})})
    found = next(d for d in decide([other], [other]).decisions if d.case == OWN)
    assert found.outcome is Outcome.SLOWER and not found.beside


def test_runs_without_the_old_self_do_not_count_where_others_have_it(decide):
    alone = case(SLOW, old=OldSelf(sha256=case().sha256, reason="timeout: too long"))
    assert outcome(decide([alone], [beside(1.0)])) is Outcome.SAME
    assert outcome(decide([beside(SLOW)], [alone])) is Outcome.AGAIN
    assert outcome(decide([beside(SLOW)], *[[alone]] * 3)) is Outcome.UNCLEAR


def test_old_selves_are_told_and_are_no_cases(decide):
    slow = beside(SLOW)
    data = json.loads(as_json(decide([anchor(), slow], [slow])))
    assert [c["case"] for c in data["cases"]] == [ANCHOR, OWN]
    assert [c["side_by_side"] for c in data["cases"]] == [False, True]
    assert data["cases"][1]["measured"]["old"]["speed"]["median"] == pytest.approx(SLOW)


def test_a_reference_has_no_old_selves(tmp_path):
    reference = saved(tmp_path, "reference", [anchor(), case()])
    run = saved(tmp_path, "one", [anchor(), beside(FAST)])
    again = saved(tmp_path, "two", [beside(FAST)])
    made = raised(reference, [run, again], judge(reference, [run, again]))
    assert "10.0 % faster" in made.changes[0]
    found = accepted(tmp_path, made).cases[OWN]
    assert (found.old, found.sha256) == (None, beside().sha256)
    assert accepted(tmp_path, first([run])).cases[OWN].old is None


def test_without_a_reference_the_old_selves_are_one(tmp_path):
    slow, fresh = beside(SLOW, stored=0.8), case(kernel="fresh")
    dead = case(kernel="dead", old=OldSelf(sha256="c" * 64, reason="crash: it died"))
    runs = [saved(tmp_path, "one", [anchor(), slow, fresh, dead]), saved(tmp_path, "two", [slow])]
    found = judge(former(runs), runs, there="base/kernels")
    assert [d.outcome for d in found.decisions] == [Outcome.ANCHOR, Outcome.SLOWER, Outcome.NEW, Outcome.NEW]
    assert f"{fresh.id} has no old self in base/kernels." in report(found)
    assert f"{dead.id} has no old self in base/kernels that has a time: crash: it died." in report(found)


def test_too_noisy_in_every_run_is_unclear_and_no_failure(decide):
    noisy = case(noise=0.2)
    found = decide([anchor(), noisy], [noisy], [noisy], [noisy])
    assert outcome(found) is Outcome.UNCLEAR
    assert not found.failed
    assert "measure on a quieter machine" in report(found)


def test_a_faster_case_offers_to_raise_the_reference(decide):
    found = decide([anchor(), case(FAST)], [case(FAST)])
    assert outcome(found) is Outcome.FASTER
    assert "`attnbench gate accept` raises the reference" in report(found)


def accepted(tmp_path, raised_):
    file = tmp_path / "accepted.json"
    file.write_text(json.dumps(raised_.content))
    return read_saved(file)


def test_accepting_takes_what_is_faster_or_new_and_keeps_the_rest(tmp_path):
    kept, other = case(0.7, kernel="kept"), case(0.5, kernel="other")
    reference = saved(tmp_path, "reference", [anchor(), case(), kept])
    noisy, quiet = case(FAST, noise=0.02), case(FAST * 1.001, noise=0.01)
    runs = [
        saved(tmp_path, "one", [anchor(), noisy, kept.model_copy(update={"time_ms": 9.0}), other]),
        saved(tmp_path, "two", [quiet]),
    ]
    made = raised(reference, runs, judge(reference, runs))
    found = accepted(tmp_path, made).cases
    assert found[OWN].ratio.median == pytest.approx(FAST * 1.0005)  # both runs together
    assert found[OWN].noise.high < quiet.noise.high * 1.01
    assert found[kept.id] == kept
    assert found[other.id] == other
    assert len(made.changes) == 2
    assert "10.1 % faster" in made.changes[0]


def test_accepting_without_improvements_changes_nothing(tmp_path):
    reference = saved(tmp_path, "reference", [anchor(), case()])
    runs = [saved(tmp_path, "one", [anchor(), case(1.01)])]
    assert raised(reference, runs, judge(reference, runs)).changes == ()


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([([anchor()], {OWN: "crash: it died"})], r"mine is missing.*crash: it died.*--replace"),
        ([([anchor(), case(SLOW)],), ([case(SLOW)],)], "is slower"),
        ([([anchor(), case(FAST)],)], "once more"),
        ([([anchor(), case(FAST, machine=GPU)],)], "cannot be compared.*device NVIDIA"),
    ],
)
def test_accepting_refuses_what_is_worse(tmp_path, runs, says):
    reference = saved(tmp_path, "reference", [anchor(), case()])
    files = [saved(tmp_path, f"run{n}", *run) for n, run in enumerate(runs)]
    with pytest.raises(Refused, match=says):
        raised(reference, files, judge(reference, files))


def test_the_first_reference_is_all_that_was_measured_each_case_at_its_quietest(tmp_path):
    runs = [
        saved(tmp_path, "one", [anchor(), case(1.0, noise=0.2)]),
        saved(tmp_path, "two", [case(1.02, noise=0.03)]),
    ]
    found = accepted(tmp_path, first(runs)).cases
    assert set(found) == {ANCHOR, OWN}
    assert found[OWN].ratio.median == 1.02
    with pytest.raises(Refused, match="timeout: too long"):
        first([saved(tmp_path, "bad", [anchor()], {OWN: "timeout: too long"})])


@pytest.fixture
def mixed(tmp_path):
    """Every outcome but `again`, with a reason that is hard to write down."""
    kernels = ("slow", "fast", "gone", "elsewhere", "noisy")
    reference = saved(tmp_path, "reference", [anchor(), *(case(kernel=k) for k in kernels)])
    elsewhere = case(kernel="elsewhere", machine=CPU.model_copy(update={"device": "Intel|Xeon"}))
    part = [
        case(SLOW, kernel="slow", source="k/slow,1.py"),
        case(FAST, kernel="fast"),
        case(noise=0.3, kernel="noisy"),
    ]
    gone = {"mha_causal/b1-h4-n512-d64-fp32/gone": "crash: 100 %\n::error::mine\x00\x1b[31m<b>&"}
    runs = [saved(tmp_path, "one", [anchor(), *part, elsewhere, case(kernel="new")], gone)]
    runs += [saved(tmp_path, f"again{n}", part) for n in range(3)]
    return judge(reference, runs)


def test_every_outcome_has_its_sentence(mixed):
    assert {d.outcome for d in mixed.decisions} == set(Outcome) - {Outcome.SAME, Outcome.AGAIN}
    text = report(mixed)
    assert text.splitlines()[-1].startswith("FAILED: 1 slower, 1 faster, 1 missing")
    assert "is 9.1 % slower than the reference (-9.1 %, between" in text
    assert "two runs agree" in text


def test_the_json_holds_every_figure(mixed):
    data = json.loads(as_json(mixed))
    assert data["failed"] and not data["comparable"]
    slow = next(c for c in data["cases"] if c["outcome"] == "slower")
    assert len(slow["looks"]) == 2
    assert slow["looks"][0]["low"] < slow["looks"][0]["speed"] < slow["looks"][0]["high"] < 1 / 1.05
    assert slow["reference"]["ratio"]["median"] == 1.0


def test_the_junit_file_is_xml_that_counts_right(mixed):
    root = ElementTree.fromstring(junit(mixed))
    suite = root.find("testsuite")
    cases = suite.findall("testcase")
    assert int(suite.get("tests")) == len(cases) == len(mixed.decisions)
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == 2
    assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped")) == 2
    gone = next(c for c in cases if c.get("name") == "gone")
    assert gone.get("classname") == "mha_causal/b1-h4-n512-d64-fp32"
    assert "<b>&" in gone.find("failure").get("message")


def test_annotations_are_one_line_each_and_nothing_in_them_is_a_command(mixed):
    lines = list(annotations(mixed))
    assert all("\n" not in line for line in lines)
    by_level = {
        level: [x for x in lines if x.startswith(f"::{level} ")] for level in ("error", "warning", "notice")
    }
    assert [len(x) for x in by_level.values()] == [2, 2, 2]
    assert any("100 %25%0A::error" in line for line in lines)
    assert any(line.startswith("::error file=k/slow%2C1.py,title=Gate%3A slower::") for line in lines)


def test_the_page_of_a_step_is_a_table_that_no_name_can_break(mixed):
    rows = [line for line in markdown(mixed).splitlines() if line.startswith("|")]
    assert len(rows) == len(mixed.decisions) + 2
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
