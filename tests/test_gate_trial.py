"""The trial of the gate: its slower kernel is made of the example as it is, and its summary counts right."""

from __future__ import annotations

from reports.gate.decision import Outcome
from tests.gate_trial import Comparison, kernels_of, summary, tally
from tests.gates import beside, case


def test_the_slower_kernel_is_the_example_with_more_of_the_same_work_and_the_same_one_differs_in_a_remark(
    tmp_path,
):
    kernels = kernels_of(tmp_path, 6)
    assert len({m.sha256 for m in kernels.values()}) == len(kernels) == 6
    code = {}
    for name, manifest in kernels.items():
        sources = {file: content.decode() for file, content in manifest.files.items()}
        compile(sources["flash.py"], "flash", "exec")
        code[name] = [x for x in sources["kernel.py"].splitlines() if not x.startswith("#")]
    assert code["old.0"] == code["same.0"] == code["old.1"]
    assert "extra=0)" in code["old.0"][-1]
    assert "extra=6)" in code["slower.1"][-1]


def test_the_summary_counts_alarms_and_catches():
    same, caught, missed = Comparison("same", 0), Comparison("slower", 0), Comparison("slower", 0)
    same.see(case(), beside(1.001))
    for _ in range(2):
        caught.see(case(), beside(1 / 1.1, stored=0.8))
    while missed.outcome is Outcome.AGAIN:
        missed.see(case(), beside(1 / 1.1, noise=0.3))
    found = summary([same, caught, missed])
    assert found["same"]["outcomes"] == {"same": 1}
    assert found["same"]["first_looks_slower"] == 0
    assert found["slower"]["outcomes"] == {"slower": 1, "unclear": 1}
    assert found["slower"]["first_looks_slower"] == 1
    assert found["slower"]["looks"] == 6
    assert tally([same, caught, missed]) == "same same 1, slower slower 1, slower unclear 1"
