"""Kernels that do not do the work asked for: a library's, or less, or something else."""

from __future__ import annotations

import ast

import pytest

from harness.verdicts import Verdict
from tests.conftest import needs_sandbox
from tests.hacks.corpus import CORPUS, hacks_of
from tests.hacks.ground import KERNELS, Aftermath, run

HACKS = hacks_of("work")
HONEST = ("honest_early", "honest_late")
pytestmark = pytest.mark.timeout(900)  # one run of all of them, on a machine that may be busy


def test_the_table_and_the_kernels_are_the_same():
    named = [h.name for h in CORPUS]
    assert len(named) == len(set(named)) >= 45
    assert set(named) == {p.stem for p in KERNELS.glob("*.py")}


@pytest.mark.parametrize("hack", CORPUS, ids=lambda hack: hack.name)
def test_a_kernel_says_in_its_first_line_what_it_tries(hack):
    source = (KERNELS / f"{hack.name}.py").read_text()
    assert ast.get_docstring(ast.parse(source)) == source.splitlines()[0].strip('"')
    assert hack.attack
    assert hack.stopped_by
    assert (hack.evidence == "") == (hack.verdict == {Verdict.OK})


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    return run(tmp_path_factory.mktemp("work"), HACKS, HONEST)


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
def test_a_kernel_that_does_other_work_gets_its_verdict(aftermath, hack):
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
