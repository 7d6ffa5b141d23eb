"""Every second of a run belongs to exactly one stage."""

import pytest

from harness.ledger import WORKING, Ledger


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when told: clock(seconds)."""
    now = [100.0]
    monkeypatch.setattr("harness.ledger.time.monotonic", lambda: now[0])

    def go_on(seconds):
        now[0] += seconds

    return go_on


def test_a_stage_counts_the_time_inside_it_and_the_rest_is_other(clock):
    ledger = Ledger()
    clock(1)
    with ledger.stage("build"):
        clock(2)
    clock(4)
    with ledger.stage("build"):
        clock(8)
    wall, stages, _ = ledger.totals()
    assert wall == 15
    assert stages == {"build": 10, "other": 5}


def test_the_time_of_an_inner_stage_is_not_counted_twice(clock):
    ledger = Ledger()
    with ledger.stage("verify"):
        clock(1)
        with ledger.stage("compile and plan"):
            clock(2)
            with ledger.stage("verify"):
                clock(4)
        clock(8)
    wall, stages, _ = ledger.totals()
    assert stages == {"verify": 13, "compile and plan": 2, "other": 0}
    assert sum(stages.values()) == wall == 15


def test_a_stage_that_raises_ends_all_the_same(clock):
    ledger = Ledger()

    def work():
        with ledger.stage("timing"), ledger.stage("transfer"):
            clock(3)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        work()
    clock(5)
    assert ledger.totals()[1] == {"other": 5, "transfer": 3, "timing": 0}


def test_only_verifying_and_timing_count_as_work(clock):
    ledger = Ledger()
    for seconds, stage in enumerate(("oracle", "verify", "timing", "transfer", "worker start"), 1):
        with ledger.stage(stage):
            clock(seconds)
    assert {"oracle", "verify", "timing"} == WORKING
    assert ledger.totals()[2] == 1 + 2 + 3


def test_totals_in_the_middle_of_a_stage_include_it_and_time_goes_on(clock):
    ledger = Ledger()
    with ledger.stage("timing"):
        clock(1)
        assert ledger.totals() == (1, {"timing": 1, "other": 0}, 1)
        clock(2)
    assert ledger.totals() == (3, {"timing": 3, "other": 0}, 3)


def test_the_longest_stage_comes_first(clock):
    ledger = Ledger()
    for seconds, stage in ((1, "short"), (3, "long"), (2, "middle")):
        with ledger.stage(stage):
            clock(seconds)
    assert list(ledger.totals()[1]) == ["long", "middle", "short", "other"]
