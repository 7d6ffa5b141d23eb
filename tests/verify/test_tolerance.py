"""The tolerance accepts rounding and refuses every local mistake, with a note that finds it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records import Check
from harness.verify import tolerance
from harness.verify.inputs import RECIPES, make_inputs
from harness.verify.tolerance import Expectation, ToleranceError, expect
from tasks import discover, oracle
from tasks.spec import Task, TensorSpec, Workload

SUITE = discover()
CAUSAL = SUITE["mha_causal"]
W = Workload("mha_causal", 2, 3, 3, 150, 150, 32, 32)
half_precision = pytest.mark.parametrize("dtype", ["fp16", "bf16"])


def _case(dtype: str = "fp16", recipe: str = "normal", seed: int = 0) -> tuple[Expectation, torch.Tensor]:
    """An expectation and the exact result rounded to the output dtype."""
    w = W.with_(dtype=dtype)
    inputs = make_inputs(CAUSAL, w, recipe, seed, "cpu")
    exact = oracle.expected(CAUSAL, w, inputs)["out"]
    return expect(CAUSAL, w, inputs), exact.to(w.torch_dtype)


@given(
    recipe=st.sampled_from(sorted(RECIPES)),
    dtype=st.sampled_from(["fp16", "bf16", "fp32"]),
    seed=st.integers(0, 1000),
    seq_q=st.integers(1, 140),
    seq_k=st.integers(2, 140),
)
@settings(deadline=None, max_examples=60)
def test_the_rounded_exact_result_passes(recipe: str, dtype: str, seed: int, seq_q: int, seq_k: int) -> None:
    w = W.with_(batch=1, heads=1, kv_heads=1, dtype=dtype, seq_q=seq_q, seq_k=seq_k)
    inputs = make_inputs(CAUSAL, w, recipe, seed, "cpu")
    found = expect(CAUSAL, w, inputs).compare(
        {"out": oracle.expected(CAUSAL, w, inputs)["out"].to(w.torch_dtype)}
    )
    assert found.passed, found.note
    assert found.note == ""


@given(
    dtype=st.sampled_from(["fp16", "bf16", "fp32"]),
    recipe=st.sampled_from(["normal", "constant_keys", "tiny_scale", "huge_scale"]),
    batch=st.integers(0, 1),
    head=st.integers(0, 2),
    tile=st.integers(0, 2),
    factor=st.sampled_from([0.0, 0.97, 1.03, -1.0]),
)
@settings(deadline=None, max_examples=60)
def test_one_wrong_tile_is_refused(
    dtype: str, recipe: str, batch: int, head: int, tile: int, factor: float
) -> None:
    expectation, out = _case(dtype, recipe)
    out[batch, tile * 64 : (tile + 1) * 64, head] *= factor
    found = expectation.compare({"out": out})
    assert not found.passed
    assert f"batch {batch}, head {head}" in found.note


@half_precision
@given(query=st.integers(0, 149), head=st.integers(0, 2))
@settings(deadline=None, max_examples=20)
def test_one_wrong_row_is_refused_and_found(dtype: str, query: int, head: int) -> None:
    expectation, out = _case(dtype)
    out[1, query, head] = out[1, query, head].flip(0)
    found = expectation.compare({"out": out})
    assert not found.passed
    assert f"batch 1, head {head}, query {query}, channel" in found.note


@half_precision
def test_one_zeroed_row_is_refused(dtype: str) -> None:
    expectation, out = _case(dtype)
    out[0, 149, 2] = 0
    assert not expectation.compare({"out": out}).passed


@pytest.mark.parametrize(("value", "says"), [(math.nan, "1 NaN or never written"), (math.inf, "1 infinite")])
def test_one_element_that_is_no_number_is_refused_and_found(value: float, says: str) -> None:
    expectation, out = _case()
    out[1, 77, 2, 5] = value
    found = expectation.compare({"out": out})
    assert not found.passed and found.error_max == math.inf
    assert says in found.note and "batch 1, head 2, query 77, channel 5" in found.note


def test_an_output_never_written_is_counted() -> None:
    expectation, out = _case()
    found = expectation.compare({"out": torch.full_like(out, math.nan)})
    assert f"{out.numel()} NaN or never written of {out.numel()} elements" in found.note


def test_rows_that_see_nothing_must_be_exactly_zero() -> None:
    w = W.with_(seq_q=100, seq_k=30, dtype="bf16")
    inputs = make_inputs(CAUSAL, w, "huge_scale", 0, "cpu")
    out = oracle.plain(CAUSAL, w, inputs)["out"]
    expectation = expect(CAUSAL, w, inputs)
    assert expectation.compare({"out": out}).passed
    for query in (3, 68):  # in a tile that is all zero, and in one that is not
        wrong = out.clone()
        wrong[0, query, 1, 4] = 1e-6
        found = expectation.compare({"out": wrong})
        assert not found.passed
        assert "1 rows that may see no key are not zero" in found.note
        assert f"batch 0, head 1, query {query}, channel 4: got 9" in found.note or "got 1" in found.note


def test_a_relative_error_too_small_for_the_max_rule_is_refused_by_the_tile_rule() -> None:
    expectation, out = _case("fp16", "tiny_scale")
    found = expectation.compare({"out": torch.zeros_like(out)})
    assert not found.passed
    assert found.tile_error == pytest.approx(1.0)


def test_chunking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expectation, out = _case()
    out[1, 100, 2] *= 1.5
    whole = expectation.compare({"out": out})
    monkeypatch.setattr(tolerance, "_CHUNK_ELEMENTS", 1000)
    assert _case()[0].outputs["out"].error_allowed == expectation.outputs["out"].error_allowed
    parts = expectation.compare({"out": out})
    assert parts.note == whole.note and parts.error_max == whole.error_max
    assert parts.cosine_distance == pytest.approx(whole.cosine_distance)


def test_the_bound_is_flash_attentions_own() -> None:
    w = W.with_(dtype="bf16")
    inputs = make_inputs(CAUSAL, w, "normal", 0, "cpu")
    exact = oracle.expected(CAUSAL, w, inputs)["out"]
    low = oracle.plain(CAUSAL, w, inputs)["out"]
    rounded = exact.bfloat16()
    want = 2 * (low.double() - exact).abs().max() + 2 * (rounded + 0.3 - 0.3 - rounded).abs().max()
    assert expect(CAUSAL, w, inputs).outputs["out"].error_allowed == pytest.approx(float(want), rel=1e-5)


def test_fp32_reference_says_so() -> None:
    inputs = make_inputs(CAUSAL, W, "normal", 0, "cpu")
    found = expect(CAUSAL, W, inputs, "float32").compare(oracle.plain(CAUSAL, W, inputs))
    assert found.passed and found.reference == "float32"


def test_a_comparison_becomes_a_check_as_it_is() -> None:
    expectation, out = _case()
    found = expectation.compare({"out": out})
    assert Check(workload=W.key, recipe="normal", seed=0, **vars(found)).passed


def test_what_cannot_be_judged_is_an_error() -> None:
    expectation, out = _case()
    with pytest.raises(ToleranceError, match="no output named out"):
        expectation.compare({})
    with pytest.raises(ToleranceError, match="expected"):
        expectation.compare({"out": out[:1]})
    with pytest.raises(ToleranceError, match=r"torch\.float32"):
        expectation.compare({"out": out.float()})
    inputs = make_inputs(CAUSAL, W, "normal", 0, "cpu")
    inputs["v"].fill_(math.inf)
    with pytest.raises(ToleranceError, match="not finite"):
        expect(CAUSAL, W, inputs)


def test_several_outputs_in_other_layouts_report_the_one_that_fails() -> None:
    outputs = (
        TensorSpec("out", ("batch", "heads", "seq_q", "dim_v"), "output"),
        TensorSpec("row_sum", ("batch", "heads", "seq_q"), "output", "fp32"),
    )

    def computed(w: Workload, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = inputs["q"].double().transpose(1, 2) * 2
        return {"out": out, "row_sum": out.sum(-1)}

    task = Task("t", "", "", "", {}, tensors=(*CAUSAL.inputs, *outputs), oracle=computed)  # type: ignore[arg-type]
    w = W.with_(task="t")
    inputs = make_inputs(task, w, "normal", 0, "cpu")
    expectation = expect(task, w, inputs)
    right = {
        name: t.to(dtype)
        for (name, t), dtype in zip(computed(w, inputs).items(), (torch.float16, torch.float32), strict=True)
    }
    assert expectation.compare(right).passed
    right["row_sum"][1, 2, 149] += 1
    assert "batch 1, head 2, query 149, channel 0" in expectation.compare(right).note


def test_one_wrong_element_too_small_for_its_tile_is_refused_by_the_max_rule() -> None:
    expectation, out = _case()
    clean = expectation.compare({"out": out})
    row = out[1, 100, 2]
    row[7] += 1.5 * clean.error_allowed
    found = expectation.compare({"out": out})
    assert found.tile_error < found.tile_error_allowed, "only the max rule can see it"
    assert not found.passed
    assert "batch 1, head 2, query 100, channel 7" in found.note
