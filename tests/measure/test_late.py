"""Work that goes on after a call has returned is seen by the processor time it takes."""

import subprocess
import sys
import time

import pytest

from harness.measure.late import LATE_MS, LOOKS, late_work_ms
from harness.worker.family import busy


class Worker:
    """Its calls return at once; each leaves `later_ms` of work, and each request `spin_ms` of idle spinning."""

    def __init__(self, later_ms: float, spin_ms: float = 0.0, share: float = 1.0) -> None:
        self.later_ms, self.spin_ms, self.share = later_ms, spin_ms, share
        self.now, self.left, self.used = 0.0, 0.0, 0.0
        self.slope_ms = 0.5

    def ask(self, op, args, *, limit_s):
        assert op == "spin"
        self.left = (self.later_ms * args["iterations"] + self.spin_ms) / 1e3
        return {}

    def busy(self):
        return self.left > 1e-9

    def cpu_ms(self):
        return self.used * 1e3

    def sleep(self, seconds):
        worked = min(self.left, seconds * self.share)
        self.left -= worked
        self.used += worked
        self.now += seconds

    def seen(self):
        return late_work_ms(self, "k", self, clock=lambda: self.now, sleep=self.sleep)


@pytest.mark.parametrize("spin_ms", [0.0, 5.0, 200.0])
def test_an_honest_worker_is_idle_after_its_answer_however_long_a_library_spins(spin_ms):
    assert Worker(0.0, spin_ms).seen() <= 4


@pytest.mark.parametrize("later_ms", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_work_left_for_later_is_seen(later_ms, share):
    assert Worker(later_ms, 3.0, share).seen() > LATE_MS


def test_one_noisy_look_convicts_nobody():
    worker = Worker(0.0)
    asked = []

    def ask(op, args, *, limit_s):
        asked.append(args["iterations"])
        worker.left = 0.3 if len(asked) == 3 else 0.0

    worker.ask = ask
    assert worker.seen() == 0
    assert len(asked) == 1 + 2 * 2 <= 1 + 2 * LOOKS


def test_the_operating_system_tells_who_is_busy():
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    code = "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()"
    working = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(1.0)  # to start
        assert [busy([idle.pid]), busy([working.pid])] == [False, True]
    finally:
        idle.kill()
        working.kill()
        idle.wait()
        working.wait()


def test_a_thread_that_works_in_short_turns_is_seen_though_it_sleeps_at_every_look():
    worker = Worker(0.0)
    worker.busy = lambda: False
    worker.cpu_ms = lambda: worker.now * 300
    assert worker.seen() > LATE_MS


def test_a_watchdog_that_wakes_up_now_and_then_is_no_work():
    worker = Worker(0.0)
    worker.cpu_ms = lambda: 0.1 * (worker.now // 0.02)
    assert worker.seen() <= 1


def test_a_worker_that_is_never_idle_is_late():
    worker = Worker(0.0)
    worker.busy = lambda: True
    worker.cpu_ms = lambda: worker.now * 500  # half of a processor
    assert worker.seen() >= 200
    worker.cpu_ms = lambda: 0.0
    assert worker.seen() == 0  # a machine so busy that it never gets its turn
