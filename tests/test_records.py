"""Claims about the file format: a bad state cannot be built, and what is written is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from harness.records import (
    SCHEMA_VERSION,
    CandidateRecord,
    Check,
    Identity,
    Measurement,
    Ratio,
    Result,
    Summary,
    Verification,
    WorkloadRecord,
    content_hash,
)
from harness.runs import Environment
from harness.seals import RecordError, read_result, seal_of, sealed
from harness.verdicts import FUNNEL, MEASURED_VERDICTS, NOT_COUNTED, Stage, Verdict

SHA = "0" * 64
IDENTITY = Identity(task=SHA, workload="w", candidate=SHA, target="h100", harness="0.1.0")
WORKLOAD = WorkloadRecord(
    key="w", batch=1, heads=2, kv_heads=1, seq_q=8, seq_k=8, dim=64, dim_v=64, dtype="fp16", scale=0.125,
    flops=1, bytes=1,
)  # fmt: skip
CANDIDATE = CandidateRecord(sha256=SHA, name="mine", kind="candidate", method="folder", backend="triton")
RATIO = Ratio(anchor="cudnn", median=1.1, low=1.09, high=1.11, pairs=12, stopped="precise")
MEASUREMENT = Measurement(
    clock="kernel_records",
    captured=True,
    device_time=Summary(median_ms=1.0, p10_ms=0.9, p90_ms=1.1, samples=40),
    ratio=RATIO,
    tflops=500,
    gbytes_per_s=100,
)


def check(passed: bool) -> Check:
    return Check(
        workload="w", recipe="normal", seed=1, passed=passed, error_max=0.1, error_allowed=0.2,
        tile_error=0.01, tile_error_allowed=0.02, cosine_distance=0.0,
    )  # fmt: skip


PASSED = Verification(checks=(check(True), check(True)))
FAILED = Verification(checks=(check(True), check(False)))


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "id": IDENTITY.digest, "identity": IDENTITY, "task": "mha_causal", "target": "h100",
        "device": "NVIDIA H100 80GB HBM3", "environment": SHA, "workload": WORKLOAD, "candidate": CANDIDATE,
        "verdict": Verdict.OK, "verification": PASSED, "measurement": MEASUREMENT,
        "recorded_at": "2025-11-02T12:00:00Z",
    }  # fmt: skip
    return Result(**(fields | changes))


def minimal(verdict: Verdict, **changes: Any) -> Result:
    """The least a result of this verdict may carry."""
    if verdict is Verdict.OK:
        return result(**changes)
    verification = FAILED if verdict is Verdict.WRONG_NUMERICS else None
    least = {"verdict": verdict, "reason": "because", "verification": verification, "measurement": None}
    return result(**(least | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measurement": None}, "must carry a measurement"),
        ({"verification": None}, "must carry passed checks"),
        ({"verification": FAILED}, "must carry passed checks"),
        ({"verification": Verification()}, "must carry passed checks"),
        ({"id": "1" * 64}, "not the hash"),
        ({"id": "short"}, "id"),
        ({"schema_version": 3}, "schema_version"),
        ({"speed": 3}, "Extra inputs"),
    ],
)
def test_an_ok_result_lacks_nothing(changes: dict[str, Any], message: str) -> None:
    result()
    with pytest.raises(ValidationError, match=message):
        result(**changes)


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.OK])
def test_anything_but_ok_says_why(verdict: Verdict) -> None:
    minimal(verdict)
    with pytest.raises(ValidationError, match="must say why"):
        minimal(verdict, reason="")


@pytest.mark.parametrize("verdict", Verdict)
def test_only_verdicts_of_something_that_ran_to_the_end_carry_a_measurement(verdict: Verdict) -> None:
    if verdict in MEASURED_VERDICTS:
        assert minimal(verdict, measurement=MEASUREMENT).measurement
    else:
        with pytest.raises(ValidationError, match="must not carry a measurement"):
            minimal(verdict, measurement=MEASUREMENT)


def test_a_crash_is_not_measured() -> None:
    assert Verdict.CRASH not in MEASURED_VERDICTS
    ran_to_the_end = {Verdict.OK, Verdict.LIBRARY_DISPATCH, Verdict.IMPOSSIBLE, Verdict.INTEGRITY}
    assert ran_to_the_end == MEASURED_VERDICTS


@pytest.mark.parametrize("verification", [None, PASSED])
def test_wrong_numerics_shows_the_check_that_failed(verification: Verification | None) -> None:
    with pytest.raises(ValidationError, match="failed check"):
        minimal(Verdict.WRONG_NUMERICS, verification=verification)


@pytest.mark.parametrize(("low", "median", "high"), [(1.2, 1.1, 1.3), (1.0, 1.4, 1.3), (1.3, 1.2, 1.1)])
def test_an_interval_contains_its_median(low: float, median: float, high: float) -> None:
    with pytest.raises(ValidationError, match="contain the median"):
        Ratio(anchor="cudnn", median=median, low=low, high=high, pairs=1, stopped="precise")


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_is_positive_and_finite(bad: float) -> None:
    with pytest.raises(ValidationError):
        Summary(median_ms=bad, p10_ms=1, p90_ms=1, samples=1)


def test_no_check_is_not_a_passed_check() -> None:
    assert not Verification().passed
    assert PASSED.passed and not FAILED.passed


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_has_a_stage(verdict: Verdict) -> None:
    assert minimal(verdict).stage in Stage


def test_a_verdict_stands_where_its_trial_ended() -> None:
    order = list(Stage)
    reached = {v: order.index(minimal(v).stage) for v in Verdict}
    assert [v for v in Verdict if reached[v] == order.index(Stage.MEASURED)] == [Verdict.OK]
    assert reached[Verdict.NO_CODE] < reached[Verdict.BUILD_ERROR] < reached[Verdict.CRASH]
    assert reached[Verdict.CRASH] < reached[Verdict.WRONG_NUMERICS] < reached[Verdict.INTEGRITY]
    assert FUNNEL[0] is Stage.GENERATED and FUNNEL[-1] is Stage.MEASURED


def test_ours_and_missing_ones_are_not_counted_against_a_candidate() -> None:
    assert {Verdict.SKIPPED, Verdict.INFRA} == NOT_COUNTED


@pytest.mark.parametrize("verdict", Verdict)
def test_a_line_is_read_as_it_was_written(verdict: Verdict) -> None:
    written = minimal(verdict)
    line = sealed(written, "").model_dump_json()
    assert "\n" not in line
    assert read_result(line).bare == written


def test_a_check_with_infinite_error_survives_the_file() -> None:
    worst = check(False).model_copy(update={"error_max": float("inf")})
    written = minimal(Verdict.WRONG_NUMERICS, verification=Verification(checks=(worst,)))
    assert read_result(sealed(written, SHA).model_dump_json()).bare == written


@pytest.mark.parametrize("version", [0, 3, None, "1", True])
def test_an_unknown_schema_version_says_what_to_do(version: Any) -> None:
    data = json.loads(result().model_dump_json()) | {"schema_version": version}
    with pytest.raises(RecordError, match=f"this attnbench reads 1 to {SCHEMA_VERSION}.*environment.json"):
        read_result(json.dumps(data))


@pytest.mark.parametrize(
    "line", ["", "{", "[" * 100_000, '{"schema_version": 1}', "[1]", "null", result().model_dump_json()[:-9]]
)
def test_a_line_that_is_no_result_is_refused_with_one_error(line: str) -> None:
    with pytest.raises(RecordError):
        read_result(line)


def test_a_line_of_schema_1_is_read_without_a_seal_and_one_of_2_is_not() -> None:
    old = json.loads(result().model_dump_json()) | {"schema_version": 1}
    del old["seal"], old["previous"]
    assert read_result(json.dumps(old)).bare == result()
    with pytest.raises(RecordError, match="its seal is gone"):
        read_result(json.dumps(old | {"schema_version": 2}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"median_ms":1.0', '"median_ms":0.5'),
        ('"verdict":"ok"', '"verdict":"library_dispatch","reason":"so"'),
        ('"recorded_at":"2025', '"recorded_at":"2026'),
        (f'"previous":"{SHA}"', '"previous":""'),
        ('"seal":"', '"seal":"0'),
    ],
)
def test_a_line_that_was_changed_after_it_was_sealed_is_refused(old: str, new: str) -> None:
    line = sealed(result(), SHA).model_dump_json()
    assert line.count(old) >= 1
    with pytest.raises(RecordError, match="changed after it was recorded"):
        read_result(line.replace(old, new))


def test_a_seal_is_of_the_line_so_a_field_that_a_later_attnbench_adds_does_not_break_it() -> None:
    """A line written before a field with a default came is as whole as it was."""
    line = json.loads(sealed(result(), "").model_dump_json())
    del line["sandboxed"], line["measurement"]["graph_time"]
    line["seal"] = seal_of(line)
    assert read_result(json.dumps(line)).sandboxed is False


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        result().verdict = Verdict.CRASH  # type: ignore[misc]


@pytest.mark.parametrize("field", list(IDENTITY.model_dump()))
def test_every_field_of_the_identity_makes_another_result(field: str) -> None:
    other = {"task": "1" * 64, "candidate": "1" * 64, "sample": 1}.get(field, "other")
    assert IDENTITY.model_copy(update={field: other}).digest != IDENTITY.digest


def test_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 3})


def test_environment_has_a_digest_of_its_content() -> None:
    one = Environment(device="cpu", target="cpu", harness="0.1.0", python="3.12", platform="Linux")
    assert "sources" not in one.content  # as older runs have it: their hashes stay what they are
    assert one.model_copy(update={"sources": "a"}).digest != one.digest
    assert one.digest == one.model_copy().digest != one.model_copy(update={"driver": "580"}).digest
