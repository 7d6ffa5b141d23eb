"""The soak finds what it looks for, and a short one ends with every verdict right and nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT
from tests.soak import BAD, BAD_SHARE, GROWTH_MIB, Level, Soak, kind_of, lot, wrong_verdicts

TRIALS = 12  # a minute on two cores; 300 take 25, and 11 with --shapes 3


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
def test_a_soak_ends_with_every_verdict_right_and_nothing_left(tmp_path):
    command = [sys.executable, "-m", "tests.soak", "--trials", str(TRIALS), "--out", str(tmp_path / "soak")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert told["problems"] == []
    assert told["trials"] == sum(told["verdicts"].values()) == TRIALS
    assert told["verdicts"]["ok"] == TRIALS - round(BAD_SHARE * TRIALS)


@pytest.mark.parametrize("gpu", [False, True])
def test_three_in_ten_are_bad_and_the_seed_fixes_which(gpu):
    drawn = lot(300, 7, gpu)
    bad = [name for name in drawn if kind_of(name).verdict != "ok"]
    assert len(bad) == 90
    assert len(set(bad)) > 10
    assert drawn == lot(300, 7, gpu) != lot(300, 8, gpu)
    assert all(kind_of(name).fits(gpu) for name in drawn)
    assert {BAD[n].verdict for n in bad} >= {"crash", "timeout", "build_error", "wrong_numerics", "integrity"}


def test_a_wrong_verdict_and_a_lost_result_are_told():
    names = ["plain", "zeros", "raises"]
    told = {"000-plain": [("ok", "")], "001-zeros": [("ok", "")]}
    assert wrong_verdicts(told, names, 1) == [
        "001-zeros: ok, not wrong_numerics: ",
        "002-raises: 0 results, and 1 expected",
    ]


def test_what_is_left_is_told(tmp_path):
    before = Level.now(tmp_path)
    assert Level.now(tmp_path).left(before) == []
    child = subprocess.Popen(["sleep", "60"])
    shared = Path("/dev/shm") / f"attnbench-soak-{os.getpid()}"
    try:
        shared.write_text("x")
        (tmp_path / "left").mkdir()
        with (tmp_path / "left" / "open").open("w"):
            told = " ".join(Level.now(tmp_path).left(before))
    finally:
        child.kill()
        child.wait()
        shared.unlink()
    for word in (f"{child.pid} sleep 60", "descriptors", shared.name, "temporary folder: left"):
        assert word in told
    (tmp_path / "left" / "open").unlink()
    (tmp_path / "left").rmdir()
    assert Level.now(tmp_path).left(before) == []


def test_memory_that_grows_is_told_and_breath_is_not():
    def soak(resident: list[float]) -> Soak:
        return Soak("cpu", 0, len(resident), len(resident), {}, resident_mib=resident)

    assert soak([300 + 2 * n for n in range(60)]).problems == ["the judge's memory grew by 80 MiB"]
    assert soak([300 + 50 * (n % 2) for n in range(60)]).problems == []
    assert soak([200] + [400] * 59).problems == []  # warming up
    assert soak([300, 400]).grown_mib == 0 < GROWTH_MIB
