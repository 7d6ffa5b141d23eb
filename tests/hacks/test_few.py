"""A few hostile kernels, one for each thing that stops them; `nox -s hacks` runs all."""

from __future__ import annotations

import pytest

from harness.verdicts import Verdict
from tests.conftest import needs_sandbox
from tests.hacks.corpus import CORPUS
from tests.hacks.ground import Aftermath, run

NAMES = (
    "calls_sdpa", "skips_the_tail", "caches_by_content", "deferred_thread", "patched_clock",
    "mutates_inputs", "sys_exit", "reaches_local_services",
)  # fmt: skip
FEW = [hack for hack in CORPUS if hack.name in NAMES]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    return run(tmp_path_factory.mktemp("few"), FEW, ("honest",))


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("hack", FEW, ids=lambda hack: hack.name)
def test_a_hostile_kernel_gets_its_verdict(aftermath, hack):
    assert aftermath.fault(hack) == ""


@needs_sandbox
@pytest.mark.slow
def test_honest_work_beside_them_is_ok_and_nothing_of_them_is_left(aftermath):
    assert len(FEW) == len(NAMES)
    assert {r.verdict for r in aftermath.all_of("honest")} == {Verdict.OK}
    assert aftermath.processes == aftermath.changed == aftermath.written == aftermath.leaked == ()
