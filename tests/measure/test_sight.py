"""What the operating system tells of a burst: no work hides in what is taken off as waiting."""

import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.sight import CROWD, Sight, Spell, busiest_ms, crowded, kept_waiting_ms, sight_of

times = st.floats(0, 100)
BEFORE = Sight({1: Spell(5.0, 1.0), 2: Spell(1.0, 0.0)}, Spell(3.0, 2.0), 6.0, 40)


def later(*, one=(0.0, 0.0), two=(0.0, 0.0), own=(0.0, 0.0), ran=None, begun=40):
    """So much more of each: ran, waited."""
    ran = one[0] + two[0] if ran is None else ran
    spells = {1: Spell(5.0 + one[0], 1.0 + one[1]), 2: Spell(1.0 + two[0], two[1])}
    return Sight(spells, Spell(3.0 + own[0], 2.0 + own[1]), 6.0 + ran, begun)


def test_waiting_of_worker_and_judge_is_taken_off():
    after = later(one=(1.0, 4.0), own=(0.5, 2.0))
    assert kept_waiting_ms(8.0, BEFORE, after) == pytest.approx(6.0)
    assert kept_waiting_ms(5.0, BEFORE, after) == pytest.approx(3.5)  # it ran for 1.5 of them


@given(wall=times, one=st.tuples(times, times), two=st.tuples(times, times), own=st.tuples(times, times))
def test_what_is_left_is_all_that_passed_or_no_less_than_all_who_ran(wall, one, two, own):
    off = kept_waiting_ms(wall, BEFORE, later(one=one, two=two, own=own))
    assert 0.0 <= off <= wall
    assert wall - off >= min(wall, one[0] + two[0] + own[0]) - 1e-9


@pytest.mark.parametrize(
    ("what", "after"),
    [
        ("a thread ended", Sight({1: Spell(6.0, 9.0)}, Spell(3.0, 9.0), 7.0, 40)),
        ("something began", later(one=(1.0, 8.0), begun=41)),
        ("it is not told", later(one=(1.0, 8.0), begun=None)),
    ],
)
def test_nothing_is_taken_off_where_a_thread_may_have_come_and_gone(what, after):
    assert kept_waiting_ms(10.0, BEFORE, after) == 0.0, what
    assert kept_waiting_ms(10.0, Sight(), Sight()) == 0.0


def test_work_of_a_thread_that_spins_hides_no_work_of_another():
    """One works for 2 ms; another that spins on the same processor waits meanwhile."""
    after = later(one=(2.0, 2.0), two=(2.0, 2.0))
    assert 4.0 - kept_waiting_ms(4.0, BEFORE, after) >= 2.0
    assert kept_waiting_ms(4.0, BEFORE, later(one=(0.1, 3.9), ran=4.0)) == pytest.approx(0.0)  # in a process


def test_processor_time_of_several_threads_is_no_longer_than_the_time_that_passed():
    assert busiest_ms(BEFORE, later(one=(2.0, 9.0), two=(1.5, 9.0))) == 2.0
    assert busiest_ms(Sight(), Sight()) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_busy_process_runs_and_a_sleeping_one_does_not():
    spin, sleep = (
        subprocess.Popen([sys.executable, "-c", code])
        for code in ("while True: pass", "import time; time.sleep(60)")
    )
    try:
        time.sleep(0.5)
        before = [sight_of([p.pid]) for p in (spin, sleep)]
        time.sleep(0.2)
        after = [sight_of([p.pid]) for p in (spin, sleep)]
    finally:
        spin.kill(), sleep.kill()
        spin.wait(), sleep.wait()
    ran = [b.ran_ms - a.ran_ms for a, b in zip(before, after, strict=True)]
    assert ran[0] > 20 > 5 > ran[1]
    assert busiest_ms(before[0], after[0]) > 20
    gone = sight_of([spin.pid])
    assert gone.begun is None
    assert gone.threads == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thread_that_began_is_noticed():
    before = sight_of([os.getpid()])
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    after = sight_of([os.getpid()])
    assert before.begun is not None and after.begun is not None
    assert after.begun > before.begun
    assert kept_waiting_ms(1000.0, before, after) == 0.0


@pytest.mark.parametrize(
    ("others_ms", "alone"), [(0.0, True), (0.9 * CROWD * 1e4, True), (1.2 * CROWD * 1e4, False)]
)
def test_a_machine_is_crowded_where_others_keep_processors_busy(others_ms, alone):
    """Worker and judge are no others, however long they run; ten seconds, which no step of a clock matters to."""
    after = Sight({}, Spell(0.0), 9000.0, 41, judge_ms=4000.0, busy_ms=500.0 + 13000.0 + others_ms)
    before = Sight({}, Spell(0.0), 0.0, 40, judge_ms=0.0, busy_ms=500.0)
    assert (crowded(1e4, before, after) == 0) == alone


def test_nothing_excuses_where_nothing_is_told():
    assert crowded(1e4, Sight(), Sight(busy_ms=1e5)) == 0
    assert crowded(0.0, Sight(begun=1), Sight(begun=1, busy_ms=1e5)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("whose", ["others", "the worker", "the judge"])
def test_who_keeps_a_processor_busy(whose):
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    pids = [spin.pid] if whose == "the worker" else []
    if whose == "the judge":
        spin.kill(), spin.wait()
    try:
        begin = time.perf_counter()
        before = sight_of(pids)
        while time.perf_counter() < begin + 0.6:
            if whose != "the judge":
                time.sleep(0.05)
        after = sight_of(pids)
        wall_ms = (time.perf_counter() - begin) * 1e3
    finally:
        spin.kill(), spin.wait()
    alone = after.busy_ms - before.busy_ms < 1.2 * wall_ms  # nothing else runs on this machine
    if alone:
        assert (crowded(wall_ms, before, after) > 0) == (whose == "others")
    else:
        assert crowded(wall_ms, before, after) > 0
