"""`attnbench gate` as a user meets it: what it says, which code it ends with, what it saves."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pytest_benchmark.utils import get_machine_id

from harness import gate_commands
from harness.build.manifest import read_candidate
from harness.exits import (
    EXIT_FOUND,
    EXIT_MACHINE,
    EXIT_NO_REFERENCE,
    EXIT_NOT_COMPARABLE,
    EXIT_PENDING,
    EXIT_STORE,
    EXIT_USAGE,
)
from harness.gate_kernels import Kernels
from reports.gate.change import RULE, Rule
from tests.command import attnbench
from tests.conftest import GOOD, SANDBOX
from tests.gates import CPU, OWN, anchor, beside, case, write

SLOW, FAST = 1 / 1.1, 1.1
# Rows that see nothing are zero.
RIGHT = GOOD.replace("(torch.softmax(s, -1) @ v)", "(torch.softmax(s, -1).nan_to_num(0.0) @ v)")


class Place:
    """A folder with a storage; what the benchmarks would measure is given beforehand."""

    def __init__(self, path, monkeypatch):
        self.path, self.saved = path, path / ".benchmarks" / get_machine_id()
        self.to_come, self.measured, self.before = [], [], []
        monkeypatch.setattr(gate_commands, "run_benchmarks", self.pytest)
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            monkeypatch.delenv(name, raising=False)

    def put(self, kind, cases, failed=None):
        kind = kind if "-" in kind else f"{kind}-cpu"
        number = len(list(self.saved.glob("*.json"))) + 1
        return write(self.saved / f"{number:04}_{kind}.json", cases, failed)

    def pytest(self, command):
        """In place of the benchmarks: saves what is next, as often as it is asked."""
        name = next(x for x in command if x.startswith("--benchmark-save=")).split("=")[1]
        kind = name.split("-")[0]
        only = [x.removeprefix("--gate-case=") for x in command if x.startswith("--gate-case=")]
        self.measured.append((kind, only))
        before = next(x for x in command if x.startswith("--gate-before=")).removeprefix("--gate-before=")
        self.before.append({case: Path(p) for case, p in json.loads(Path(before).read_text()).items()})
        told = self.to_come.pop(0)
        if isinstance(told, int):
            return told
        self.put(name, *(told if isinstance(told, tuple) else (told,)))
        return 0

    def gate(self, *arguments):
        return attnbench("gate", *arguments, cwd=self.path)

    def references(self):
        return sorted(self.saved.glob("*_reference-cpu.json"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path, monkeypatch)


def test_without_a_reference_it_says_how_to_make_one_and_that_works(place):
    place.to_come = [[anchor(), case()]]
    first = place.gate()
    assert first.returncode == EXIT_NO_REFERENCE == 6
    assert "there is no reference for cpu" in first.stderr
    assert "attnbench gate accept" in first.stderr
    accepted = place.gate("accept")
    assert accepted.returncode == 0, accepted.stderr
    assert "0002_reference-cpu.json" in accepted.stdout
    place.to_come = [[anchor(), case()]]
    second = place.gate()
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[-1] == "passed: 1 same"


def test_what_is_to_become_the_reference_is_measured_again_where_it_is_noisy(place):
    place.to_come = [[anchor(), case(noise=0.2)], [case(noise=0.15)], [case(noise=0.01)]]
    assert place.gate().returncode == EXIT_NO_REFERENCE
    assert place.measured == [("gate", []), ("again", [OWN]), ("again", [OWN])]
    place.gate("accept")
    kept = json.loads(place.references()[-1].read_text())
    noises = [b["extra_info"]["attnbench"]["noise"]["high"] for b in kept["benchmarks"]]
    assert noises == [1.01, 1.01]


def test_a_reference_is_made_in_one_go(place):
    place.put("reference", [anchor(), case(0.1)])
    place.to_come = [[anchor(), case(speed)] for speed in (0.98, 1.0, 1.02)]
    found = place.gate("--reference")
    assert found.returncode == 0, found.stderr
    assert [kind for kind, _ in place.measured] == ["gate", "again", "again"]
    assert len(place.references()) == 2
    kept = json.loads(place.references()[-1].read_text())["benchmarks"][1]["extra_info"]["attnbench"]["ratio"]
    assert kept["median"] == pytest.approx(1.0, abs=1e-3)
    assert kept["high"] == pytest.approx(1 + 1.96 * 0.02 / 3**0.5, abs=1e-3)  # the runs differ by that
    assert place.gate("--measured").returncode == 0
    place.to_come = [([anchor()], {OWN: "crash: it died"})] * 3
    refused = place.gate("--reference")
    assert refused.returncode == EXIT_USAGE
    assert "crash: it died" in refused.stderr
    assert len(place.references()) == 2


def test_accepting_what_was_not_measured_says_so(place):
    found = place.gate("accept")
    assert found.returncode == EXIT_USAGE
    assert "nothing was measured" in found.stderr


def test_a_slower_case_is_measured_once_more_and_then_fails(place):
    place.put("reference", [anchor(), case(), case(kernel="other")])
    place.to_come = [[anchor(), case(SLOW), case(kernel="other")], [case(SLOW)]]
    found = place.gate("--junit", "gate.xml")
    assert found.returncode == EXIT_FOUND == 1
    assert place.measured == [("gate", []), ("again", [OWN])]
    assert f"{OWN} is 9.1 % slower than the reference" in found.stdout
    assert found.stdout.splitlines()[-1] == "FAILED: 1 same, 1 slower"
    assert ElementTree.parse(place.path / "gate.xml").find("testsuite/testcase/failure") is not None


def test_a_second_run_that_does_not_agree_clears(place):
    place.put("reference", [anchor(), case()])
    place.to_come = [[anchor(), case(SLOW)], [case(1.0)]]
    assert place.gate().returncode == 0


def test_it_does_not_measure_forever(place):
    place.put("reference", [anchor(), case()])
    noisy = [case(noise=0.3)]
    place.to_come = [[anchor(), *noisy], *[noisy] * 9]
    found = place.gate()
    assert found.returncode == 0
    assert len(place.measured) == RULE.most
    assert found.stdout.splitlines()[-1] == "passed: 1 unclear"


def test_runs_that_leave_out_what_they_were_asked_for_are_not_repeated_forever(place):
    place.put("reference", [anchor(), case()])
    place.to_come = [[anchor(), case(SLOW)], *[[anchor()]] * 3]
    found = place.gate()
    assert found.returncode == EXIT_MACHINE
    assert len(place.measured) == RULE.most
    assert "UNDECIDED" in found.stdout


def test_a_missing_case_fails(place):
    place.put("reference", [anchor(), case()])
    place.to_come = [([anchor()], {OWN: "crash: it died"})]
    found = place.gate()
    assert found.returncode == EXIT_FOUND
    assert "crash: it died" in found.stdout


def test_another_machine_is_neither_a_pass_nor_a_failure(place):
    place.put("reference", [anchor(), case()])
    place.to_come = [[anchor(), case(SLOW, machine=CPU.model_copy(update={"device": "Intel Xeon"}))]]
    found = place.gate()
    assert found.returncode == EXIT_NOT_COMPARABLE == 5
    assert "NOT COMPARABLE, neither passed nor failed" in found.stdout
    refused = place.gate("accept")
    assert refused.returncode == EXIT_USAGE
    assert "cannot be compared" in refused.stderr and "The reference stays as it is." in refused.stderr
    assert len(place.references()) == 1
    assert place.gate("accept", "--replace").returncode == 0
    assert len(place.references()) == 2
    assert place.gate("--measured").returncode == 0


def test_what_is_slower_fails_though_something_else_cannot_be_compared(place):
    place.put("reference", [anchor(), case(), case(kernel="other")])
    elsewhere = case(kernel="other", clock="graph_events")
    place.to_come = [[anchor(), case(SLOW), elsewhere], [case(SLOW)]]
    assert place.gate().returncode == EXIT_FOUND


def test_an_improvement_is_offered_and_accepting_it_raises_the_bar(place):
    place.put("reference", [anchor(), case()])
    place.to_come = [[anchor(), case(FAST)], [case(FAST)]]
    found = place.gate()
    assert found.returncode == 0
    assert "`attnbench gate accept` raises the reference" in found.stdout
    assert "10.0 % faster, the new reference" in place.gate("accept").stdout
    place.to_come = [[anchor(), case()], [case()]]
    assert place.gate().returncode == EXIT_FOUND  # what was good enough before
    refused = place.gate("accept")
    assert refused.returncode == EXIT_USAGE
    assert "is slower" in refused.stderr


def test_nothing_to_raise_writes_nothing(place):
    place.put("reference", [anchor(), case()])
    place.put("gate", [anchor(), case()])
    found = place.gate("accept")
    assert found.returncode == 0
    assert "nothing to raise" in found.stdout
    assert len(place.references()) == 1


def test_deciding_on_what_was_measured_measures_nothing(place):
    place.put("reference", [anchor(), case()])
    place.put("gate", [anchor(), case(SLOW)])
    found = place.gate("--measured")
    assert found.returncode == EXIT_PENDING
    assert "UNDECIDED: 1 again" in found.stdout
    assert not place.measured


def test_a_torn_reference_stops_it_with_the_files_name(place):
    place.put("reference", [anchor(), case()])
    torn = place.put("reference", [anchor(), case()])
    torn.write_text(torn.read_text()[:200])
    place.to_come = [[anchor(), case()]]
    found = place.gate()
    assert found.returncode == EXIT_USAGE
    assert torn.name in found.stderr and "torn" in found.stderr


@pytest.mark.parametrize(
    ("ended", "code"), [(1, EXIT_FOUND), (2, EXIT_USAGE), (3, EXIT_MACHINE), (-9, EXIT_MACHINE)]
)
def test_benchmarks_that_save_nothing_end_it(place, ended, code):
    place.put("reference", [anchor(), case()])
    place.put("gate", [anchor(), case()])  # of a day before: no decision is made on that
    place.to_come = [ended]
    found = place.gate()
    assert found.returncode == code
    assert "above" in found.stderr
    assert not found.stdout


def test_json_is_json_alone_on_standard_output(place, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place.path / "summary.md"))
    place.put("reference", [anchor(), case()])
    place.to_come = [[anchor(), case(SLOW)], [case(SLOW)]]
    found = place.gate("--json", "--github")
    assert json.loads(found.stdout)["cases"][1]["outcome"] == "slower"
    assert "::error file=kernels/mine/attention.py,title=Gate%3A slower::" in found.stderr
    assert "### Gate FAILED" in (place.path / "summary.md").read_text()


def test_annotations_are_for_github_only(place, monkeypatch):
    place.put("reference", [anchor(), case()])
    place.put("gate", [anchor()], {OWN: "crash: it died"})
    assert "::error" not in place.gate("--measured").stdout
    assert "::error" in place.gate("--measured", "--github").stdout
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::error" in place.gate("--measured").stdout
    assert "::error" not in place.gate("--measured", "--no-github").stdout


def test_a_file_that_cannot_be_written_is_named(place):
    place.put("reference", [anchor(), case()])
    place.put("gate", [anchor(), case()])
    found = place.gate("--measured", "--junit", "not/there/gate.xml")
    assert found.returncode == 4
    assert "not/there/gate.xml" in found.stderr


def test_an_experiment_that_cannot_be_is_refused_before_anything_is_measured(place):
    found = place.gate("--anchor", "nobody")
    assert found.returncode == EXIT_USAGE
    assert "anchor: 'nobody' is not among the baselines: sdpa-flash" in found.stderr
    assert not place.measured


def test_without_a_checkout_it_says_where_the_benchmarks_are(place, monkeypatch, tmp_path):
    monkeypatch.setattr(gate_commands, "BENCHMARKS", tmp_path / "nowhere.py")
    found = place.gate()
    assert found.returncode == EXIT_MACHINE
    assert "checkout" in found.stderr


@pytest.fixture
def mine(place):
    """A kernel of one's own, whose sources of now a reference was made of."""
    candidate(place.path, "mine", GOOD)
    manifest = read_candidate(place.path / "kernels" / "mine")
    place.to_come = [[anchor(), case(sha256=manifest.sha256)]] * RULE.reference
    made = place.gate("--candidates", "kernels", "--reference")
    assert made.returncode == 0, made.stderr
    assert place.before == [{}] * RULE.reference
    place.before.clear()
    return manifest


def kept(place):
    return Kernels(place.path / ".benchmarks")


def test_a_kernel_that_changed_is_measured_beside_what_it_was_and_an_unchanged_one_is_not(place, mine):
    same = case(sha256=mine.sha256)
    place.to_come = [[anchor(), same]]
    assert place.gate("--candidates", "kernels").returncode == 0
    assert place.before == [{}]
    candidate(place.path, "mine", GOOD + "# slower\n")
    slow = beside(SLOW)
    slow = slow.model_copy(update={"old": slow.old.model_copy(update={"sha256": mine.sha256})})
    place.to_come = [[anchor(), slow], [slow]]
    found = place.gate("--candidates", "kernels")
    assert found.returncode == EXIT_FOUND
    assert "slower than its old self, measured side by side with it" in found.stdout
    assert place.measured[-1] == ("again", [OWN])
    assert (
        place.before[1] == place.before[2] == {OWN: kept(place).folder / mine.sha256}
    )  # a repeat has it too
    assert read_candidate(place.before[1][OWN]).files == mine.files


def test_a_damaged_copy_of_the_old_sources_is_said_and_not_used(place, mine):
    (kept(place).folder / mine.sha256 / "attention.py").write_text("gone")
    candidate(place.path, "mine", GOOD + "# slower\n")
    place.to_come = [[anchor(), case(SLOW)], [case(SLOW)]]
    found = place.gate("--candidates", "kernels")
    assert place.before[0] == {}
    assert f"{mine.sha256} is damaged and not used" in found.stderr
    assert found.returncode == EXIT_FOUND
    assert "By the stored measurement" in found.stdout


def test_accepting_keeps_the_sources_that_were_measured_whatever_lies_there_now(place, mine):
    candidate(place.path, "mine", GOOD + "# faster\n")
    fast = read_candidate(place.path / "kernels" / "mine")
    place.to_come = [[anchor(), case(FAST, sha256=fast.sha256)]] * 2
    assert place.gate("--candidates", "kernels").returncode == 0
    candidate(place.path, "mine", GOOD + "# yet another\n")
    assert place.gate("accept").returncode == 0
    place.to_come = [[anchor(), case(FAST, sha256="9" * 64)]]
    place.gate("--candidates", "kernels")
    assert place.before[-1] == {OWN: kept(place).folder / fast.sha256}


def test_sources_that_cannot_be_kept_end_it_before_anything_is_measured(place):
    (place.path / ".benchmarks").mkdir()
    (place.path / ".benchmarks" / "kernels").write_text("in the way")
    found = place.gate()
    assert found.returncode == EXIT_STORE
    assert "kernels" in found.stderr
    assert not place.measured


def test_against_a_folder_no_reference_is_needed_and_only_what_differs_is_measured(place):
    candidate(place.path, "mine", GOOD + "# slower\n")
    candidate(place.path, "same", GOOD)
    candidate(place.path, "new", GOOD + "# new\n")
    for name in ("mine", "same"):
        candidate(place.path / "base", name, GOOD)
    place.to_come = [[anchor(), beside(SLOW), case(kernel="new")], [beside(SLOW)]]
    found = place.gate("--candidates", "kernels", "--against", "base/kernels")
    assert found.returncode == EXIT_FOUND, found.stderr
    assert found.stdout.splitlines()[-1] == "FAILED: 1 slower, 1 new"
    assert {id_.rpartition("/")[2] for id_ in place.before[0]} == {"mine"}
    assert set(place.before[0].values()) == {place.path / "base" / "kernels" / "mine"}
    place.to_come = [[anchor(), beside(1.0)]]
    assert place.gate("--candidates", "kernels", "--against", "base/kernels").returncode == 0
    assert "nothing was measured" in place.gate("accept").stderr  # a part of the kernels is no reference


def test_against_the_same_kernels_there_is_nothing_to_measure(place):
    candidate(place.path, "mine", GOOD)
    found = place.gate("--candidates", "kernels", "--against", "kernels", "--junit", "gate.xml")
    assert found.returncode == 0
    assert "nothing to measure" in found.stderr
    assert found.stdout.splitlines()[-1] == "passed: no cases"
    assert not place.measured
    assert (place.path / "gate.xml").exists()


def test_against_what_is_no_kernel_and_with_a_reference_is_wrong_input(place):
    assert place.gate("--against", "nowhere").returncode == EXIT_USAGE
    assert place.gate("--against", "nowhere", "--reference").returncode == EXIT_USAGE
    assert not place.measured


@pytest.mark.slow
@pytest.mark.corpus  # a run of many workers
@pytest.mark.timeout(900)  # beside other work on two cores it took three minutes
def test_the_whole_way_with_real_kernels(tmp_path, monkeypatch):
    """Measured, accepted, compared; then one kernel is broken and one new."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the device's lock lies there: others may measure
    candidate(tmp_path, "good", RIGHT)
    (tmp_path / "mine.toml").write_text(
        'target = "cpu"\ntasks = "mha_causal"\nworkloads = "smoke"\nbaselines = "sdpa-flash"\nanchor = "sdpa-flash"\n'
        f'candidates = "{tmp_path / "kernels"}"\n'
        "sampling = { half_width = 0.5, time_cap_s = 0.3, block_ms = 5, min_rounds = 4, max_rounds = 6 }\n"
    )
    options = ("--experiment", "mine.toml", *(() if SANDBOX else ("--no-sandbox",)))
    monkeypatch.setattr(gate_commands, "RULE", Rule(most=1, reference=1))
    found = attnbench("gate", *options, "--reference", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    file = next((tmp_path / ".benchmarks").glob("*/0001_gate-cpu.json"))
    data = json.loads(file.read_text())
    assert "node" not in data["machine_info"]
    assert len(data["benchmarks"]) == 6
    for benchmark in data["benchmarks"]:
        told = benchmark["extra_info"]["attnbench"]
        assert benchmark["options"]["timer"] == "attnbench"
        # pytest-benchmark has medians of blocks, what is told is the median of all calls: it lies among them.
        told_s = told["time_ms"] / 1e3
        assert 0.999 * benchmark["stats"]["min"] <= told_s <= 1.001 * benchmark["stats"]["max"]
    candidate(tmp_path, "good", "def attention(q, k, v, out, *, scale):\n    out.zero_()\n")
    found = attnbench("gate", *options, "--json", cwd=tmp_path)
    assert found.returncode == EXIT_FOUND
    missing = [c for c in json.loads(found.stdout)["cases"] if c["outcome"] == "missing"]
    assert len(missing) == 3
    assert all("wrong_numerics" in c["sentence"] for c in missing)


OFTEN = RIGHT.replace(
    "    out.copy_", "    for _ in range(20):\n        torch.softmax(s, -1) @ v\n    out.copy_"
)


@pytest.mark.slow
@pytest.mark.corpus  # a run of many workers
@pytest.mark.timeout(900)
def test_a_real_kernel_that_became_slower_is_caught_beside_what_it_was(tmp_path, monkeypatch):
    """The stored measurement says nothing here: it is a hundred times too slow, of another machine."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the device's lock lies there: others may measure
    candidate(tmp_path, "good", RIGHT)
    (tmp_path / "mine.toml").write_text(
        'target = "cpu"\ntasks = "mha_causal"\nworkloads = "smoke"\nbaselines = "sdpa-flash"\nanchor = "sdpa-flash"\n'
        f'candidates = "{tmp_path / "kernels"}"\n'
        "sampling = { half_width = 0.2, time_cap_s = 8, block_ms = 5, min_rounds = 10, max_rounds = 20 }\n"
    )
    options = ("--experiment", "mine.toml", *(() if SANDBOX else ("--no-sandbox",)))
    monkeypatch.setattr(gate_commands, "RULE", Rule(reference=1, most=1))
    found = attnbench("gate", *options, "--reference", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    file = next((tmp_path / ".benchmarks").glob("*/*_reference-cpu.json"))
    data = json.loads(file.read_text())
    for benchmark in data["benchmarks"]:
        told = benchmark["extra_info"]["attnbench"]
        told["machine"]["device"] = "another"
        for end in ("median", "low", "high"):
            told["ratio"][end] /= 1 if told["kernel"] == "sdpa-flash" else 100
    file.write_text(json.dumps(data))
    candidate(tmp_path, "good", OFTEN)
    monkeypatch.setattr(gate_commands, "RULE", Rule(most=2))
    found = attnbench("gate", *options, "--json", cwd=tmp_path)
    assert found.returncode == EXIT_FOUND, found.stdout + found.stderr
    cases = json.loads(found.stdout)["cases"]
    assert not [c for c in cases if "@" in c["case"]]
    slower = [c for c in cases if c["outcome"] == "slower"]
    assert slower
    for found_case in slower:
        assert found_case["side_by_side"] and "measured side by side" in found_case["sentence"]
        assert found_case["measured"]["old"]["sha256"] == found_case["reference"]["sha256"]
        # The direct interval, and the two ratios over the anchor, say the same.
        old, speed = found_case["measured"]["old"], found_case["measured"]["old"]["speed"]["median"]
        quotient = found_case["measured"]["ratio"]["median"] / old["anchored"]["median"]
        assert 0.5 < speed / quotient < 2
    saved = [json.loads(f.read_text()) for f in (tmp_path / ".benchmarks").glob("*/*.json")]
    names = [b["name"] for one in saved for b in one["benchmarks"]]
    assert names and not [name for name in names if "@" in name]


def candidate(tmp_path, name, source):
    folder = tmp_path / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "candidate.toml").write_text('task = "mha_causal"\nbackend = "torch"\n')
    (folder / "attention.py").write_text(source)
