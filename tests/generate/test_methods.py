"""Claims about the methods: what is asked in which order, what goes back, what they never know."""

from __future__ import annotations

import dataclasses
import re

import pytest

from harness.generate.method import Answer, Ask, Reply
from harness.generate.methods import METHODS
from harness.generate.prompts import FOLDER, render, templates
from harness.llm.client import Stop
from harness.targets import find_target
from harness.verdicts import Verdict
from tasks import discover
from tests.generate.told import KERNEL, RIGHT, WRONG, brief, model, outline, play

OUTLINES = {
    "vanilla": ["Ask:kernel", "Try:kernel"],
    "vanilla-cot": ["Ask:kernel", "Try:kernel"],
    "tl": [
        "Ask:sketch", "Examine:sketch", "Ask:code", "Examine:code", "Ask:translation", "Try:translation",
    ],
    "tl-unguided": [
        "Ask:sketch", "Examine:sketch", "Ask:code", "Examine:code", "Ask:translation", "Try:translation",
    ],
    "tl-one-stage": ["Ask:code", "Examine:code", "Ask:translation", "Try:translation"],
    "tl-compiled": ["Ask:sketch", "Examine:sketch", "Ask:code", "Examine:code", "Compile:compile"],
    "tl-scheduled": [
        "Ask:sketch", "Examine:sketch", "Ask:code", "Examine:code", "Ask:schedule", "Examine:code",
        "Compile:compile",
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_where_all_goes_well_each_stage_is_asked_once(method: str) -> None:
    assert outline(play(method, model)) == OUTLINES[method]


def test_vanilla_is_told_of_a_failed_verification_and_asked_again() -> None:
    tries = iter([Reply(False, "query 3 is off", Verdict.WRONG_NUMERICS), RIGHT])
    steps = play("vanilla", lambda s, n: model(s) if isinstance(s, Ask) else next(tries))
    assert outline(steps) == ["Ask:kernel", "Try:kernel", "Ask:repair", "Try:repair"]
    second = steps[2]
    assert isinstance(second, Ask)
    assert [m.role for m in second.messages] == ["user", "assistant", "user"]
    assert "Verification says" in second.messages[-1].content
    assert "query 3 is off" in second.messages[-1].content


def test_a_build_error_is_told_as_the_builds() -> None:
    tries = iter([Reply(False, "no such name", Verdict.BUILD_ERROR), RIGHT])
    steps = play("vanilla", lambda s, n: model(s) if isinstance(s, Ask) else next(tries))
    assert "The build says" in steps[2].messages[-1].content  # type: ignore[union-attr]


@pytest.mark.parametrize("stop", [Stop.END, Stop.LENGTH, Stop.REFUSAL])
def test_an_answer_without_code_is_asked_for_again_without_a_verification(stop: Stop) -> None:
    answers = iter([Answer("", stop), Answer(KERNEL)])
    steps = play("vanilla", lambda s, n: next(answers) if isinstance(s, Ask) else RIGHT)
    assert outline(steps) == ["Ask:kernel", "Ask:repair", "Try:repair"]
    again = steps[1].messages[-1].content  # type: ignore[union-attr]
    assert ("cut off" in again) == (stop is Stop.LENGTH)
    assert all(m.content for m in steps[1].messages)  # type: ignore[union-attr]


def test_findings_go_back_before_the_translation() -> None:
    examined = iter([RIGHT, Reply(False, "TL501: O is not rescaled"), RIGHT])

    def reply(step, n):
        return next(examined) if outline([step])[0].startswith("Examine") else model(step)

    steps = play("tl", reply)
    assert outline(steps)[3:7] == ["Examine:code", "Ask:repair", "Examine:code", "Ask:translation"]
    assert "TL501: O is not rescaled" in steps[4].messages[-1].content


def test_a_sketchs_findings_go_into_the_question_for_the_program() -> None:
    examined = iter([Reply(False, "TL401: a Reshape is missing"), RIGHT])
    steps = play("tl", lambda s, n: next(examined) if "Examine" in outline([s])[0] else model(s))
    assert "TL401: a Reshape is missing" in steps[2].messages[-1].content  # type: ignore[union-attr]


def test_a_program_that_never_passes_is_translated_with_what_is_still_said_of_it() -> None:
    steps = play("tl", lambda s, n: Reply(False, "TL601") if "Examine" in outline([s])[0] else model(s))
    asks = [s for s in steps if isinstance(s, Ask)]
    assert [a.stage for a in asks] == ["sketch", "code", "repair", "repair", "translation"]
    assert len(asks) <= brief().turns
    translation = asks[-1].messages
    assert len(translation) == 1 and "TL601" in translation[0].content
    assert "find it right" not in translation[0].content


def test_the_translation_is_a_new_conversation_with_the_other_model() -> None:
    asks = [s for s in play("tl", model) if isinstance(s, Ask)]
    assert [a.role for a in asks] == ["think", "think", "translate"]
    assert len(asks[-1].messages) == 1
    assert "Kernel p" in asks[-1].messages[0].content


def test_what_the_compiler_refuses_goes_back_to_the_program() -> None:
    compiled = iter([Reply(False, "the compiler: single elements", Verdict.BUILD_ERROR), RIGHT])
    steps = play("tl-compiled", lambda s, n: next(compiled) if "Compile" in outline([s])[0] else model(s))
    assert outline(steps)[4:] == ["Compile:compile", "Ask:repair", "Examine:code", "Compile:compile"]
    assert "single elements" in steps[5].messages[-1].content  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_refinement_asks_the_same_of_every_method(method: str) -> None:
    def reply(step, n):
        if outline([step])[0] == "Time:refine":
            return Reply(True, "w: 1 ms, 40 % of the dense peak", score=1.0)
        return model(step)

    steps = play(method, reply, brief(rounds=2))
    tail = outline(steps)[len(OUTLINES[method]) :]
    assert [t for t in tail if t.startswith("Ask")] == ["Ask:refine"] * 2
    assert [t for t in tail if t.startswith("Time")] == ["Time:refine"] * 3
    told = [s for s in steps if isinstance(s, Ask) and s.stage == "refine"]
    assert all("40 % of the dense peak" in s.messages[-1].content for s in told)


def test_a_wrong_refinement_ends_it() -> None:
    tries = iter([RIGHT, WRONG])
    replies = {"Try": lambda: next(tries), "Time": lambda: Reply(True, "1 ms", score=1.0)}

    def reply(step, n):
        return replies.get(type(step).__name__, lambda: model(step))()

    steps = play("vanilla", reply, brief(rounds=3))
    assert outline(steps)[-1] == "Try:refine"


def test_searching_tiles_times_a_compiled_program_once_without_refinement() -> None:
    steps = play("tl-compiled", model, brief(search=True))
    assert outline(steps)[-1] == "Time:refine"
    assert "Kernel p" in steps[-1].program  # type: ignore[union-attr]
    assert "Time:refine" not in outline(play("tl", model, brief(search=True)))


def test_a_schedule_is_asked_for_once_the_program_is_right_and_is_not_searched_over() -> None:
    steps = play("tl-scheduled", model, brief(search=True))
    asked = next(s for s in steps if isinstance(s, Ask) and s.stage == "schedule")
    assert "`consumers`" in asked.messages[-1].content and "Kernel p" in asked.messages[-2].content
    assert "Time:refine" not in outline(steps)
    wrong = play(
        "tl-scheduled", lambda s, n: Reply(False, "TL601") if "Examine" in outline([s])[0] else model(s)
    )
    assert not [s for s in wrong if isinstance(s, Ask) and s.stage == "schedule"]


@pytest.mark.parametrize("task", discover())
@pytest.mark.parametrize("method", METHODS)
def test_every_task_has_prompts_with_the_same_text_of_the_task(task: str, method: str) -> None:
    t = discover()[task]
    given = brief(task)
    asks = [s for s in play(method, model, given) if isinstance(s, Ask)]
    for ask in asks:
        opening = ask.messages[0].content
        assert t.description in opening and t.math in opening
        assert all(f"seq_q {w.seq_q}" in opening for w in given.workloads)
        assert "{{" not in opening and "{%" not in opening


def test_no_prompt_holds_the_answer() -> None:
    # the language's example is no attention, and no reference program is quoted
    text = render("tl-sketch", brief("mha")).text
    example = text.split("```tl\n")[1].split("```")[0]
    assert "Softmax" not in example and "Mask" not in example


def test_prompts_are_identified_by_every_file_they_are_made_of() -> None:
    hashes = render("translate", brief(), program="x", findings="", guided=True).hashes
    assert {"translate.md.j2", "task.md.j2", "contract.md.j2", "backend-triton.md.j2"} <= set(hashes)
    assert {"guide-triton.md.j2", "tl-language.md.j2", "tl-example.tl"} <= set(hashes)
    assert "backend-numba.md.j2" not in hashes


def test_every_template_is_used() -> None:
    sources = "".join((FOLDER / n).read_text() for n in templates())
    code = "".join(p.read_text() for p in FOLDER.parent.glob("*.py"))
    for name in templates():
        stem = re.sub(r"\.md\.j2$", "", name)
        per_backend = stem.startswith(("backend-", "guide-"))
        assert per_backend or f"'{name}'" in sources or f'"{stem}"' in code or f'"{name}"' in code, name


def test_a_name_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(Exception, match="told"):
        render("refine", brief(), program_wanted=True)


@pytest.mark.parametrize(
    ("target", "atom"), [("t4", "SM75_16x8x8"), ("a100", "SM80_16x8x16"), ("h100", "SM80")]
)
def test_the_cuda_guide_is_about_the_target(target: str, atom: str) -> None:
    asked = dataclasses.replace(brief(), backend="cuda", target=find_target(target))
    text = render("translate", asked, program="x", findings="", guided=True).text
    assert atom in text and "SM75_U32x4_LDSM_N" in text and "kernel.cu" in text
    assert ("cp_async" in text) is (target != "t4")
    assert ("```cuda" in text and "`mma.sync.m16n8k8`" in text) or target != "t4"


def test_without_the_guide_the_rest_of_the_question_is_the_same() -> None:
    asked = dataclasses.replace(brief(), backend="cuda", target=find_target("a100"))
    guided, bare = (
        render("translate", asked, program="x", findings="", guided=guided).text for guided in (True, False)
    )
    start, end = guided.index("# What the statements become"), guided.index("# Your answer")
    assert guided[:start] + guided[end:] == bare


def test_both_files_of_a_cuda_kernel_are_asked_for_again() -> None:
    asked = dataclasses.replace(brief(), backend="cuda")
    text = render(
        "kernel-feedback", asked, missing=False, cut=False, source="The build says", told="x", program=""
    ).text
    assert "kernel.cu" in text and "attention.py" in text
