"""Kernels that work when they are looked at and not when they are timed, or that bend the clock."""

from __future__ import annotations

import pytest

from harness.verdicts import Verdict
from tests.conftest import needs_sandbox
from tests.hacks.corpus import hacks_of
from tests.hacks.ground import Aftermath, run

HACKS = hacks_of("timing")
HONEST = ("honest_early", "honest_late")
pytestmark = pytest.mark.timeout(900)  # one run of all of them, on a machine that may be busy


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    return run(tmp_path_factory.mktemp("timing"), HACKS, HONEST)


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
def test_a_kernel_that_cheats_the_clock_gets_its_verdict(aftermath, hack):
    assert aftermath.fault(hack) == ""


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", [*HONEST, "naive"])
def test_an_honest_kernel_among_them_is_ok(aftermath, name):
    for result in aftermath.all_of(name):
        assert result.verdict is Verdict.OK, result.reason


@needs_sandbox
@pytest.mark.slow
def test_nothing_of_them_is_left(aftermath):
    assert aftermath.processes == ()
    assert aftermath.changed == ()
    assert aftermath.written == ()
    assert aftermath.leaked == ()
