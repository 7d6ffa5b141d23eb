"""Claims about floors and rates, with values computed by hand."""

from __future__ import annotations

import pytest

from harness.measure.roofline import (
    Roofline,
    floor_ms,
    gbytes_per_s,
    percent_of_bandwidth,
    percent_of_peak,
    tflops,
)
from harness.targets import TARGETS
from tasks.mha_causal import TASK
from tasks.spec import Workload

H100, CPU = TARGETS["h100"], TARGETS["cpu"]
LONG = Workload("mha_causal", 1, 16, 16, 16_384, 16_384, 128, 128, "fp16")
# Pairs 16384 * 16385 / 2 = 134 225 920 a head; 16 heads; 2 * (128 + 128) = 512 operations a pair.
LONG_FLOPS = 1_099_578_736_640
# q, k, v, out: 4 * 16384 * 16 * 128 * 2 bytes.
LONG_BYTES = 268_435_456


def test_long_causal_attention_is_bound_by_compute() -> None:
    roofline = Roofline.of(TASK, LONG, H100)
    assert (roofline.flops, roofline.bytes_moved) == (LONG_FLOPS, LONG_BYTES)
    assert roofline.floor_ms == pytest.approx(1.111359, rel=1e-6)  # 1.09957873664e12 / 989.4e12 s


def test_short_attention_is_bound_by_memory() -> None:
    # 512 x 1 tile of pairs: 2 * 512 * 512 * 256 operations take 0.000136 ms, 512 KiB take 0.000156 ms.
    assert floor_ms(134_217_728, 524_288, H100, "fp16") == pytest.approx(524_288 / 3.352e12 * 1e3)


def test_rates_at_a_measured_time() -> None:
    roofline = Roofline.of(TASK, LONG, H100)
    assert roofline.tflops(1.72) == pytest.approx(639.29, rel=1e-4)  # FA4's figure on this cell
    assert roofline.percent_of_peak(1.72) == pytest.approx(64.61, rel=1e-3)
    assert roofline.gbytes_per_s(1.72) == pytest.approx(156.07, rel=1e-4)
    assert roofline.percent_of_bandwidth(1.72) == pytest.approx(4.656, rel=1e-3)


def test_at_its_floor_a_kernel_reaches_all_of_one_resource() -> None:
    roofline = Roofline.of(TASK, LONG, H100)
    assert roofline.floor_ms is not None
    assert roofline.percent_of_peak(roofline.floor_ms) == pytest.approx(100)
    assert roofline.impossible(roofline.floor_ms * 0.999)
    assert not roofline.impossible(roofline.floor_ms * 1.001)


def test_the_cpu_has_rates_but_no_shares_and_no_floor() -> None:
    roofline = Roofline.of(TASK, LONG, CPU)
    assert roofline.floor_ms is None
    assert roofline.percent_of_peak(100) is None
    assert roofline.percent_of_bandwidth(100) is None
    assert not roofline.impossible(1e-9)
    assert roofline.tflops(1000) == pytest.approx(1.0995787)
    assert roofline.gbytes_per_s(1000) == pytest.approx(0.268435456)


def test_a_dtype_without_a_peak_is_bound_by_memory_alone() -> None:
    assert percent_of_peak(10**12, 1.0, H100, "fp64") is None
    assert floor_ms(10**12, 3_352_000_000, H100, "fp64") == pytest.approx(1.0)
    assert percent_of_bandwidth(3_352_000_000, 1.0, H100) == pytest.approx(100)


@pytest.mark.parametrize("rate", [tflops, gbytes_per_s])
@pytest.mark.parametrize("time_ms", [0.0, -1.0, float("nan")])
def test_a_time_that_is_none_gives_no_rate(rate: object, time_ms: float) -> None:
    assert callable(rate)
    with pytest.raises(ValueError, match="must be positive"):
        rate(1, time_ms)
