"""What a worker says of its operators is read with suspicion, and load in it does not count."""

import pytest

from harness.measure.claims import ProfiledCall, claimed_operators, quickest
from harness.verify.dispatch import dispatched_operators
from harness.worker.protocol import WorkerDied

CALL = {"operators": {"aten::matmul": 0.5}, "wall_ms": 1.0}


def test_what_is_asked_for_is_read():
    assert claimed_operators({"calls": [CALL, CALL]}, 2) == [ProfiledCall({"aten::matmul": 0.5}, 1.0)] * 2


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"calls": []},
        {"calls": [CALL]},
        {"calls": [CALL, {**CALL, "wall_ms": float("nan")}]},
        {"calls": [CALL, {**CALL, "operators": {"aten::matmul": -1}}]},
        {"calls": [CALL, {**CALL, "operators": ["aten::matmul"]}]},
        {"calls": [CALL, {"operators": {}}]},
        {"calls": [CALL, 7]},
    ],
)
def test_anything_else_is_a_worker_that_does_not_keep_to_the_protocol(told):
    with pytest.raises(WorkerDied):
        claimed_operators(told, 2)


def test_a_call_that_was_held_up_hides_no_library_and_invents_none():
    honest, library = {"aten::matmul": 0.5}, {"aten::scaled_dot_product_attention": 0.1}
    held_up = ProfiledCall({"aten::matmul": 50.0} | library, 51.0)
    calls = [held_up, ProfiledCall(honest | {"aten::scaled_dot_product_attention": 9.0}, 10.0), held_up]
    assert dispatched_operators(*quickest(calls), "torch") == "PyTorch's attention"
    calls.append(ProfiledCall(honest, 0.6))  # one without it excuses nothing
    assert dispatched_operators(*quickest(calls), "torch") == "PyTorch's attention"
    assert dispatched_operators(*quickest([ProfiledCall(honest, 40.0)] * 2), "torch") is None
