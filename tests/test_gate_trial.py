"""The trial of the gate: its slower kernel is made of the example as it is, and its summary counts right."""

from __future__ import annotations

from reports.gate.decision import Outcome
from tests.gate_trial import Trial, bundle, slower, summary
from tests.gates import case


def test_the_slower_kernel_is_the_example_with_more_of_the_same_work(tmp_path):
    manifest = bundle(tmp_path / "kernels", (6,))
    sources = {name: content.decode() for name, content in manifest.files.items()}
    assert "extra=0)" in sources["kernel.py"]
    assert "extra=6)" in sources[slower(6)]
    for source in sources.values():
        if "import" in source:
            compile(source, "kernel", "exec")


def test_the_summary_counts_alarms_and_catches():
    same, caught, missed = Trial("same", 0, 0), Trial("slower", 0, 0), Trial("slower", 0, 0)
    same.see(case(), case(1.001))
    for _ in range(2):
        caught.see(case(), case(1 / 1.1))
    while missed.outcome is Outcome.AGAIN:
        missed.see(case(), case(1 / 1.1, noise=0.3))
    found = summary([same, caught, missed])
    assert found["same"]["outcomes"] == {"same": 1}
    assert found["same"]["first_looks_slower"] == 0
    assert found["slower"]["outcomes"] == {"slower": 1, "unclear": 1}
    assert found["slower"]["first_looks_slower"] == 1
    assert found["slower"]["looks"] == 6
