"""Every job of a crew gets its own answer, whatever others do to their processes; what is later uses the same ones."""

from __future__ import annotations

import os
import time

import pytest

from harness.crew import MOST, Crew, LostDevice, processes

_BEFORE: list[str] = []


def do(job: str) -> str:
    """Played in a member; what it did before tells whether its process is a new one."""
    _BEFORE.append(job)
    if job == "hangs":
        time.sleep(60)
    if job == "dies":
        os._exit(7)
    if job == "loses":
        raise LostDevice("illegal address")
    return {"fails": "it spills", "who": str(os.getpid()), "before": " ".join(_BEFORE)}.get(job, "")


def test_each_job_has_its_answer_in_order() -> None:
    told: list[int] = []
    with Crew(do, 2) as crew:
        jobs = ["ok", "fails", "ok", "ok", "fails"]
        assert crew.answers(jobs, told.append) == ["", "it spills", "", "", "it spills"]
    assert told == [1, 2, 3, 4, 5]


def test_who_hangs_dies_or_loses_the_device_answers_for_itself_alone() -> None:
    """One process: what comes after has a new one, so nobody inherits a dead device."""
    with Crew(do, 1, patience_s=8.0) as crew:
        answers = crew.answers(["ok", "loses", "before", "dies", "before", "hangs", "before", "fails"])
    assert answers == ["", "illegal address", "before", "its process ended, exit code 7", "before",
                       "no answer within 8 s", "before", "it spills"]  # fmt: skip


def test_processes_stay_for_later_jobs_and_end_with_the_crew() -> None:
    with Crew(do, 1) as crew:
        (first,), (second,) = crew.answers(["who"]), crew.answers(["who"])
        assert first == second
    with pytest.raises(ProcessLookupError):
        os.kill(int(first), 0)


def test_there_are_as_many_as_there_is_room_for() -> None:
    assert [processes(n) for n in (1, 2, 16, 500)] == [1, 1, 14, MOST]
    assert Crew(do).answers([]) == []
