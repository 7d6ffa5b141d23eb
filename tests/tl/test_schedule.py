"""A schedule is a part of a choice and of the program's line, never of the meaning; what it takes is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.targets import TARGETS
from harness.tl.batch import Batch
from harness.tl.channels import Kind, channels
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from harness.tl.diagnostics import Severity
from harness.tl.format import format_program
from harness.tl.interpret import interpret
from harness.tl.parse import parse
from harness.tl.roles import RoleDemand
from harness.tl.schedule import Schedule, asks_for_roles
from harness.tl.space import pruned
from harness.verify.inputs import make_inputs
from tasks import find

PROGRAMS = {e.name: e for e in corpus() if not e.name.startswith("sketch")}
REF = "reference/mha_causal"

SCHEDULES = st.builds(
    Schedule,
    consumers=st.integers(1, 4),
    stages=st.integers(1, 8),
    overlap=st.integers(0, 1),
    pingpong=st.integers(0, 1),
    persistent=st.integers(0, 2),
    longest_first=st.integers(0, 1),
    heads=st.integers(0, 64),
    registers=st.sampled_from((0, 24, 160, 240)),
    q_stages=st.integers(1, 2),
    ahead=st.integers(0, 1),
    carry=st.integers(0, 1),
    arrivals=st.integers(0, 1),
    reuse=st.integers(0, 1),
)


def with_line(name: str, line: str, *edits: str) -> str:
    """A program of the corpus with that schedule for its own."""
    text = "\n".join(x for x in PROGRAMS[name].text.split("\n") if not x.startswith("Schedule"))
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in text
        text = text.replace(old, new, 1)
    return f"{text.rstrip()}\n\nSchedule {line}\n"


def program_of(name: str, line: str, *edits: str):
    report = check(with_line(name, line, *edits), find(PROGRAMS[name].task))
    assert report.program is not None, report.findings
    return report.program


def line_of(s: Schedule) -> str:
    """The schedule as a program writes it."""
    words = {
        "consumers": s.consumers,
        "stages": s.stages,
        "overlap": ("off", "on")[s.overlap],
        "pingpong": ("false", "true")[s.pingpong],
        "persistent": ("false", "static", "dynamic")[s.persistent],
        "order": ("linear", "longest_first")[s.longest_first],
        "heads": s.heads,
        "q_stages": s.q_stages,
        "ahead": ("off", "on")[s.ahead],
        "carry": ("off", "on")[s.carry],
        "arrivals": ("off", "on")[s.arrivals],
        "reuse": ("off", "on")[s.reuse],
    }
    return ", ".join(f"{k} {v}" for k, v in words.items()) + (
        f", registers {s.registers}" * bool(s.registers)
    )


# --- as a choice ------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(SCHEDULES, SCHEDULES)
def test_a_schedule_comes_back_from_its_choice_and_from_its_line_and_the_choice_wins(first, second):
    rows = "BM in {64, 128}", "BM in {64, 128, 192, 256}"
    program = program_of(REF, line_of(first), *rows)
    assert Schedule.of(program) == first
    assert Schedule.of(program, second.choice) == second
    assert Schedule.of(program, {"BM": 64, "stages": 5}) == replace(first, stages=5)
    assert all(type(v) is int for v in first.choice.values())


@settings(max_examples=20, deadline=None)
@given(SCHEDULES)
def test_a_line_of_a_schedule_has_one_canonical_form(schedule):
    written = parse(with_line(REF, line_of(schedule)))
    assert parse(format_program(written)) == written
    assert format_program(parse(format_program(written))) == format_program(written)


def test_sets_span_the_schedules_and_words_are_numbers():
    program = program_of(
        REF,
        "consumers in {1, 2}, persistent in {off, true, static}, order in {linear, longest_first}, overlap",
    )
    every = list(Schedule.every(program))
    assert len(every) == len(set(every)) == 2 * 3 * 2
    assert {s.persistent for s in every} == {0, 1, 2} and {s.longest_first for s in every} == {0, 1}
    assert every[0] == Schedule.of(program) == Schedule(consumers=1, persistent=0, longest_first=0)


@pytest.mark.parametrize(
    ("line", "roles"),
    [("consumers 2", True), ("producer", True), ("pingpong", True), ("registers 240", True),
     ("stages 2, overlap", False), ("producer false", False), ("warps 8", False)],
)  # fmt: skip
def test_roles_are_asked_for_by_four_keys(line, roles):
    assert asks_for_roles(program_of(REF, line)) is roles


# --- meaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [REF, "reference/sliding_window", "primitive/gqa_causal"])
def test_a_schedule_changes_nothing_that_the_interpreter_returns(name):
    task = find(PROGRAMS[name].task)
    w = task.workloads["smoke"][0].with_(
        batch=1, heads=2, kv_heads=2 if "mha" in name else 1, seq_q=70, seq_k=90
    )
    inputs = make_inputs(task, w, "normal", 0, "cpu")
    tiles = {"BM": 32, "BN": 32}
    plain = interpret(program_of(name, "stages 2"), task, w, inputs, tiles)
    for schedule in (Schedule(), Schedule(3, 4, 0, 1, 1, 0, 8, 160)):
        by_line = program_of(name, line_of(schedule), "BM in {64, 128}", "BM in {128, 192}")
        for program, choice in ((by_line, tiles), (by_line, {**tiles, **schedule.choice})):
            other = interpret(program, task, w, inputs, choice)
            assert torch.equal(other.outputs["out"], plain.outputs["out"])
            assert other.counts == plain.counts


# --- what it takes ----------------------------------------------------------------------------------------


def taken(schedule: Schedule, dim: int, dim_v: int, columns: int, dtype: str = "fp16"):
    program = program_of(REF, "stages 2")
    values = {"BM": schedule.rows, "BN": columns, "dim": dim, "dim_v": dim_v}
    return RoleDemand(program.kernels[0], schedule, dtype).of(values)


def test_the_register_file_is_shared_out_as_hopper_does():
    split = {n: Schedule(consumers=n) for n in (1, 2, 3, 4)}
    assert {n: (s.consumer_registers, s.producer_registers) for n, s in split.items()} == {
        1: (240, 32), 2: (240, 24), 3: (160, 32), 4: (112, 32)
    }  # fmt: skip
    for s in split.values():
        assert 128 * (s.consumers * s.consumer_registers + s.producer_registers) <= s.pool <= 65_536


def test_shared_memory_is_the_sum_by_channel():
    d128 = taken(Schedule(consumers=2, stages=2), 128, 128, 128)
    assert d128.shared == (
        ("Q", 32768, 1), ("K", 32768, 2), ("V", 32768, 2), ("O out", 32768, 1), ("next tile", 4, 1)
    )  # fmt: skip
    assert d128.barriers == 2 * (2 + 2 + 2 + 1)
    assert d128.shared_bytes == 192 * 1024 + 4 + 14 * 8
    twice = taken(Schedule(consumers=2, stages=2, q_stages=2), 128, 128, 128)
    assert twice.shared[0] == ("Q", 32768, 2) and twice.barriers == 2 * (2 * 2 + 2 + 2 + 1)
    assert d128.shared_bytes + 32768 < twice.shared_bytes <= 227 * 1024
    reused = taken(Schedule(consumers=2, stages=2, reuse=1), 128, 128, 128)
    assert reused.shared == tuple(s for s in d128.shared if s[0] != "O out")
    assert taken(Schedule(reuse=1), 192, 128, 128).shared_bytes <= 227 * 1024  # the first 128 columns of 192
    wider = taken(Schedule(reuse=1), 64, 128, 64)
    assert ("O out", 32768, 1) in wider.shared  # the rows' place is too small
    d64 = taken(Schedule(consumers=3, stages=2, persistent=0), 64, 64, 128)
    assert d64.shared_bytes == (24 + 32 + 32 + 24) * 1024 + 2 * (3 + 2 + 2) * 8
    assert (
        taken(Schedule(), 192, 128, 128).shared_bytes
        > 227 * 1024
        >= taken(Schedule(), 192, 128, 64).shared_bytes
    )


def test_registers_agree_with_the_kernels_that_were_measured():
    """240 and 160 registers did not spill with these tiles; three consumers do not hold dimension 128."""
    assert taken(Schedule(consumers=2), 128, 128, 128).consumer == 64 + 32 + 64 + 4 + 24
    assert not taken(Schedule(consumers=2), 128, 128, 128).spills
    assert taken(Schedule(consumers=3), 64, 64, 128).consumer == 64 + 32 + 32 + 4 + 24
    assert not taken(Schedule(consumers=3), 64, 64, 128).spills
    assert taken(Schedule(consumers=3), 128, 128, 128).spills
    assert taken(Schedule(consumers=4), 64, 64, 64).consumer == 32 + 16 + 32 + 4 + 24
    assert not taken(Schedule(consumers=4), 64, 64, 64).spills  # so says ptxas, and that 128 keys spill
    assert taken(Schedule(consumers=4), 64, 64, 128).spills
    assert taken(Schedule(consumers=4), 128, 128, 64).spills
    assert taken(Schedule(consumers=2), 128, 128, 256).spills
    assert taken(Schedule(consumers=2, overlap=0), 128, 128, 128).consumer == 64 + 64 + 4 + 24


@pytest.mark.parametrize("name", [n for n in PROGRAMS if "cross_two_passes" not in n])
def test_a_channels_place_holds_what_the_interpreter_holds(name, monkeypatch):
    task = find(PROGRAMS[name].task)
    program = check(PROGRAMS[name].text, task).program
    assert program is not None
    w = min(task.workloads["smoke"], key=lambda w: w.seq_q * w.seq_k).with_(batch=1, seq_q=40, seq_k=50)
    held: dict[str, int] = {}
    write = Batch.write

    def record(self, tile, values, *rest):
        held[tile.key] = values.shape[1] * values.shape[2]
        return write(self, tile, values, *rest)

    monkeypatch.setattr(Batch, "write", record)
    choice = {n: v for n, v in {"BM": 16, "BN": 32}.items() if n in dict(program.parameters)}
    interpret(program, task, w, make_inputs(task, w, "normal", 0, "cpu"), choice)
    values = {**program.defaults, **choice, "dim": w.dim, "dim_v": w.dim_v}
    for kernel in program.kernels:
        found = [c for c in channels(kernel, Schedule()) if c.tile is not None]
        assert {c.kind for c in found} >= {Kind.RING, Kind.OUTPUT}
        for channel in found:
            assert channel.place_bytes(values, 2) == held[channel.tile.key] * 2


# --- what the checker says ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_nothing_is_found_in_a_correct_program_that_gets_roles(name):
    literal = check(PROGRAMS[name].text, find(PROGRAMS[name].task)).program
    assert literal is not None
    rows = dict(literal.parameters).get("BM", (64,))[0] // 64 or 1
    lines = [f"consumers {rows}, stages 2", "consumers in {1, 2}, stages in {1, 2}, overlap in {off, on}"]
    for line in lines if name.startswith("reference") else lines[:1]:
        report = check(with_line(name, line), find(PROGRAMS[name].task), target=TARGETS["h100"])
        said = [(f.code, f.message) for f in report.findings if f.severity is not Severity.NOTE]
        assert said == [], said


def test_a_note_shows_what_the_first_choice_takes():
    report = check(with_line(REF, "consumers 2, stages 2, overlap", "BN in {32, 64, 128}", "BN = 128"),
                   find("mha_causal"), target=TARGETS["h100"])  # fmt: skip
    notes = [f.message for f in report.findings if f.code == "TL708"]
    assert len(notes) == 2
    assert "K 32 KB x 2 stages" in notes[1] and "14 barriers 112 B = 192.1 KB" in notes[1]
    assert "scores 64 + S as operand 32 + O 64 + state of rows 4" in notes[1] and "= 188 of 240" in notes[1]


def test_the_space_of_a_line_with_roles_is_its_schedules_with_the_rows_of_their_consumers():
    line = "consumers in {1, 2, 3}, stages in {2, 6}, pingpong in {off, on}"
    program = program_of(REF, line, "BN in {32, 64, 128}", "BN in {64, 128}")
    found = pruned(program, find("mha_causal"), TARGETS["h100"], dims=(128, 128))
    everything = [*found.kept, *(choice for choice, _ in found.dropped)]
    assert len(everything) == 2 * 2 * 2 * 2 and all(c["BM"] == 64 * c["consumers"] for c in everything)
    assert {c["stages"] for c, _ in found.dropped} == {6} and {f.code for _, f in found.dropped} == {"TL705"}
    plain = pruned(program_of(REF, "warps 8"), find("mha_causal"), TARGETS["h100"], dims=(128, 128))
    assert "warps" in plain.kept[0]


def test_without_roles_or_before_hopper_nothing_is_said_of_channels():
    for line, target in (("stages 2", "h100"), ("consumers 2", "a100"), ("consumers 2", None)):
        report = check(with_line(REF, line), find("mha_causal"), target=TARGETS[target] if target else None)
        assert not {f.code for f in report.findings} & {"TL705", "TL706", "TL707", "TL708", "TL905", "TL906"}


def test_what_waits_for_what_is_said():
    copy_k = "    Copy K (BN, dim) in coordinate [L = j] from global to shared\n"
    copy_v = "    Copy V (BN, dim_v) in coordinate [L = j] from global to shared\n"
    edits = (copy_v, "", copy_k, copy_v + copy_k)
    task, h100 = find("mha_causal"), TARGETS["h100"]

    def found(line):
        return [
            f for f in check(with_line(REF, line, *edits), task, target=h100).findings if f.code == "TL905"
        ]

    (deadlock,) = found("consumers 2, stages 1, overlap")
    assert "producer waits for `V[0]` to be released" in deadlock.message
    assert "consumer 1 waits for `K[0]` to be filled" in deadlock.message
    assert found("consumers 2, stages 2, overlap") == found("consumers 2, stages 1, overlap off") == []
